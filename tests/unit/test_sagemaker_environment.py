"""The variables of AWS's LMI containers, as settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.errors import UsageError
from tgwui_k8s.sagemaker_environment import VARIABLES, read_sagemaker_environment
from tgwui_k8s.settings import load_settings

GUIDE = {
    "HF_MODEL_ID": "/opt/ml/model",
    "TENSOR_PARALLEL_DEGREE": "12",
    "OPTION_DTYPE": "fp16",
    "OPTION_MAX_ROLLING_BATCH_SIZE": "32",
    "OPTION_ROLLING_BATCH": "auto",
    "SAGEMAKER_BIND_TO_PORT": "8080",
}


def test_the_guides_variables_are_settings() -> None:
    """All of them have their effect, and are said to come from the environment."""
    settings, provenance = load_settings({}, GUIDE)
    assert settings.model.model == "/opt/ml/model"
    assert settings.model.dtype == "float16"
    assert settings.model.tensor_parallel_size == 12
    assert settings.engine.max_num_seqs == 32
    assert settings.server.port == 8080
    assert provenance.sources["max_num_seqs"] == "environment"
    assert provenance.warnings == ()


def test_our_own_variables_and_flags_win() -> None:
    """TGWUI_ over SageMaker's, flags over both; SageMaker's over the file's default."""
    environ = {**GUIDE, "TGWUI_MAX_NUM_SEQS": "4"}
    settings, _ = load_settings({"port": "1234"}, environ)
    assert settings.engine.max_num_seqs == 4
    assert settings.server.port == 1234
    assert settings.model.dtype == "float16"


@pytest.mark.parametrize("degree", ["max", "1"])
def test_the_default_degree_is_left_alone(degree: str) -> None:
    """`max` is the default of Neuron, and 1 suits every loader."""
    settings, _ = load_settings({}, {"TENSOR_PARALLEL_DEGREE": degree})
    assert settings.model.tensor_parallel_size is None


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("OPTION_DTYPE", "int8"),
        ("OPTION_ROLLING_BATCH", "disable"),
        ("OPTION_ROLLING_BATCH", "nonsense"),
        ("OPTION_MAX_ROLLING_BATCH_SIZE", "0"),
        ("OPTION_MAX_ROLLING_BATCH_SIZE", "many"),
        ("TENSOR_PARALLEL_DEGREE", "all"),
        ("SAGEMAKER_BIND_TO_PORT", "99999"),
        ("OPTION_QUANTIZE", "awq"),
        ("OPTION_ENABLE_LORA", "true"),
        ("OPTION_OUTPUT_FORMATTER", "sse"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(variable: str, text: str) -> None:
    """The error names the variable; nothing is ignored."""
    with pytest.raises(UsageError, match=variable):
        load_settings({}, {variable: text})


def test_unknown_options_are_warned_about_by_name() -> None:
    """A typing mistake shows, with the name that was meant."""
    _, provenance = load_settings({}, {"OPTION_MAX_ROLING_BATCH_SIZE": "8", "OPTIONAL": "x"})
    (warning,) = provenance.warnings
    assert "OPTION_MAX_ROLING_BATCH_SIZE" in warning
    assert "did you mean OPTION_MAX_ROLLING_BATCH_SIZE?" in warning


def test_two_names_for_one_setting_must_agree() -> None:
    """The same value twice is fine, two values are not."""
    both = {"HF_MODEL_ID": "a", "OPTION_MODEL_ID": "a"}
    assert read_sagemaker_environment(both)[0]["model"] == ("HF_MODEL_ID", "a")
    with pytest.raises(UsageError, match="HF_MODEL_ID and OPTION_MODEL_ID disagree"):
        read_sagemaker_environment({**both, "OPTION_MODEL_ID": "b"})


def test_every_variable_is_documented() -> None:
    """docs/sagemaker.md has them all."""
    text = Path("docs/sagemaker.md").read_text(encoding="utf-8")
    assert [name for name in VARIABLES if f"`{name}`" not in text] == []
