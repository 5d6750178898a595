"""How texts of several requests become batches, over a channel in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tests.helpers.scripted_channel import ScriptedChannel
from tgwui_k8s.contract import Capabilities, EmbeddingRequest, ModelInfo
from tgwui_k8s.engine.embedding_loop import EmbeddingLoop
from tgwui_k8s.engine.messages import (
    AbortRequest,
    Embed,
    Embedded,
    EngineSettings,
    Rejected,
    StepOutput,
)

INFO = ModelInfo(
    loader="toy",
    architecture="Toy",
    dtype="float32",
    device="cpu",
    max_model_len=100,
    vocab_size=100,
    eos_token_ids=(),
    capabilities=Capabilities(generation=False, embeddings=True),
    embedding_sizes=(2,),
)


class ToyEmbedder:
    """The vector of a text is its length and its first token."""

    info = INFO

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_closed = False

    def embed(self, token_id_lists: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        self.batches.append([len(one) for one in token_id_lists])
        return np.array([[len(one), one[0]] for one in token_id_lists], np.float32)

    def warm_up(self) -> None:
        """Nothing to warm."""

    def close(self) -> None:
        self.is_closed = True


class EmbeddingChannel(ScriptedChannel):
    """A channel to an embedding model."""

    def answers(self) -> dict[str, list[list[float]]]:
        """The vectors per request."""
        return {
            message.request_id: np.frombuffer(message.vectors, np.float32).reshape(-1, 2).tolist()
            for message in self.sent
            if isinstance(message, Embedded)
        }


def embed(name: str, *lengths: int) -> Embed:
    lists = tuple((number + 1,) * length for number, length in enumerate(lengths))
    return Embed(EmbeddingRequest(request_id=name, token_id_lists=lists))


def run(channel: EmbeddingChannel, *, max_waiting: int = 8, max_seqs: int = 8) -> ToyEmbedder:
    """Serve until the script ends, with a budget of 20 tokens."""
    embedder = ToyEmbedder()
    settings = EngineSettings(
        max_num_seqs=max_seqs, max_num_batched_tokens=20, max_waiting_requests=max_waiting
    )
    EmbeddingLoop(embedder, settings).run(channel)  # type: ignore[arg-type]
    assert embedder.is_closed
    return embedder


def test_texts_of_requests_share_batches() -> None:
    """Padded to the longest, as many as fit; each request gets its own vectors in order."""
    channel = EmbeddingChannel([embed("a", 3, 5), embed("b", 2, 9, 1)])
    embedder = run(channel)

    assert embedder.batches == [[3, 2, 5], [9, 1]]
    assert channel.answers() == {"a": [[3, 1], [5, 2]], "b": [[2, 1], [9, 2], [1, 3]]}


def test_a_request_of_many_texts_delays_nobody() -> None:
    """Batches take a text of every request in turn; vectors stay in order."""
    channel = EmbeddingChannel([embed("many", *range(1, 8))], [embed("one", 2)])
    embedder = run(channel, max_seqs=2)

    assert embedder.batches == [[1, 2], [3, 2], [4, 5], [6, 7]]
    assert list(channel.answers()) == ["one", "many"]
    assert channel.answers()["many"] == [[length, length] for length in range(1, 8)]


def test_text_over_the_budget_goes_alone() -> None:
    """It cannot be cut, so the budget gives way."""
    channel = EmbeddingChannel([embed("a", 30, 1)])

    assert run(channel).batches == [[30], [1]]


def test_batch_has_at_most_max_num_seqs_texts() -> None:
    """However short they are."""
    channel = EmbeddingChannel([embed("a", 1, 1, 1, 1, 1)])

    assert run(channel, max_seqs=2).batches == [[1, 1], [1, 1], [1]]


def test_aborted_request_is_computed_no_further() -> None:
    """What it still had waiting is forgotten, others go on, and nobody hears of it again."""
    channel = EmbeddingChannel([embed("a", 20, 20), embed("b", 4)], [AbortRequest("a")])

    assert run(channel).batches == [[20], [4]]
    assert channel.answers().keys() == {"b"}


def test_full_queue_rejects() -> None:
    """The request beyond the limit is refused at once; the others are served."""
    channel = EmbeddingChannel([embed("a", 1), embed("b", 1)])
    run(channel, max_waiting=1)

    assert [m.request_id for m in channel.sent if isinstance(m, Rejected)] == ["b"]
    assert channel.answers().keys() == {"a"}


def test_figures_count_steps_and_tokens() -> None:
    """The last step's figures: all computed, nothing left."""
    channel = EmbeddingChannel([embed("a", 3, 5)])
    run(channel)

    stats = [message.stats for message in channel.sent if isinstance(message, StepOutput)][-1]
    assert (stats.num_steps, stats.prompt_tokens, stats.num_requests_waiting) == (1, 8, 0)
