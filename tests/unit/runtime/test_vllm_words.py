"""Our settings and sampling parameters in vLLM's words; needs no vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tgwui_k8s.contract import GenerationRequest, LoadRequest, TopLogprobs
from tgwui_k8s.errors import UnsupportedModelError
from tgwui_k8s.runtime.vllm.options import engine_args
from tgwui_k8s.runtime.vllm.sampling import IRRELEVANT, UNSUPPORTED, to_vllm, top_logprobs
from tgwui_k8s.sampling import SamplingParams


def request_for(**fields: Any) -> GenerationRequest:
    params = SamplingParams(max_tokens=5, **fields)
    return GenerationRequest(request_id="r", prompt_token_ids=(1, 2, 3), params=params)


CHANGED: dict[str, Any] = {
    "max_tokens": 7,
    "min_tokens": 2,
    "stop_token_ids": (4,),
    "ignore_eos": True,
    "ban_eos_token": True,
    "seed": 3,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "logit_bias": {5: 1.0},
    "banned_token_ids": (6,),
    "logprobs": 2,
    "prompt_logprobs": 2,
}


@pytest.mark.parametrize("name", SamplingParams.__struct_fields__)
def test_every_parameter_is_honoured_or_refused(name: str) -> None:
    """A field changes what vLLM is asked for, or the API refuses it; none is dropped."""
    if name in UNSUPPORTED or name in IRRELEVANT:
        assert name not in CHANGED
        return
    plain = request_for()
    changed = msgspec.structs.replace(
        plain, params=msgspec.structs.replace(plain.params, **{name: CHANGED[name]})
    )

    assert to_vllm(changed, 0, (9,)) != to_vllm(plain, 0, (9,))


def test_end_tokens_are_stop_tokens() -> None:
    """The model's ends are ours to say, and what is banned is never chosen."""
    assert to_vllm(request_for(stop_token_ids=(4,)), 0, (9, 8))["stop_token_ids"] == [4, 8, 9]
    assert to_vllm(request_for(ignore_eos=True), 0, (9,))["stop_token_ids"] == []
    assert to_vllm(request_for(ban_eos_token=True), 0, (9,))["logit_bias"] == {9: -100.0}


def test_choices_draw_differently_from_any_seed() -> None:
    """Each choice has a seed of its own, within what vLLM takes."""
    seeds = [to_vllm(request_for(seed=2**64 - 1), choice, ())["seed"] for choice in range(3)]

    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@dataclass
class Logprob:
    """As vLLM tells it."""

    logprob: float
    rank: int


def test_logprobs_are_listed_best_first_and_the_token_last() -> None:
    """The chosen token stands at the end where it is not among the likeliest."""
    found = {7: Logprob(-3.0, 9), 1: Logprob(-0.5, 1), 2: Logprob(-1.0, 2)}

    assert top_logprobs(7, found, 2) == TopLogprobs(7, -3.0, 9, (1, 2, 7), (-0.5, -1.0, -3.0))
    assert top_logprobs(1, found, 1) == TopLogprobs(1, -0.5, 1, (1,), (-0.5,))
    assert top_logprobs(2, found, 0) == TopLogprobs(2, -1.0, 2, (2,), (-1.0,))


def load_request(**options: str) -> LoadRequest:
    return LoadRequest(model_path="/m", loader="vLLM", max_num_seqs=8, options=options)


def test_settings_become_engine_arguments() -> None:
    """Shared settings by their names, options by vLLM's, and anything else as JSON."""
    arguments = engine_args(
        load_request(
            **{
                "tensor-parallel-size": "2",
                "pipeline_parallel_size": "3",
                "distributed_executor_backend": "ray",
                "enforce_eager": "true",
                "engine_args": '{"seed": 5, "quantization": "fp8"}',
            }
        )
    )

    assert arguments["model"] == "/m"
    assert arguments["max_num_seqs"] == 8
    assert (arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (2, 3)
    assert arguments["distributed_executor_backend"] == "ray"
    assert arguments["enforce_eager"] is True
    assert (arguments["seed"], arguments["quantization"]) == (5, "fp8")
    assert not {"enable_lora", "engine_args"} & set(arguments)
    assert "max_model_len" not in arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_parallel": "2"}, "no option 'tensor_parallel'; it has: tensor_parallel_size"),
        ({"tensor_parallel_size": "two"}, "tensor_parallel_size=two"),
        ({"enforce_eager": "maybe"}, "not true or false"),
        ({"engine_args": "[1]"}, "not a JSON object"),
        ({"engine_args": "{"}, "engine_args={"),
    ],
)
def test_wrong_options_are_named(options: dict[str, str], words: str) -> None:
    """A typing error is an error, never ignored."""
    with pytest.raises(UnsupportedModelError) as caught:
        engine_args(load_request(**options))

    assert words in str(caught.value)


def test_adapters_switch_lora_on() -> None:
    """Where the operator names adapters, vLLM makes room for them."""
    request = msgspec.structs.replace(load_request(), adapters={})

    assert engine_args(request)["enable_lora"] is True
