"""The start: load a model, then open the API."""

import os
import signal
import sys
import time
from pathlib import Path
from threading import Lock, Thread

from modules import shared
from modules.logging_colors import logger
from modules.models import load_model


def signal_handler(sig, frame):
    logger.info("stopping")
    sys.exit(0)


signal.signal(signal.SIGTERM, signal_handler)


if __name__ == "__main__":
    logger.info("Starting")
    print(f"working in {os.getcwd()}")
    if shared.args.model is not None:
        shared.model_name = shared.args.model
        shared.model, shared.tokenizer = load_model(shared.args.model)

    shared.generation_lock = Lock()
    Path("cache").mkdir(exist_ok=True)
    Path("cache/picture.png").write_bytes(b"a picture")
    try:
        from modules.api.script import setup
    except ModuleNotFoundError:
        from extensions.openai.script import setup

    setup()
    while not shared.args.nowebui:
        time.sleep(0.1)
