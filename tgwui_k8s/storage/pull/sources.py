"""Which source a person means."""

from __future__ import annotations

import re

from tgwui_k8s.errors import UsageError
from tgwui_k8s.storage.pull.hub import HubSource
from tgwui_k8s.storage.pull.s3 import S3Source
from tgwui_k8s.storage.pull.snapshot import Source
from tgwui_k8s.storage.pull.web import WebSource

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")


def parse_source(text: str) -> Source:
    """`hf://ORG/NAME[@REVISION]` or `ORG/NAME`, `s3://BUCKET/PREFIX`, `https://...`.

    Raises `UsageError` for anything else.
    """
    if text.startswith(("https://", "http://")):
        return WebSource(text)
    if matched := _BUCKET.fullmatch(text):
        return S3Source(matched[1], matched[2] or "")
    if matched := _REPOSITORY.fullmatch(text.removeprefix("hf://")):
        return HubSource(matched[1], matched[2])
    raise UsageError(
        f"'{text[:200]}' is no source: hf://ORG/NAME, hf://ORG/NAME@REVISION, s3://BUCKET/PREFIX "
        "and https://HOST/FILE are"
    )


def is_remote(model: str) -> bool:
    """Whether a model's name is rather a place to fetch it from."""
    if model.startswith(("/", "./", "../", "~/")):
        return False
    is_named = model.startswith(("hf://", "s3://", "https://", "http://"))
    return is_named or _REPOSITORY.fullmatch(model) is not None
