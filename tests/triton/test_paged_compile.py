"""The attention kernels through Triton's compiler, for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton, of make test-triton")

COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tgwui_k8s.runtime.cuda import kernels
from tgwui_k8s.runtime.cuda.tiling import Tiling, positions_per_pass
from tgwui_k8s.runtime.kv_layout import LayerShape

architecture, dtype = int(sys.argv[1]), sys.argv[2]


def compiled(kernel, pointers, integers, floats, constants, **options):
    signature = {f"{name}_pointer": f"*{kind}" for name, kind in pointers.items()}
    signature |= dict.fromkeys(integers, "i32") | dict.fromkeys(floats, "fp32")
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [i for i, name in enumerate(signature) if name not in {*floats, *constants}]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", architecture, 32)
    result = triton.compile(source, target=target, options=options)
    return {
        "shared": result.metadata.shared,
        "uses tensor cores": "mma" in result.asm["ptx"],
        "loads wide": ".v4.b32" in result.asm["ptx"] or "cp.async" in result.asm["ptx"],
    }


def rows_of(dim):
    size = {"fp32": 4}.get(dtype, 2)
    return Tiling.of([LayerShape(8, dim, dim)], None, size).chunk_queries


def attend(dim, group, rows, *, is_span, window=0, softcap=False, sinks=False):
    size = {"fp32": 4}.get(dtype, 2)
    width = 1 << (dim - 1).bit_length()
    pointers = {"query": dtype, "keys": dtype, "values": dtype, "sinks": dtype, "items": "i32"}
    pointers |= {"blocks": "i32", "output": "fp32" if is_span else dtype, "tops": "fp32"}
    constants = {
        "NUM_KV_HEADS": 8, "KEY_DIM": dim, "KEY_WIDTH": width, "VALUE_DIM": dim,
        "VALUE_WIDTH": width, "GROUP": group, "BLOCK_SIZE": 16, "WINDOW": window,
        "HAS_SOFTCAP": softcap, "HAS_SINKS": sinks, "IS_SPAN": is_span, "ROWS": rows,
        "POSITIONS": positions_per_pass(width, size),
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }
    return compiled(
        kernels.attend, pointers, ("query_token_stride", "query_head_stride"),
        ("scaling", "softcap"), constants,
        num_warps=8 if rows * width > 8192 else 4, num_stages=2,
    )


merged = {"NUM_KV_HEADS": 8, "VALUE_DIM": 128, "VALUE_WIDTH": 128, "GROUP": 4,
          "HAS_SINKS": True, "ROWS": 16, "SPANS": 16}
written = {"NUM_KV_HEADS": 8, "KEY_DIM": 128, "KEY_WIDTH": 128, "VALUE_DIM": 128,
           "VALUE_WIDTH": 128, "HEADS": 8}
strides = [f"{name}_{kind}_stride" for name in ("key", "value") for kind in ("token", "head")]
print(json.dumps({
    "chunks": attend(128, 4, rows_of(128), is_span=False),
    "chunks of wide heads": attend(256, 2, rows_of(256), is_span=False, window=512, softcap=True),
    "queries of odd heads": attend(80, 1, 16, is_span=True, sinks=True),
    "merge": compiled(
        kernels.merge,
        {"sums": "fp32", "tops": "fp32", "sinks": dtype, "rows": "i32", "output": dtype},
        (), (), merged,
    ),
    "write": compiled(
        kernels.write,
        {"key": dtype, "value": dtype, "keys": dtype, "values": dtype, "slots": "i32"},
        strides, (), written,
    ),
}))
"""

SHARED_BYTES = 99 << 10
"""What a program can have on the least of these GPUs, Ada; Ampere's and Hopper's have more."""


@pytest.mark.parametrize(("architecture", "dtype"), [(80, "fp16"), (90, "bf16")])
def test_the_kernels_compile_for_gpus(architecture: int, dtype: str) -> None:
    """With tensor cores for the products, in the shared memory there is, loading wide."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, str(architecture), dtype],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    for name, facts in json.loads(result.stdout).items():
        assert facts["shared"] <= SHARED_BYTES, (name, facts)
        assert facts["loads wide"], name
        assert facts["uses tensor cores"] == (name not in {"merge", "write"}), name
