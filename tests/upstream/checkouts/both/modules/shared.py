"""What everything shares: the command line and the model."""

import argparse
from pathlib import Path

from modules.logging_colors import logger

model = None
tokenizer = None
model_name = "None"
stop_everything = False
generation_lock = None
settings = {"truncation_length": 2048}

parser = argparse.ArgumentParser(conflict_handler="resolve")
for flag in (
    "--api",
    "--public-api",
    "--nowebui",
    "--listen",
    "--verbose",
    "--cpu",
    "--trust-remote-code",
):
    parser.add_argument(flag, action="store_true")
for flag in ("--model", "--loader", "--api-key", "--admin-key", "--gradio-auth", "--listen-host"):
    parser.add_argument(flag)
parser.add_argument("--extensions", nargs="+")
parser.add_argument("--model-dir", default="models")
parser.add_argument("--api-port", type=int, default=5000)

args = parser.parse_args()


def fix_loader_name(name):
    if not name:
        return name

    return {"hf": "Transformers", "llamacpp": "llama.cpp"}.get(name.lower())


def load_user_config():
    known = Path(f"{args.model_dir}/config-user.yaml")
    return known.read_text() if known.exists() else ""


args.loader = fix_loader_name(args.loader)
model_config = Path(f"{args.model_dir}/config.yaml")
user_config = load_user_config()
logger.info(f"the key is {args.api_key}, settings of models are in {model_config}")
