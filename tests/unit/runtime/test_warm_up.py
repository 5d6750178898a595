"""What a runner computes before its first request."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from loaders.native import NativeRunner
from tests.helpers.toy_runner import ToyRunner
from tgwui_k8s.contract import Batch


class RecordingDecoder:
    """Notes at which positions it was asked for what."""

    def __init__(self) -> None:
        self.positions: list[list[int]] = []

    def step(self, batch: Batch) -> np.ndarray:
        for part in batch.sequences:
            self.positions.append(list(range(part.start, part.start + len(part.token_ids))))
        return np.zeros((batch.num_logits, 1), np.float32)


@pytest.mark.parametrize(
    ("max_model_len", "expected"),
    [(1, [[0]]), (2, [[0, 1]]), (3, [[0, 1], [2]]), (256, [[0, 1], [2]])],
)
def test_the_native_decoder_is_asked_for_no_position_that_it_has_no_angles_of(
    max_model_len: int, expected: list[list[int]]
) -> None:
    """A prompt and a token, as far as the context goes."""
    toy, decoder = ToyRunner(), RecordingDecoder()
    info = replace(toy.info, max_model_len=max_model_len)
    NativeRunner(decoder, info, toy.layout).warm_up()  # type: ignore[arg-type]
    assert decoder.positions == expected
