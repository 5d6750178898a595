"""Whether a model's weights are read ahead, and telling how far that is."""

from __future__ import annotations

import logging

from tgwui_k8s.contract import LoadProgress, LoadRequest, ProgressCallback
from tgwui_k8s.runtime.limits import available_memory
from tgwui_k8s.storage.mounts import network_file_system
from tgwui_k8s.storage.prefetch import is_kept, prefetch
from tgwui_k8s.storage.weights import WeightFiles

logger = logging.getLogger(__name__)


def prefetch_weights(
    request: LoadRequest, weights: WeightFiles, progress: ProgressCallback
) -> None:
    """Read the weights into the page cache where the request says so, or their disk is remote."""
    if request.prefetch == "on" or (
        request.prefetch == "auto" and _is_worthwhile(request, weights)
    ):
        limit = available_memory(request.memory_limit_bytes).num_bytes
        total = weights.num_bytes

        def report(num_bytes: int) -> None:
            progress(LoadProgress("prefetching", num_bytes, total))

        prefetch(weights.files, limit_bytes=limit, on_bytes=report)


def _is_worthwhile(request: LoadRequest, weights: WeightFiles) -> bool:
    file_system = network_file_system(request.path)
    if file_system is None or not weights.files:
        return False
    if not file_system.startswith("fuse") or is_kept(weights.files[0]):
        return True
    logger.info("%s keeps nothing of what is read: weights are not read ahead", file_system)
    return False
