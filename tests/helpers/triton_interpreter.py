"""Triton's interpreter, which must be chosen before anything imports Triton."""

from __future__ import annotations

import os
import sys

import pytest
import torch


def interpret_without_cuda() -> None:
    """Call at the top of a test module, before the kernels are imported.

    Skips the module where kernels were already imported to be compiled: in a run of the whole suite
    with a torch that brings Triton, as AWS Neuron's environment has. `make test-triton` is alone.
    """
    if torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ:
        return
    if "triton" in sys.modules:
        pytest.skip(
            "needs Triton, of make test-triton: here it compiles already", allow_module_level=True
        )
    os.environ["TRITON_INTERPRET"] = "1"
