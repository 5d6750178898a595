"""Paged attention in Triton: writing keys and values, attending to them, adding up spans.

What each program does is read from the items and rows of `step_numbers`; nothing depends on the
host but the size of the grid, so the kernels can be recorded in CUDA graphs. Products are computed
on tensor cores in the cache's type, everything else in float32.

    queries [tokens, heads, key dim]     cache [slots, kv heads, dim], slot = block * size + offset
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgwui_k8s.runtime.cuda import step_numbers

ITEM = tl.constexpr(step_numbers.ITEM)
ROW = tl.constexpr(step_numbers.ROW)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def write(  # noqa: PLR0913 - a kernel's arguments are its interface
    key_pointer,
    value_pointer,
    keys_pointer,
    values_pointer,
    slots_pointer,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    NUM_KV_HEADS: tl.constexpr,  # noqa: N803 - Triton's custom for constants
    KEY_DIM: tl.constexpr,  # noqa: N803
    KEY_WIDTH: tl.constexpr,  # noqa: N803
    VALUE_DIM: tl.constexpr,  # noqa: N803
    VALUE_WIDTH: tl.constexpr,  # noqa: N803
    HEADS: tl.constexpr,  # noqa: N803
):
    """One token's keys and values, all heads, to its slot."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_pointer + token).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    is_written = heads < tl.where(slot < 0, 0, NUM_KV_HEADS)
    dims = tl.arange(0, KEY_WIDTH)[None, :]
    mask = is_written & (dims < KEY_DIM)
    at = token * key_token_stride + heads * key_head_stride + dims
    key = tl.load(key_pointer + at, mask=mask)
    at = (slot * NUM_KV_HEADS + heads) * KEY_DIM + dims
    tl.store(keys_pointer + at, key, mask=mask)
    dims = tl.arange(0, VALUE_WIDTH)[None, :]
    mask = is_written & (dims < VALUE_DIM)
    at = token * value_token_stride + heads * value_head_stride + dims
    value = tl.load(value_pointer + at, mask=mask)
    at = (slot * NUM_KV_HEADS + heads) * VALUE_DIM + dims
    tl.store(values_pointer + at, value, mask=mask)


@triton.jit
def attend(  # noqa: PLR0913, PLR0915 - nor are there functions to call
    query_pointer,
    keys_pointer,
    values_pointer,
    sinks_pointer,
    items_pointer,
    blocks_pointer,
    output_pointer,
    tops_pointer,
    query_token_stride,
    query_head_stride,
    scaling,
    softcap,
    NUM_KV_HEADS: tl.constexpr,  # noqa: N803
    KEY_DIM: tl.constexpr,  # noqa: N803
    KEY_WIDTH: tl.constexpr,  # noqa: N803
    VALUE_DIM: tl.constexpr,  # noqa: N803
    VALUE_WIDTH: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    BLOCK_SIZE: tl.constexpr,  # noqa: N803
    WINDOW: tl.constexpr,  # noqa: N803
    HAS_SOFTCAP: tl.constexpr,  # noqa: N803
    HAS_SINKS: tl.constexpr,  # noqa: N803
    IS_SPAN: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    POSITIONS: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
):
    """One item under one key head, softmax and sums in one pass (Milakov, Gimelshein 2018).

    Weights are powers of two: scores are multiplied by log2(e). A span leaves its sums, its
    largest score and its total weight to `merge`; anything else is divided and stored.
    """
    item = tl.program_id(0)
    kv_head = tl.program_id(1)
    token = tl.load(items_pointer + item * ITEM)
    num_queries = tl.load(items_pointer + item * ITEM + 1)
    position = tl.load(items_pointer + item * ITEM + 2)
    first = tl.load(items_pointer + item * ITEM + 3)
    last = tl.load(items_pointer + item * ITEM + 4)
    table = tl.load(items_pointer + item * ITEM + 5)

    rows = tl.arange(0, ROWS)
    queries = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    is_row = queries < num_queries
    positions = position + queries
    tokens = (token + queries).to(tl.int64)
    key_dims = tl.arange(0, KEY_WIDTH)
    value_dims = tl.arange(0, VALUE_WIDTH)
    query = tl.load(
        query_pointer
        + tokens[:, None] * query_token_stride
        + heads[:, None] * query_head_stride
        + key_dims[None, :],
        mask=is_row[:, None] & (key_dims[None, :] < KEY_DIM),
        other=0.0,
    )

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, VALUE_WIDTH), tl.float32)
    for start in range(first, last, POSITIONS):
        seen = start + tl.arange(0, POSITIONS)
        is_seen = seen < last
        blocks = tl.load(blocks_pointer + table + seen // BLOCK_SIZE, mask=is_seen, other=0)
        slots = blocks.to(tl.int64) * BLOCK_SIZE + seen % BLOCK_SIZE
        keys = tl.load(
            keys_pointer + (slots[None, :] * NUM_KV_HEADS + kv_head) * KEY_DIM + key_dims[:, None],
            mask=is_seen[None, :] & (key_dims[:, None] < KEY_DIM),
            other=0.0,
        )
        values = tl.load(
            values_pointer
            + (slots[:, None] * NUM_KV_HEADS + kv_head) * VALUE_DIM
            + value_dims[None, :],
            mask=is_seen[:, None] & (value_dims[None, :] < VALUE_DIM),
            other=0.0,
        )
        scores = tl.dot(query, keys, input_precision=PRECISION) * scaling
        if HAS_SOFTCAP:
            # tanh(x) = 1 - 2 / (1 + exp(2x)), which stays finite whatever x is.
            scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp(scores * (2.0 / softcap))))
        visible = is_seen[None, :] & (seen[None, :] <= positions[:, None])
        if WINDOW > 0:
            visible = visible & (seen[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(visible, scores * LOG2_E, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen nothing yet stays at -inf, of which no difference can be taken.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None]
        sums = tl.dot(weights.to(values.dtype), values, sums, input_precision=PRECISION)
        top = new_top

    is_stored = is_row[:, None] & (value_dims[None, :] < VALUE_DIM)
    if IS_SPAN:
        places = (item.to(tl.int64) * NUM_KV_HEADS + kv_head) * ROWS + rows
        at = places[:, None] * VALUE_DIM + value_dims[None, :]
        tl.store(output_pointer + at, sums, mask=is_stored)
        tl.store(tops_pointer + places * 2, top, mask=is_row)
        tl.store(tops_pointer + places * 2 + 1, total, mask=is_row)
    else:
        if HAS_SINKS:
            sinks = tl.load(sinks_pointer + heads, mask=is_row, other=0.0).to(tl.float32)
            sinks = sinks * LOG2_E
            new_top = tl.maximum(top, sinks)
            shrink = tl.exp2(top - new_top)
            total = total * shrink + tl.exp2(sinks - new_top)
            sums = sums * shrink[:, None]
        result = sums / tl.where(is_row, total, 1.0)[:, None]
        at = (tokens[:, None] * (NUM_KV_HEADS * GROUP) + heads[:, None]) * VALUE_DIM
        at = at + value_dims[None, :]
        tl.store(output_pointer + at, result.to(output_pointer.dtype.element_ty), mask=is_stored)


@triton.jit
def merge(  # noqa: PLR0913
    sums_pointer,
    tops_pointer,
    sinks_pointer,
    rows_pointer,
    output_pointer,
    NUM_KV_HEADS: tl.constexpr,  # noqa: N803
    VALUE_DIM: tl.constexpr,  # noqa: N803
    VALUE_WIDTH: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    HAS_SINKS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    SPANS: tl.constexpr,  # noqa: N803
):
    """One query under one head: its spans, each weighed by its largest score. None give zeros.

    Every lane adds up one span in `SPANS`; the lanes are added at the end.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.load(rows_pointer + row * ROW).to(tl.int64)
    first = tl.load(rows_pointer + row * ROW + 1).to(tl.int64)
    number = tl.load(rows_pointer + row * ROW + 2)
    lanes = tl.arange(0, SPANS)
    dims = tl.arange(0, VALUE_WIDTH)
    tops = tl.full((SPANS,), float("-inf"), tl.float32)
    totals = tl.zeros((SPANS,), tl.float32)
    sums = tl.zeros((SPANS, VALUE_WIDTH), tl.float32)
    for start in range(0, number, SPANS):
        spans = start + lanes
        is_span = spans < number
        places = ((first + spans) * NUM_KV_HEADS + head // GROUP) * ROWS + head % GROUP
        top = tl.load(tops_pointer + places * 2, mask=is_span, other=float("-inf"))
        total = tl.load(tops_pointer + places * 2 + 1, mask=is_span, other=0.0)
        part = tl.load(
            sums_pointer + places[:, None] * VALUE_DIM + dims[None, :],
            mask=is_span[:, None] & (dims[None, :] < VALUE_DIM),
            other=0.0,
        )
        new_tops = tl.maximum(tops, top)
        base = tl.where(new_tops == float("-inf"), 0.0, new_tops)
        shrink = tl.exp2(tops - base)
        scale = tl.exp2(top - base)
        totals = totals * shrink + total * scale
        sums = sums * shrink[:, None] + part * scale[:, None]
        tops = new_tops
    best = tl.max(tops, 0)
    sink = float("-inf")
    if HAS_SINKS:
        sink = tl.load(sinks_pointer + head).to(tl.float32) * LOG2_E
        best = tl.maximum(best, sink)
    base = tl.where(best == float("-inf"), 0.0, best)
    shares = tl.exp2(tops - base)
    weight = tl.sum(totals * shares, 0)
    if HAS_SINKS:
        weight = weight + tl.exp2(sink - base)
    result = tl.sum(sums * shares[:, None], 0) / tl.where(weight == 0.0, 1.0, weight)
    at = (token * (NUM_KV_HEADS * GROUP) + head) * VALUE_DIM + dims
    tl.store(output_pointer + at, result.to(output_pointer.dtype.element_ty), mask=dims < VALUE_DIM)
