"""Attention over a paged KV cache, for a mixed batch without padding.

The seam between a model and its KV cache: the models of Transformers call `attend` once per layer
(see `transformers_attention`), with all tokens of the step in one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tgwui_k8s.contract import Batch
from tgwui_k8s.runtime.attention import Scoring, attend_chunk, attend_decodes
from tgwui_k8s.runtime.kv_tensors import KVTensors
from tgwui_k8s.runtime.model_step import ModelStep
from tgwui_k8s.runtime.step_plan import DecodeBucket, GroupPlan, StepPlanner


class PagedAttention:
    """Writes new keys and values into their slots and attends through the block tables.

    One per runner. `begin_step` plans a batch; `attend` is then called once by every layer.
    """

    def __init__(self, kv: KVTensors, windows: Sequence[int | None], block_size: int) -> None:
        self._kv = kv
        self._planners = [
            StepPlanner(group, window, block_size, kv.dtype, kv.device)
            for group, window in enumerate(windows)
        ]
        self._plans: list[GroupPlan] = []

    def begin_step(self, batch: Batch) -> ModelStep:
        """See `PagedBackend.begin_step`."""
        self._plans = [planner.plan(batch) for planner in self._planners]
        return ModelStep.of(batch, self, self._kv.device)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: Mapping[str, Any],
    ) -> torch.Tensor:
        """Attention output [num_tokens, num_heads, value_dim] in the queries' type.

        `query` is [num_tokens, num_heads, key_dim]; `key` and `value` have num_kv_heads heads.
        `options` are Transformers' arguments for an attention function: `scaling`, `softcap` and
        `s_aux` (attention sinks) are honoured; the window is the KV group's.
        """
        dtype = query.dtype
        query, key, value = (tensor.to(self._kv.dtype) for tensor in (query, key, value))
        scoring = Scoring.from_options(options, query.shape[2])
        plan = self._plans[self._kv.group_of_layer[layer]]
        self._kv.write(layer, plan.slots, key, value)
        if len(plan.stale_slots):
            self._kv.clear(layer, plan.stale_slots)
        if plan.is_one_bucket:
            return self._decode(layer, plan.decodes[0], query, scoring).to(dtype)
        output = torch.empty(*query.shape[:2], value.shape[2], dtype=dtype, device=query.device)
        for bucket in plan.decodes:
            output[bucket.rows] = self._decode(layer, bucket, query[bucket.rows], scoring).to(dtype)
        for chunk in plan.chunks:
            tokens = slice(chunk.first_token, chunk.first_token + chunk.num_tokens)
            keys, values = key[tokens], value[tokens]
            if chunk.blocks is not None:
                keys, values = self._kv.gather(layer, chunk.blocks)
                keys, values = keys[: chunk.num_positions], values[: chunk.num_positions]
            output[tokens] = attend_chunk(query[tokens], keys, values, chunk.mask, scoring)
        return output

    def _decode(
        self, layer: int, bucket: DecodeBucket, query: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        keys, values = self._kv.gather(layer, bucket.blocks)
        visible = slice(bucket.first, bucket.last)
        keys = keys.unflatten(0, (bucket.num_rows, -1))[:, visible]
        values = values.unflatten(0, (bucket.num_rows, -1))[:, visible]
        return attend_decodes(query, keys, values, bucket.mask, scoring)
