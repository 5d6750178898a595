"""The sampler for logits that lie on a device.

The same pipeline as `tgwui_k8s.engine.sampler`, with torch's arithmetic where the logits are; what
was chosen comes back to the host in one transfer a step. It works on any torch device; for logits
in host memory the NumPy sampler is several times faster and reads them in place, so a runner on
the CPU leaves `ModelRunner.sampler` None.
"""

from __future__ import annotations

import torch

from tgwui_k8s.runtime.samplers.pipeline import RowSampler
from tgwui_k8s.runtime.samplers.torch_rows import TorchKernels


class TorchSampler(RowSampler):
    """Samples from torch tensors on the device that holds them.

    Its working memory is a few copies of at most 2**23 logits: some 300 MiB beside the model.
    """

    def __init__(self) -> None:
        super().__init__(TorchKernels(), torch.inference_mode)
