"""The variables that AWS's LMI containers are configured by on SageMaker, as settings of ours.

They rank below `TGWUI_` variables. What has a meaning here is honoured, what asks for something we
do not do is refused by name, and an unknown `OPTION_` variable is a warning: it may be meant for
somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches

from tgwui_k8s.errors import UsageError

Translation = Callable[[str], "str | None"]
"""A variable's text to our setting's; None: nothing to set. Raises `ValueError` with the reason."""

PREFIX = "OPTION_"

_DTYPES = {
    **dict.fromkeys(("fp32", "float32"), "float32"),
    **dict.fromkeys(("fp16", "float16", "half"), "float16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bfloat16"),
    "auto": "auto",
}
_ROLLING_BATCHES = ("auto", "vllm", "lmi-dist", "scheduler", "trtllm", "neuronx-distributed")
_FALSE = ("", "false", "0", "no", "off")


def _as_it_is(text: str) -> str:
    return text


def _degree(text: str) -> str | None:
    """`max` is what Neuron takes by itself, and 1 what all others do: both are the default."""
    return None if text.lower() in ("max", "1") else text


def _dtype(text: str) -> str:
    if text.lower() not in _DTYPES:
        raise ValueError(f"'{text[:50]}' is not one of {', '.join(_DTYPES)}")
    return _DTYPES[text.lower()]


def _rolling_batch(text: str) -> None:
    """All of them are continuous batching, which is the only way here."""
    if text.lower() in ("disable", "disabled", "false"):
        raise ValueError(
            "requests are always batched as they come; for one at a time set "
            "OPTION_MAX_ROLLING_BATCH_SIZE=1"
        )
    if text.lower() not in _ROLLING_BATCHES:
        raise ValueError(f"'{text[:50]}' is not one of {', '.join(_ROLLING_BATCHES)}")


def _formatter(text: str) -> None:
    if text.lower() not in ("json", "jsonlines"):
        raise ValueError("answers are JSON, and streams are JSON lines")


def _unless_false(what: str) -> Translation:
    """For what there is not: false is fine."""

    def translate(text: str) -> None:
        if text.lower() not in _FALSE:
            raise ValueError(what)

    return translate


def _without_effect(text: str) -> None:
    """It says how LMI does its work, not what the client gets."""


VARIABLES: dict[str, tuple[str | None, Translation]] = {
    "HF_MODEL_ID": ("model", _as_it_is),
    "OPTION_MODEL_ID": ("model", _as_it_is),
    "SAGEMAKER_BIND_TO_PORT": ("port", _as_it_is),
    "TENSOR_PARALLEL_DEGREE": ("tensor_parallel_size", _degree),
    "OPTION_TENSOR_PARALLEL_DEGREE": ("tensor_parallel_size", _degree),
    "OPTION_DTYPE": ("dtype", _dtype),
    "OPTION_MAX_ROLLING_BATCH_SIZE": ("max_num_seqs", _as_it_is),
    "OPTION_MAX_ROLLING_BATCH_PREFILL_TOKENS": ("max_num_batched_tokens", _as_it_is),
    "OPTION_MAX_MODEL_LEN": ("max_model_len", _as_it_is),
    "OPTION_N_POSITIONS": ("n_positions", _as_it_is),
    "OPTION_TRUST_REMOTE_CODE": ("trust_remote_code", _as_it_is),
    "HF_TRUST_REMOTE_CODE": ("trust_remote_code", _as_it_is),
    "OPTION_CHAT_TEMPLATE": ("chat_template", _as_it_is),
    "OPTION_ROLLING_BATCH": (None, _rolling_batch),
    "OPTION_OUTPUT_FORMATTER": (None, _formatter),
    "OPTION_QUANTIZE": (None, _unless_false("serve a checkpoint that is quantized already")),
    "OPTION_ENABLE_LORA": (None, _unless_false("adapters are not served")),
    "OPTION_TGI_COMPAT": (None, _unless_false("TGI's shapes are not imitated")),
    "OPTION_SPECULATIVE_DRAFT_MODEL": (None, _unless_false("there is no draft model")),
    "OPTION_REVISION": (None, _as_it_is),  # read by whoever downloads the model
    "OPTION_ENGINE": (None, _without_effect),
    "OPTION_ENTRYPOINT": (None, _without_effect),
    "OPTION_ENABLE_STREAMING": (None, _without_effect),
    "OPTION_MODEL_LOADING_TIMEOUT": (None, _without_effect),
    "OPTION_ASYNC_MODE": (None, _without_effect),
}
"""Variable to the setting's name, and how its text becomes the setting's."""


def read_sagemaker_environment(
    environ: Mapping[str, str],
) -> tuple[dict[str, tuple[str, str]], tuple[str, ...]]:
    """Settings by name, each with its variable and text, and what to warn about.

    Raises `UsageError` for a value that asks for what there is not, and for two variables that
    disagree.
    """
    found: dict[str, tuple[str, str]] = {}
    for variable, (setting, translate) in VARIABLES.items():
        text = environ.get(variable, "").strip()
        value = _translated(variable, text, translate) if text else None
        if setting is None or value is None:
            continue
        earlier = found.setdefault(setting, (variable, value))
        if earlier[1] != value:
            raise UsageError(f"{earlier[0]} and {variable} disagree: set one of them")
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in VARIABLES)
    return found, tuple(map(_warning, unknown))


def _translated(variable: str, text: str, translate: Translation) -> str | None:
    try:
        return translate(text)
    except ValueError as reason:
        raise UsageError(f"{variable}: {reason}") from None


def _warning(variable: str) -> str:
    matches = get_close_matches(variable, VARIABLES, n=1)
    hint = f"; did you mean {matches[0]}?" if matches else ""
    return f"environment variable {variable} has no effect here{hint}"
