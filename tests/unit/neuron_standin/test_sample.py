"""Invariants 8 to 14 and 16 to 18: `sample()`."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.neuron import NeuronHost, write_versions
from tests.helpers.neuron_calls import make_model

IDS = torch.tensor([[5, 6, 7, 8]])
NO_EOS = -1


@pytest.fixture
def model(llama: Path, neuron: NeuronHost) -> Any:
    """A model for one row of 64 positions and prompts of up to 32."""
    del neuron
    model = make_model(llama)
    model.to_neuron()
    return model


@pytest.fixture
def pair(llama: Path, neuron: NeuronHost) -> Any:
    """The same for two rows."""
    del neuron
    model = make_model(llama, batch_size=2)
    model.to_neuron()
    return model


class Streamer:
    """Keeps what it gets; may fail, or be untrue."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.pieces: list[torch.Tensor] = []
        self.ends = 0
        self._fails_at = fails_at

    def put(self, piece: torch.Tensor) -> None:
        """New tokens."""
        self.pieces.append(piece)
        if len(self.pieces) == self._fails_at:
            raise InterruptedError("enough")

    def end(self) -> None:
        """No more tokens."""
        self.ends += 1


class EmptyStreamer(Streamer):
    """Has a length, which is zero."""

    def __len__(self) -> int:
        return 0


class WholeStreamer(Streamer):
    """Asks for all of the text each time."""

    response_with_prefix = True


def test_the_length_counts_the_prompt(model: Any) -> None:
    """Invariant 8: prompt and new tokens together, in 64-bit integers."""
    text = model.sample(IDS.int(), 10, top_k=1, eos_token_override=NO_EOS)

    assert text.shape == (1, 10)
    assert text.dtype == torch.int64
    assert text[:, :4].equal(IDS)


def test_a_text_ends_with_its_eos(model: Any, pair: Any) -> None:
    """Invariant 8: the EOS stays, rows that end early are filled, and lists are known."""
    free = model.sample(IDS, 20, top_k=1, eos_token_override=NO_EOS)[0].tolist()
    eos = free[9]
    end = free.index(eos, 4) + 1

    assert model.sample(IDS, 20, top_k=1, eos_token_override=eos)[0].tolist() == free[:end]
    ended = model.sample(IDS, 20, top_k=1, eos_token_override=[510, eos])
    assert ended[0].tolist() == free[:end]

    rows = torch.cat((IDS, IDS + 40))
    zero = torch.zeros(2, dtype=torch.int64)
    text = pair.sample(rows, 20, start_ids=zero, top_k=1, eos_token_override=[510, eos])
    assert text[0].tolist() == free[:end] + [510] * (text.shape[1] - end)


def test_an_eos_of_none_is_an_error_after_the_prompt(model: Any, neuron: NeuronHost) -> None:
    """Invariant 8: TypeError, when the prompt has already run."""
    model.config.eos_token_id = None

    with pytest.raises(TypeError):
        model.sample(IDS, 10)

    assert neuron.count("forward", kind="prefill") == 1


def test_the_batch_must_be_the_compiled_one(model: Any) -> None:
    """Invariant 9: smaller and larger batches are refused, and only matrices are taken."""
    message = (
        "Model not compiled for batch_size : 2. Acceptable batch_size is one of the following [1]"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model.sample(IDS.repeat(2, 1), 10)
    with pytest.raises(ValueError, match="not enough values to unpack"):
        model.sample(IDS[0], 10)
    with pytest.raises(AttributeError):
        model.sample(IDS.tolist(), 10)
    with pytest.raises(KeyError):
        model.forward(IDS.repeat(2, 1), start_ids=torch.zeros(2))


def test_a_prompt_of_the_whole_length_comes_back(model: Any, neuron: NeuronHost) -> None:
    """Invariant 9: it runs, the streamer ends, and nothing is new."""
    streamer = Streamer()

    assert model.sample(IDS, 4, streamer=streamer).equal(IDS)
    assert model.sample(IDS, 2).equal(IDS)
    assert (streamer.pieces, streamer.ends) == ([], 1)
    assert neuron.count("forward", kind="prefill") == 2


@pytest.mark.parametrize("length", [None, 10.0])
def test_the_length_is_an_int(model: Any, length: Any) -> None:
    """Invariant 8: None and floats are TypeErrors."""
    with pytest.raises(TypeError):
        model.sample(IDS, length)


def test_the_end_of_the_cache_is_a_bare_stop_iteration(model: Any, neuron: NeuronHost) -> None:
    """Invariant 10: 64 positions are fine; 65 stream everything and then fail; never cut."""
    assert model.sample(IDS, 64, top_k=1, eos_token_override=NO_EOS).shape == (1, 64)

    streamer = Streamer()
    with pytest.raises(StopIteration) as caught:
        model.sample(IDS, 65, top_k=1, eos_token_override=NO_EOS, streamer=streamer)
    assert (str(caught.value), len(streamer.pieces), streamer.ends) == ("", 61, 0)

    with pytest.raises(StopIteration):
        model.sample(torch.full((1, 65), 9), 70)
    assert neuron.violations() == []


def test_before_0_13_one_position_more_succeeds(
    model: Any, neuron: NeuronHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants 10 and 16: the last token was not run then, and lists of EOS were not known."""
    library = write_versions(tmp_path / "library", {"transformers-neuronx": "0.12.313"})
    monkeypatch.syspath_prepend(library)

    assert model.sample(IDS, 65, top_k=1, eos_token_override=NO_EOS).shape == (1, 65)
    assert neuron.count("forward", kind="decode") == 60
    with pytest.raises(StopIteration):
        model.sample(IDS, 66, top_k=1, eos_token_override=NO_EOS)
    with pytest.raises(TypeError):
        model.sample(IDS, 10, eos_token_override=[1, 2])


@pytest.mark.parametrize("top_k", [0, -1, 1.0])
def test_top_k_is_checked_before_the_prompt(model: Any, neuron: NeuronHost, top_k: Any) -> None:
    """Invariant 11: a positive int or None."""
    with pytest.raises(ValueError, match=r"^top_k has to be a strictly positive int\.$"):
        model.sample(IDS, 10, top_k=top_k)

    assert neuron.count("forward") == 0
    model.sample(IDS, 6, top_k=None)
    model.sample(IDS, 6, top_k=100_000)


@pytest.mark.parametrize("top_p", [1, 0.0, 1.5])
def test_top_p_is_checked_before_the_prompt(model: Any, neuron: NeuronHost, top_p: Any) -> None:
    """Invariant 11: a float in (0, 1]."""
    message = "top_p has to be a strictly positive float that less than or equal to 1.0."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.sample(IDS, 10, top_p=top_p)

    assert neuron.count("forward") == 0


def test_temperature_is_checked_after_the_prompt(model: Any, neuron: NeuronHost) -> None:
    """Invariant 11: a positive Python float; NumPy's double counts as one."""
    import numpy as np

    for temperature in (0, 0.0, 1, np.float32(1.0)):
        with pytest.raises(
            ValueError, match=r"^temperature has to be a strictly positive float\.$"
        ):
            model.sample(IDS, 10, temperature=temperature)

    assert neuron.count("forward", kind="prefill") == 4
    model.sample(IDS, 6, temperature=np.float64(0.5))


def test_the_global_generator_of_torch_draws(model: Any) -> None:
    """Invariant 12: a seed there repeats a text; the order of filters is fixed."""
    from transformers_neuronx.sampling import filter_logits

    def text(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return model.sample(IDS, 40, top_k=None, eos_token_override=NO_EOS)[0].tolist()

    assert text(1) == text(1) != text(2)

    logits = torch.tensor([[0.0, 4.0, 2.0, 3.0]])
    probabilities, ids = filter_logits(logits, 2.0, 3, 0.7)
    expected = torch.tensor([2.0, 1.5]).softmax(0)
    assert ids.tolist() == [[1, 3, 2]]
    assert torch.allclose(probabilities, torch.tensor([[*expected, 0.0]]))


def test_repeated_ngrams_can_be_banned(model: Any) -> None:
    """`no_repeat_ngram_size` counts the prompt as well."""
    ids = torch.tensor([[5, 6, 5, 6, 5, 6]])
    text = model.sample(ids, 60, top_k=1, eos_token_override=NO_EOS, no_repeat_ngram_size=2)[
        0
    ].tolist()
    pairs = list(itertools.pairwise(text[5:]))

    assert len(set(pairs)) == len(pairs)


def test_a_streamer_gets_new_tokens_only(pair: Any) -> None:
    """Invariant 13: (batch, 1) a step, EOS included, and one end."""
    streamer, zero = Streamer(), torch.zeros(2, dtype=torch.int64)
    rows = torch.cat((IDS, IDS + 40))

    text = pair.sample(rows, 9, start_ids=zero, streamer=streamer, eos_token_override=NO_EOS)

    assert all(piece.shape == (2, 1) and piece.dtype == torch.int64 for piece in streamer.pieces)
    assert torch.cat(streamer.pieces, dim=1).equal(text[:, 4:])
    assert streamer.ends == 1


def test_a_streamer_may_ask_for_the_whole_text(model: Any) -> None:
    """Invariant 13: `response_with_prefix`."""
    streamer = WholeStreamer()

    text = model.sample(IDS, 9, streamer=streamer, eos_token_override=NO_EOS)

    assert [piece.shape[1] for piece in streamer.pieces] == [5, 6, 7, 8, 9]
    assert streamer.pieces[-1].equal(text)


def test_an_untrue_streamer_is_ignored(model: Any) -> None:
    """Invariant 13: `if streamer:`, so one of length zero gets nothing."""
    streamer = EmptyStreamer()

    model.sample(IDS, 9, streamer=streamer)

    assert (streamer.pieces, streamer.ends) == ([], 0)


def test_a_failing_streamer_ends_the_call_and_is_not_told(model: Any) -> None:
    """Invariant 13: the exception comes through, `end()` is not called, the model lives on."""
    streamer = Streamer(fails_at=3)

    with pytest.raises(InterruptedError, match="enough"):
        model.sample(IDS, 40, streamer=streamer, eos_token_override=NO_EOS)

    assert (len(streamer.pieces), streamer.ends) == (3, 0)
    assert model.sample(IDS, 9, eos_token_override=NO_EOS).shape == (1, 9)


def test_criteria_see_the_prompt_that_was_given(model: Any, neuron: NeuronHost) -> None:
    """Invariant 14: always the same ids; the token is there already, and is the last."""
    from transformers_neuronx.stopping_criteria import MaxTimeCriteria, StoppingCriteriaList

    seen: list[torch.Tensor] = []

    def after_three(input_ids: torch.Tensor, probs: torch.Tensor) -> bool:
        assert probs.sum().item() == pytest.approx(1.0)
        seen.append(input_ids)
        return len(seen) == 3

    text = model.sample(IDS, 40, stopping_criteria_list=after_three, eos_token_override=NO_EOS)
    assert text.shape == (1, 7)
    assert all(ids is IDS for ids in seen)
    assert neuron.count("forward", kind="decode") == 2

    at_once = StoppingCriteriaList([MaxTimeCriteria(-1.0)])
    assert model.sample(IDS, 40, stopping_criteria_list=at_once).shape == (1, 5)
    with pytest.raises(TypeError, match="not callable"):
        model.sample(IDS, 40, stopping_criteria_list=[after_three])


def test_criteria_of_transformers_fail_for_several_rows(model: Any, pair: Any) -> None:
    """Invariant 14: their list answers for each row, and two answers are no truth value."""
    from transformers import StoppingCriteriaList
    from transformers.generation.stopping_criteria import MaxTimeCriteria

    late = StoppingCriteriaList([MaxTimeCriteria(0.0, initial_timestamp=1.0)])
    assert model.sample(IDS, 40, stopping_criteria_list=late).shape == (1, 5)

    zero = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="ambiguous"):
        pair.sample(IDS.repeat(2, 1), 40, start_ids=zero, stopping_criteria_list=late)


def test_streamers_of_transformers_lose_a_token_or_a_row(
    llama: Path, model: Any, pair: Any
) -> None:
    """Invariant 13: `skip_prompt` skips the first new token, because no prompt is put."""
    from transformers import AutoTokenizer, TextIteratorStreamer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    arguments = {"top_k": 1, "eos_token_override": NO_EOS}
    text = model.sample(IDS, 12, **arguments)[0]
    for skip_prompt, first in ((False, 4), (True, 5)):
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=skip_prompt, timeout=5)
        model.sample(IDS, 12, streamer=streamer, **arguments)
        assert "".join(streamer) == tokenizer.decode(text[first:])

    zero = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="batch size 1"):
        pair.sample(IDS.repeat(2, 1), 12, start_ids=zero, streamer=TextIteratorStreamer(tokenizer))


@pytest.mark.parametrize(
    ("width", "length", "prefills", "decodes"),
    [
        (4, 10, 1, 6),
        (32, 40, 1, 8),
        (40, 44, 1, 8 + 4),
        (1, 5, 0, 1 + 4),
    ],
)
def test_every_forward_is_counted(
    model: Any, neuron: NeuronHost, width: int, length: int, prefills: int, decodes: int
) -> None:
    """Invariant 16: one a token beyond the bucket, and 0.13's extra one after the last token."""
    ids = torch.arange(100, 100 + width)[None]

    model.sample(ids, length, top_k=1, eos_token_override=NO_EOS)

    assert neuron.count("forward", kind="prefill") == prefills
    assert neuron.count("forward", kind="decode") == decodes


def test_without_context_graphs_a_prompt_goes_token_by_token(
    llama: Path, model: Any, neuron: NeuronHost
) -> None:
    """Invariant 16: the text is the same."""
    slow = make_model(llama, context_length_estimate=0)
    slow.to_neuron()
    expected = model.sample(IDS, 12, top_k=1)
    before = neuron.count("forward", kind="decode")

    assert slow.sample(IDS, 12, top_k=1).equal(expected)
    assert neuron.count("forward", kind="prefill") == 1
    assert neuron.count("forward", kind="decode") == before + 4 + 8


@pytest.mark.parametrize("overlapping", ["sample", "forward", "to_neuron"])
def test_overlapping_calls_fail(model: Any, neuron: NeuronHost, overlapping: str) -> None:
    """Invariant 17: the library would corrupt its cache in silence."""
    calls: dict[str, Callable[[], Any]] = {
        "sample": lambda: model.sample(IDS, 8),
        "forward": lambda: model.forward(IDS),
        "to_neuron": model.to_neuron,
    }
    errors: list[Exception] = []

    class Intruder(Streamer):
        def put(self, piece: torch.Tensor) -> None:
            def intrude() -> None:
                try:
                    calls[overlapping]()
                except RuntimeError as error:
                    errors.append(error)

            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()

    model.sample(IDS, 5, streamer=Intruder())

    message = f"{overlapping}() overlaps another call on the same model"
    assert [str(error) for error in errors] == [message]
    assert neuron.accept_violation("overlaps") == [message]


@pytest.mark.parametrize(
    "name", ["max_new_tokens", "seed", "do_sample", "stop", "repetition_penalty", "logprobs"]
)
def test_what_sample_does_not_know_is_written_down(
    model: Any, neuron: NeuronHost, name: str
) -> None:
    """Invariant 18: it has no effect, and fails the test."""
    text = model.sample(IDS, 10, top_k=1, **{name: 3})

    assert text.equal(model.sample(IDS, 10, top_k=1))
    assert neuron.accept_violation("sample()") == [
        f"sample(): keyword argument {name!r} has no effect"
    ]


def test_tokens_outside_of_the_vocabulary_are_refused(llama: Path, model: Any) -> None:
    """IndexError from the CPU's embedding, an error of the runtime from the device's."""
    from transformers_neuronx import NeuronConfig

    with pytest.raises(IndexError):
        model.sample(IDS + 510, 10)

    on_device = make_model(llama, neuron_config=NeuronConfig(on_device_embedding=True))
    on_device.to_neuron()
    with pytest.raises(RuntimeError, match="1006"):
        on_device.sample(IDS + 510, 10)


def test_generation_on_the_device_ignores_the_arguments(llama: Path, model: Any) -> None:
    """What was compiled counts: greedy here, whatever the call says."""
    from transformers_neuronx import GenerationConfig, NeuronConfig

    config = NeuronConfig(on_device_generation=GenerationConfig(do_sample=False))
    compiled = make_model(llama, neuron_config=config)
    compiled.to_neuron()

    text = compiled.sample(IDS, 30, top_k=7, temperature=0.0)

    assert text.equal(model.sample(IDS, 30, top_k=1, eos_token_override=NO_EOS))
