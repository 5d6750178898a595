"""The log, for a person."""

import logging

logger = logging.getLogger("textgen")


def setup_logging():
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(levelname)s\n    %(message)s"))
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)


setup_logging()
