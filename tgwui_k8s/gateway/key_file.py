"""API keys with what each may use, from a file: a Secret, mounted.

One key a line, as the engine takes them, without limits; or who may use what, in YAML or JSON:

    keys:
      - name: team-a
        sha256: 5e88…             # printf %s "$KEY" | sha256sum; a list while keys are exchanged
        models: [llama-3-*]       # default: all
        requests_per_minute: 600
        tokens_per_minute: 200000
        max_concurrent_requests: 32
        budget_tokens: 50000000
        budget_period: month      # hour, day, week, month

A line may be `sha256:HEX`, and an entry may have a plain `key`. Plain keys are hashed while the
file is read; nothing keeps them, and no error shows them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.quotas.quota import UNLIMITED, PeriodName, Quota

MAX_FILE_BYTES = 4 << 20

_HASHED = b"sha256:"
_IS_STRUCTURED = re.compile(rb"\A\s*\{|^keys\s*:", re.MULTILINE)
_HEX_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Whose a key is, and what it may use."""

    name: str
    models: tuple[str, ...] | None = None
    """Names or patterns such as `llama-*`; None: every model."""
    quota: Quota = UNLIMITED

    def may_use(self, model: str) -> bool:
        """Whether the key is good for a model."""
        return self.models is None or any(fnmatchcase(model, one) for one in self.models)


KeysByDigest = Mapping[bytes, ApiKey]
"""SHA-256 of a key to whose it is. Who looks up a digest learns nothing from the time it takes."""

_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: str | list[str] = []
    key: str | list[str] = []
    models: list[str] | None = None
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    max_concurrent_requests: _Count | None = None
    budget_tokens: _Count | None = None
    budget_period: PeriodName = "month"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[_Entry]


def digest_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def unnamed_keys(digests: Iterable[bytes]) -> dict[bytes, ApiKey]:
    """Keys without limits, named by the beginning of their digest."""
    return {digest: ApiKey(f"key-{digest.hex()[:8]}") for digest in digests}


def read_keys(path: Path) -> KeysByDigest:
    """The keys of a file. Raises `UsageError`, which never shows a key."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"The key file {path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"The key file {path} is larger than {MAX_FILE_BYTES} bytes.")
    try:
        found = _structured(content) if _IS_STRUCTURED.search(content) else _lines(content)
    except ValueError as error:
        raise UsageError(f"The key file {path} is wrong: {error}.") from None
    if not found:
        raise UsageError(f"The key file {path} holds no key.")
    return found


def _lines(content: bytes) -> dict[bytes, ApiKey]:
    digests = []
    for number, line in enumerate(content.splitlines(), start=1):
        key = line.strip()
        if key.startswith(_HASHED):
            digests.append(_from_hex(key[len(_HASHED) :].decode("latin-1"), f"line {number}"))
        elif key:
            digests.append(digest_of(key))
    return unnamed_keys(digests)


def _structured(content: bytes) -> dict[bytes, ApiKey]:
    try:
        entries = msgspec.convert(yaml.safe_load(content), _File).keys
    except yaml.MarkedYAMLError as error:
        # Its own text shows the line, and so perhaps a key.
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"it is no YAML{line}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is no YAML") from None
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    keys: dict[bytes, ApiKey] = {}
    names: set[str] = set()
    for entry in entries:
        if entry.name in names:
            raise ValueError(f"the name {entry.name} stands there twice")
        names.add(entry.name)
        digests = _digests_of(entry)
        if not digests:
            raise ValueError(f"{entry.name} has neither 'sha256' nor 'key'")
        for digest in digests:
            if digest in keys:
                raise ValueError(f"{entry.name} and {keys[digest].name} have the same key")
            keys[digest] = _as_key(entry)
    return keys


def _digests_of(entry: _Entry) -> list[bytes]:
    hashed = [entry.sha256] if isinstance(entry.sha256, str) else entry.sha256
    plain = [entry.key] if isinstance(entry.key, str) else entry.key
    if not all(plain):
        raise ValueError(f"{entry.name} has an empty key")
    return [
        *(_from_hex(text.removeprefix("sha256:"), entry.name) for text in hashed),
        *(digest_of(key.encode()) for key in plain),
    ]


def _as_key(entry: _Entry) -> ApiKey:
    quota = Quota(
        entry.requests_per_minute,
        entry.tokens_per_minute,
        entry.max_concurrent_requests,
        entry.budget_tokens,
        entry.budget_period,
    )
    return ApiKey(entry.name, None if entry.models is None else tuple(entry.models), quota)


def _from_hex(text: str, where: str) -> bytes:
    if _HEX_DIGEST.fullmatch(text.strip()) is None:
        raise ValueError(f"the sha256 of {where} is not 64 hexadecimal digits")
    return bytes.fromhex(text.strip())
