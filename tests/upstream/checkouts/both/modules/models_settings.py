"""What is known of a model's folder."""

from pathlib import Path

from modules import shared


def get_model_metadata(model):
    model_settings = {"instruction_template": "Alpaca", "truncation_length": 2048}
    template = Path(f"{shared.args.model_dir}/{model}") / "template.jinja"
    if template.exists():
        model_settings["instruction_template"] = "Custom (obtained from model metadata)"
        model_settings["instruction_template_str"] = template.read_text()

    model_settings["loader"] = infer_loader(model, model_settings)
    return model_settings


def infer_loader(model_name, model_settings, hf_quant_method=None):
    path_to_model = Path(f"{shared.args.model_dir}/{model_name}")
    if not path_to_model.exists():
        return None

    return "llama.cpp" if path_to_model.suffix == ".gguf" else "Transformers"


def save_model_settings(model, state):
    p = Path(f"{shared.args.model_dir}/config-user.yaml")
    p.write_text(f"{model}: {state}")
