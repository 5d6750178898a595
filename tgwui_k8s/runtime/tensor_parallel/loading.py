"""Load a model on several ranks, this process being the first of them."""

from __future__ import annotations

from collections.abc import Collection

from tgwui_k8s.contract import LoadRequest, ProgressCallback
from tgwui_k8s.runtime.tensor_parallel.ranks import Ranks, num_ranks
from tgwui_k8s.runtime.tensor_parallel.requirements import check_model, check_request
from tgwui_k8s.runtime.tensor_parallel.runner import TensorParallelRunner
from tgwui_k8s.runtime.tensor_parallel.workers import Workers
from tgwui_k8s.runtime.transformers_config import choose_device, read_config
from tgwui_k8s.runtime.transformers_loading import check_options, load_runner
from tgwui_k8s.storage.weights import find_weights


def load_on_ranks(
    request: LoadRequest, progress: ProgressCallback, *, loader: str, options: Collection[str]
) -> TensorParallelRunner:
    """Start the further ranks, and load with them. Raises a `StartupError`."""
    check_options(request, loader, options)
    size = num_ranks(request.options)
    device = choose_device(request)
    check_request(request, size, device)
    config = read_config(request.path, trust_remote_code=request.trust_remote_code)
    check_model(config, find_weights(request.path), size)
    ranks, workers = Ranks(0, size), Workers(size)
    try:
        workers.load(request, loader, device.type)
        ranks.join(device.type, workers.meeting_file)
        runner = load_runner(request, progress, loader=loader, options=options, ranks=ranks)
    except BaseException:
        workers.close(grace_seconds=0)
        ranks.leave()
        raise
    return TensorParallelRunner(runner, workers, ranks.leave)
