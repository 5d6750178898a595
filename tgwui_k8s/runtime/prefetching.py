"""Whether a model's weights are read ahead, and telling how far that is."""

from __future__ import annotations

from tgwui_k8s.contract import LoadProgress, LoadRequest, ProgressCallback
from tgwui_k8s.runtime.limits import available_memory
from tgwui_k8s.storage.mounts import network_file_system
from tgwui_k8s.storage.prefetch import prefetch
from tgwui_k8s.storage.weights import WeightFiles


def prefetch_weights(
    request: LoadRequest, weights: WeightFiles, progress: ProgressCallback
) -> None:
    """Read the weights into the page cache where the request says so, or their disk is remote."""
    is_remote = request.prefetch == "auto" and network_file_system(request.path) is not None
    if request.prefetch == "on" or is_remote:
        limit = available_memory(request.memory_limit_bytes).num_bytes
        total = weights.num_bytes

        def report(num_bytes: int) -> None:
            progress(LoadProgress("prefetching", num_bytes, total))

        prefetch(weights.files, limit_bytes=limit, on_bytes=report)
