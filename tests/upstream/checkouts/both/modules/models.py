"""Load and unload."""

import gc

import modules.shared as shared
from modules.logging_colors import logger
from modules.models_settings import get_model_metadata


def load_model(model_name, loader=None):
    logger.info(f"Loading {model_name}")
    shared.model_name = model_name
    load_func_map = {
        "Transformers": transformers_loader,
        "llama.cpp": llama_cpp_loader,
    }

    metadata = get_model_metadata(model_name)
    loader = loader or shared.args.loader or metadata["loader"]
    if loader is None:
        logger.error("no such model")
        raise ValueError

    output = load_func_map[loader](model_name)
    model, tokenizer = output
    if model is None:
        return None, None

    shared.settings.update({k: v for k, v in metadata.items() if k in shared.settings})
    return model, tokenizer


def transformers_loader(model_name):
    return None, None


def llama_cpp_loader(model_name):
    try:
        from modules.llama_cpp_server import LlamaServer

        return LlamaServer.from_pretrained(model_name)
    except Exception as e:
        logger.error(f"could not load: {e}")
        return None, None


def unload_model():
    shared.model = shared.tokenizer = None
    shared.model_name = "None"
    clear_torch_cache()


def clear_torch_cache():
    gc.collect()
    if False:
        import torch

        torch.cuda.empty_cache()
