"""Request fields, presets and defaults become `SamplingParams` and engine requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.api_server import encode, make_backend, make_state, tiny_tokenizer
from tests.helpers.fake_backend import fake_info
from tgwui_k8s.api.completions import plan_completion
from tgwui_k8s.api.fill_in_middle import with_suffix
from tgwui_k8s.api.sampling_fields import DEFAULT_SEQUENCE_BREAKERS, merged_samplers
from tgwui_k8s.api.schemas.completions import CompletionRequest
from tgwui_k8s.api.schemas.sampling import SamplerName
from tgwui_k8s.contract import Capabilities, GenerationRequest
from tgwui_k8s.errors import ContextLengthError, InvalidRequestError, UnsupportedParameterError
from tgwui_k8s.presets import preset_names
from tgwui_k8s.sampling import SAMPLER_ORDER, SamplingParams


def planned(
    *, preset_dir: Path | None = None, capabilities: Capabilities | None = None, **fields: Any
) -> list[GenerationRequest]:
    """The engine requests of a completion."""
    request = CompletionRequest.model_validate({"prompt": "Hi", **fields})
    backend = make_backend(info=fake_info(capabilities=capabilities or Capabilities()))
    directory = None if preset_dir is None else str(preset_dir)
    state = make_state(backend, preset_dir=directory)
    return list(plan_completion(request, state, 0.0).requests)


def params_of(**fields: Any) -> SamplingParams:
    """The sampling parameters of a completion."""
    return planned(**fields)[0].params


def test_defaults_are_neutral() -> None:
    """A bare request samples from the model's own distribution."""
    assert params_of(seed=7) == SamplingParams(max_tokens=16, seed=7)


def test_explicit_field_beats_the_preset(tmp_path: Path) -> None:
    """The preset fills what the request leaves open, null included."""
    (tmp_path / "mine.yaml").write_text("temperature: 0.3\ntop_k: 9\nmin_p: 0.2\n")

    params = params_of(preset="mine", preset_dir=tmp_path, temperature=1, min_p=None)

    assert (params.temperature, params.top_k, params.min_p) == (1.0, 9, 0.2)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_that_comes_along_can_be_honoured(name: str) -> None:
    """Presets hold nothing that a request could not say."""
    request = CompletionRequest.model_validate({"prompt": "Hi", "preset": name})

    assert merged_samplers(request, None)
    assert params_of(preset=name).max_tokens == 16


@pytest.mark.parametrize(
    "content", ["temperature: hot\n", "temperature: 9\n", "penalty_alpha: 0.6\n", "colour: red\n"]
)
def test_preset_that_cannot_be_honoured_is_refused(tmp_path: Path, content: str) -> None:
    """Nothing in a preset is ignored either; the message names its field."""
    (tmp_path / "mine.yaml").write_text(content)

    with pytest.raises(InvalidRequestError, match=content.partition(":")[0]) as caught:
        params_of(preset="mine", preset_dir=tmp_path)

    assert caught.value.param == "preset"


def test_no_sampling_is_greedy() -> None:
    """do_sample false beats the temperature, as in text-generation-webui."""
    assert params_of(do_sample=False, temperature=1.5).is_greedy
    assert not params_of(do_sample=True).is_greedy


def test_top_k_minus_one_is_off() -> None:
    """Some clients spell it that way."""
    assert params_of(top_k=-1).top_k == 0


def test_sampler_priority_may_name_a_sampler_that_is_always_off() -> None:
    """text-generation-webui's own list has adaptive_p; names count once."""
    params = params_of(sampler_priority="top_k, adaptive_p\nmin_p,top_k")

    assert params.sampler_priority == ("top_k", "min_p")


def test_sampler_names_are_those_of_the_sampler() -> None:
    """The schema accepts each sampler there is."""
    assert {*SamplerName.__args__} == {*SAMPLER_ORDER, "adaptive_p"}  # type: ignore[attr-defined]


def test_dry_has_breakers_of_its_own() -> None:
    """They are looked up only where DRY is on."""
    tokenizer = tiny_tokenizer()

    assert params_of().dry_sequence_breakers == ()
    assert params_of(dry_multiplier=1).dry_sequence_breakers == tokenizer.sequence_breaker_ids(
        DEFAULT_SEQUENCE_BREAKERS
    )
    one = params_of(dry_multiplier=1, dry_sequence_breakers='["!"]')
    assert one.dry_sequence_breakers == tokenizer.sequence_breaker_ids(["!"])


@pytest.mark.parametrize(("seed", "expected"), [(5, 5), (0, 0), (-2, 2**64 - 2)])
def test_seed_is_64_bits(seed: int, expected: int) -> None:
    """Negative seeds are seeds, too, but for -1."""
    assert params_of(seed=seed).seed == expected


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_seed_every_prompt_has_noise_of_its_own(seed: int | None) -> None:
    """Equal prompts without a seed differ; with one they agree."""
    fresh = {request.params.seed for request in planned(prompt=["a", "a"], seed=seed)}
    fixed = {request.params.seed for request in planned(prompt=["a", "a"], seed=3)}

    assert len(fresh) == 2
    assert fixed == {3}


def test_each_prompt_has_the_room_it_leaves() -> None:
    """With auto_max_new_tokens lengths differ by prompt."""
    short, long = planned(prompt=[[5] * 10, [5] * 20], auto_max_new_tokens=True, max_tokens=3)

    assert (short.params.max_tokens, long.params.max_tokens) == (190, 180)


def test_guidance_without_a_negative_prompt_leads_away_from_no_context() -> None:
    """As in Transformers: the last token of the prompt stands alone."""
    (unguided,) = planned(negative_prompt="rude")
    (guided,) = planned(prompt=[5, 6, 7], guidance_scale=2)
    (named,) = planned(prompt=[5, 6, 7], guidance_scale=2, negative_prompt="rude")

    assert unguided.negative_prompt_token_ids == ()
    assert guided.negative_prompt_token_ids == (7,)
    assert named.negative_prompt_token_ids == tuple(tiny_tokenizer().encode("rude"))


def test_negative_prompt_must_fit_the_context_too() -> None:
    """Its lane runs as long as the prompt's."""
    with pytest.raises(ContextLengthError) as caught:
        planned(guidance_scale=2, negative_prompt="x " * 150)

    assert caught.value.param == "negative_prompt"


@pytest.mark.parametrize(
    ("lacking", "fields", "param"),
    [
        ("guidance", {"guidance_scale": 2}, "guidance_scale"),
        ("logprobs", {"logprobs": 0}, "logprobs"),
        ("prompt_logprobs", {"logprobs": 0, "echo": True}, "echo"),
        ("resume", {"resume_token_ids": [[5]]}, "resume_token_ids"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(
    lacking: str, fields: dict[str, Any], param: str
) -> None:
    """Capabilities are data; the request that needs a missing one is a 400."""
    with pytest.raises(UnsupportedParameterError) as caught:
        planned(capabilities=Capabilities(**{lacking: False}), **fields)

    assert caught.value.param == param


def test_resumed_tokens_go_to_their_prompts() -> None:
    """One list per choice, in the order of the choices over all prompts."""
    first, second = planned(prompt=["a", "b"], n=2, resume_token_ids=[[5], [6], [], [7]])

    assert first.resume_token_ids == ((5,), (6,))
    assert second.resume_token_ids == ((), (7,))


def test_truncated_prompt_keeps_its_end() -> None:
    """The last tokens are what a completion goes on from."""
    (request,) = planned(prompt=[5, 6, 7, 8], truncation_length=2)

    assert request.prompt_token_ids == (7, 8)


class FillingTokenizer:
    """Knows one of the families of fill-in-the-middle tokens."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] if text in ("<fim_prefix>", "<fim_suffix>", "<fim_middle>") else [2, 3]


def test_suffix_is_put_where_the_model_expects_it() -> None:
    """The prompt ends where the middle is to be written."""
    text = with_suffix("a = ", "\nb", FillingTokenizer())  # type: ignore[arg-type]

    assert text == "<fim_prefix>a = <fim_suffix>\nb<fim_middle>"


def test_suffix_without_tokens_for_it_is_refused() -> None:
    """Appending it verbatim would be a lie."""
    with pytest.raises(UnsupportedParameterError):
        with_suffix("a", "b", tiny_tokenizer())


def test_prompt_tokens_are_counted_with_the_tokenizers_own_bos() -> None:
    """Unless the request says otherwise."""
    assert planned()[0].prompt_token_ids == (0, *encode("Hi"))
    assert planned(add_bos_token=False)[0].prompt_token_ids == tuple(encode("Hi"))
