"""This engine, by its Python API: the same core as the server's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tgwui_k8s.contract import Batch, ScheduledSequence
from tgwui_k8s.llm import LLM
from tgwui_k8s.sampling import SamplingParams


class Engine:
    """`LLM` with its defaults; the variant is a list of settings such as `dtype=float32`."""

    def __init__(self, model: Path, variant: str = "") -> None:
        settings = dict(pair.split("=", 1) for pair in variant.split(",") if pair)
        options = [f"{key[7:]}={settings.pop(key)}" for key in [*settings] if key[:7] == "option."]
        if options:
            settings["loader_option"] = options
        self._llm = LLM(str(model.resolve()), **settings)

    def generate(self, prompts: list[list[int]], num_new: int) -> None:
        """See `child.Engine`."""
        params = SamplingParams(max_tokens=num_new, temperature=0.0, ignore_eos=True)
        for completion in self._llm.generate(prompts, params):
            assert len(completion.token_ids) == num_new

    def logits(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """See `child.Engine`."""
        runner = self._llm.core.runner
        num_blocks = -(-len(token_ids) // runner.layout.block_size)
        tables = tuple(list(range(num_blocks)) for _ in runner.layout.groups)
        part = ScheduledSequence(0, 0, token_ids, tables, len(token_ids))
        logits = runner.execute(Batch([part], len(token_ids)))
        return np.asarray(logits.float().cpu() if hasattr(logits, "cpu") else logits)
