"""Products with quantized weights: the kernels against float64, in every shape they treat apart."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tgwui_k8s.runtime.native_library import why_unavailable  # noqa: E402
from tgwui_k8s.runtime.quantized import native  # noqa: E402
from tgwui_k8s.runtime.quantized.linear import (  # noqa: E402
    ExpandedProduct,
    QuantizedLinear,
    choose_product,
)
from tgwui_k8s.runtime.quantized.weight import QuantizedWeight, quantize  # noqa: E402

SHAPES = [(16, 64, 32), (40, 128, 64), (72, 384, 128), (24, 208, 208), (1, 32, 32)]
"""Outputs, inputs, group size: whole tiles and part of one, one group and several."""


@pytest.fixture(name="team", params=[1, 3])
def _team(request: pytest.FixtureRequest) -> native.Team:
    if reason := why_unavailable():
        pytest.skip(f"AVX: {reason}")
    return native.Team(request.param)


def random_weight(outputs: int, inputs: int, bits: int, group_size: int) -> QuantizedWeight:
    """With codes and zeros from one end of their range to the other."""
    generator = torch.Generator().manual_seed(outputs)
    groups = inputs // group_size
    return QuantizedWeight(
        codes=torch.randint(0, 2**bits, (outputs, inputs), generator=generator).to(torch.uint8),
        scales=torch.rand(outputs, groups, generator=generator) + 0.1,
        zeros=torch.randint(0, 2**bits, (outputs, groups), generator=generator).to(torch.uint8),
        bits=bits,
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs", "group_size"), SHAPES)
def test_native_products_are_float64s(
    team: native.Team, bits: int, outputs: int, inputs: int, group_size: int
) -> None:
    """In float32 and in bfloat16, for every number of rows that the kernel treats apart."""
    weight = random_weight(outputs, inputs, bits, group_size)
    product = native.NativeProduct(weight, team)
    exact = weight.dequantize().double()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 1e-3)):
        for num_rows in (1, 2, 3, 4, 5, 9):
            x = torch.randn(num_rows, inputs).to(dtype)
            expected = x.double() @ exact.T
            output = product(x)
            assert output.dtype == dtype
            error = (output.double() - expected).abs().max()
            size = x.double().abs() @ exact.abs().T
            assert error <= tolerance * size.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_beside_others(team: native.Team, dtype: torch.dtype) -> None:
    """Bit for bit, in a batch of any size."""
    product = native.NativeProduct(random_weight(48, 256, 4, 64), team)
    x = torch.randn(11, 256).to(dtype)
    alone = torch.cat([product(row.unsqueeze(0)) for row in x])
    for num_rows in (2, 3, 4, 7, 11):
        assert torch.equal(product(x[:num_rows]), alone[:num_rows])


def test_a_width_that_the_kernel_cannot_hold_is_expanded(caplog: pytest.LogCaptureFixture) -> None:
    """One group over 200 inputs, which are no multiple of 16."""
    make = choose_product(torch.device("cpu"), torch.float32, num_threads=1)
    weight = random_weight(24, 200, 4, 200)
    product = make(weight)
    assert isinstance(product, ExpandedProduct)
    assert "expanded to torch.float32" in caplog.text
    x = torch.randn(3, 200)
    torch.testing.assert_close(product(x), x @ weight.dequantize().T)


def test_a_row_that_is_not_finite_stays_alone(team: native.Team) -> None:
    """Infinity in one row of a batch is not a number there, and nothing to the others."""
    product = native.NativeProduct(random_weight(48, 256, 8, 64), team)
    x = torch.randn(4, 256)
    expected = product(x)
    x[2, 17] = torch.inf
    output = product(x)
    assert not output[2].isfinite().any()
    assert torch.equal(output[[0, 1, 3]], expected[[0, 1, 3]])


def test_sorted_inputs_are_sorted_back(team: native.Team) -> None:
    """Act-order: a layer takes its inputs in the order that it was told."""
    plain = quantize(torch.randn(32, 128), bits=4, group_size=32)
    order = torch.randperm(128)
    mixed = QuantizedWeight(plain.codes, plain.scales, plain.zeros, 4, order)
    layer = QuantizedLinear(128, 32, bias=False)
    layer.set_weight(mixed, lambda weight: native.NativeProduct(weight, team))
    x = torch.randn(2, 3, 128)
    torch.testing.assert_close(layer(x), x @ mixed.dequantize().float().T, rtol=1e-3, atol=2e-2)
    assert not torch.equal(mixed.dequantize(), plain.dequantize())
