"""The sampler for logits that lie on the host: llama.cpp, Neuron, and any model on the CPU.

It is also the readable reference; `tgwui_k8s.runtime.sampler` does the same with torch, and one
test holds the two equal. What happens to which row is decided in
`tgwui_k8s.runtime.samplers.pipeline`; each sampler's arithmetic is in `tgwui_k8s.engine.samplers`.
"""

from __future__ import annotations

import numpy as np

from tgwui_k8s.engine.samplers.rows import NumpyKernels
from tgwui_k8s.runtime.samplers.pipeline import RowSampler


class NumpySampler(RowSampler):
    """Samples from NumPy arrays, or from torch tensors in host memory, which it reads in place."""

    def __init__(self) -> None:
        # Minus infinity is a removed candidate here: differences and logarithms of it are meant.
        super().__init__(NumpyKernels(), lambda: np.errstate(all="ignore"))
