"""The processes that hold one model together, as each of them sees it.

Every rank makes the same calls in the same order; what they add up or agree on goes through
PyTorch's process group, NCCL between GPUs and Gloo on processors.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore

from tgwui_k8s.errors import UnsupportedModelError

OPTION = "tensor_parallel_size"

_TIMEOUT = timedelta(minutes=30)
"""For ranks that wait for one another while the slowest reads its weights."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """How many processes hold the model, and which of them this is."""

    rank: int = 0
    size: int = 1

    def join(self, device_type: str, meeting_file: Path) -> None:
        """Meet the other ranks; they all name the same file, which does not exist before."""
        # It warns of every rule of a plan that is for other models of the family.
        logging.getLogger("transformers.distributed.mixin").setLevel(logging.ERROR)
        if device_type == "cuda":
            torch.cuda.set_device(self.rank)
        else:
            # All ranks are on this machine; its own name may not resolve inside a container.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        distributed.init_process_group(
            "nccl" if device_type == "cuda" else "gloo",
            store=FileStore(str(meeting_file), self.size),
            rank=self.rank,
            world_size=self.size,
            timeout=_TIMEOUT,
            device_id=torch.device("cuda", self.rank) if device_type == "cuda" else None,
        )

    def least(self, number: int, device: torch.device) -> int:
        """The smallest of the numbers that the ranks give."""
        if self.size == 1:
            return number
        shared = torch.tensor([number], dtype=torch.int64, device=device)
        distributed.all_reduce(shared, distributed.ReduceOp.MIN)
        return int(shared.item())

    def leave(self) -> None:
        """End the meeting, where it has begun."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


ALONE = Ranks()


def num_ranks(options: dict[str, str]) -> int:
    """What the option says; 1 without it. Raises `UnsupportedModelError` for no such number."""
    text = options.get(OPTION, "1")
    if not text.isdecimal() or int(text) < 1:
        raise UnsupportedModelError(f"{OPTION}={text[:100]} is not a number of GPUs")
    return int(text)
