"""OpenVINO GenAI's continuous batching; `MODEL/openvino/FORMAT` is made by `compare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import openvino_genai


class Engine:
    """The variant is the export's weight format: `fp16` or `int8`."""

    def __init__(self, model: Path, variant: str) -> None:
        self._folder = model / "openvino" / variant
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 1
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = 512
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(self._folder), scheduler, "CPU"
        )

    def generate(self, prompts: list[list[int]], num_new: int) -> None:
        """See `child.Engine`."""
        config = openvino_genai.GenerationConfig(
            max_new_tokens=num_new, min_new_tokens=num_new, ignore_eos=True, do_sample=False
        )
        inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        for answer in self._pipeline.generate(inputs, [config] * len(prompts)):
            assert len(answer.m_generation_ids[0]) == num_new

    def logits(self, token_ids: list[int]) -> npt.NDArray[np.float32]:
        """See `child.Engine`: the model outside the pipeline, which gives none."""
        model = openvino.Core().compile_model(self._folder / "openvino_model.xml", "CPU")
        length = len(token_ids)
        inputs = {
            "input_ids": np.array([token_ids], np.int64),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        wanted = {name for port in model.inputs for name in port.names}
        request = model.create_infer_request()
        found = request.infer({name: value for name, value in inputs.items() if name in wanted})
        logits: npt.NDArray[np.float32] = next(iter(found.values()))[0]
        return logits
