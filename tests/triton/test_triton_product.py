"""The Triton kernel: against float64 in Triton's interpreter, and through its compiler.

Run by `make test-triton`, which brings Triton; with a CUDA device the kernel itself runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.triton_interpreter import interpret_without_cuda

HAS_CUDA = torch.cuda.is_available()
interpret_without_cuda()

pytest.importorskip("triton", reason="needs Triton, of make test-triton")

from tests.unit.runtime.test_quantized_products import random_weight  # noqa: E402
from tgwui_k8s.runtime.quantized.triton_product import TritonProduct  # noqa: E402

DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")

# The interpreter multiplies no bfloat16: on a CPU it is only compiled.
DTYPES = [(torch.float32, 1e-6), (torch.float16, 1e-3)]
if HAS_CUDA:
    DTYPES.append((torch.bfloat16, 1e-2))

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tgwui_k8s.runtime.quantized.triton_product import _multiply

architecture, dtype, bits = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
pointers = {"x": dtype, "words": "i32", "scales": "fp16", "zeros": "u8", "sums": "fp32"}
numbers = ("num_rows", "num_words", "num_outputs", "group_size", "steps_per_share")
constants = {
    "BITS": bits, "PER_WORD": 32 // bits, "BLOCK_ROWS": 16, "BLOCK_WORDS": 16,
    "BLOCK_OUTPUTS": 64, "PRECISION": "ieee",
}
signature = {f"{name}_pointer": f"*{kind}" for name, kind in pointers.items()}
signature |= dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
source = ASTSource(_multiply, signature=signature, constexprs=constants)
kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
print("tensor cores" if "mma" in kernel.asm["ptx"] else "no tensor cores")
"""


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, 640])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_products_are_float64s(
    bits: int, group_size: int, dtype: torch.dtype, tolerance: float
) -> None:
    """A strip of outputs that is not full, inputs in several shares, few rows and many."""
    weight = random_weight(72, 640, bits, group_size).to(DEVICE)
    product = TritonProduct(weight)
    exact = weight.dequantize().double()
    for num_rows in (1, 3, 16, 17, 64, 65):
        x = torch.randn(num_rows, 640, device=DEVICE).to(dtype)
        output = product(x)
        assert output.dtype == dtype
        error = (output.double() - x.double() @ exact.T).abs().max()
        assert error <= tolerance * (x.double().abs() @ exact.abs().T).max()


def test_a_row_is_the_same_beside_others() -> None:
    """Bit for bit, as long as the kernel computes it: shares are added in one order."""
    product = TritonProduct(random_weight(80, 512, 4, 64).to(DEVICE))
    x = torch.randn(16, 512, device=DEVICE, dtype=torch.float16)
    assert torch.equal(product(x)[:1], product(x[:1]))


def test_the_weight_takes_its_bits() -> None:
    """Half a byte a code, and what the groups need."""
    product = TritonProduct(random_weight(64, 512, 4, 128).to(DEVICE))
    assert product.num_bytes == 64 * 512 // 2 + 64 * 4 * (4 + 1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("architecture", [80, 90])
def test_the_kernel_compiles_for_gpus(architecture: int, dtype: str, bits: int) -> None:
    """To machine code with tensor cores, Ampere's and Hopper's, on a machine without either."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, str(architecture), dtype, str(bits)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "tensor cores\n"), result.stderr[-2000:]
