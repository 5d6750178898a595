"""The numbers of a roll-out, read from rendered manifests, with time scaled down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.helpers.manifests.drain import ENDPOINT_LAG_SECONDS
from tests.helpers.manifests.pods import pods
from tests.helpers.manifests.promises import environment, is_ours
from tests.helpers.manifests.rendering import Object, of_kind
from tgwui_k8s.settings import load_settings


@dataclass(frozen=True)
class Numbers:
    """Seconds, except the last three."""

    longest_answer: float
    drain_timeout: float
    pre_stop: float
    grace: float
    endpoint_lag: float
    """From a change of the pods until the last client has heard of it."""
    readiness_period: float
    min_ready: float
    readiness_failures: int
    max_surge: int
    max_unavailable: int


def numbers_of(objects: Sequence[Object], *, scale: float) -> Numbers:
    """Of the engine's Deployment; every time is multiplied by `scale`."""
    (deployment,) = (
        one
        for one in of_kind(objects, "Deployment")
        if one["metadata"]["name"] == "text-generation-webui"
    )
    (pod,) = (pod for pod in pods([deployment]))
    (container,) = (one for one in pod.containers if is_ours(one))
    settings = load_settings({}, environment(container, objects))[0].server
    rolling = deployment["spec"]["strategy"]["rollingUpdate"]
    readiness = container["readinessProbe"]
    return Numbers(
        longest_answer=settings.max_request_seconds * scale,
        drain_timeout=settings.drain_timeout * scale,
        pre_stop=container["lifecycle"]["preStop"]["sleep"]["seconds"] * scale,
        grace=pod.spec["terminationGracePeriodSeconds"] * scale,
        endpoint_lag=ENDPOINT_LAG_SECONDS * scale,
        readiness_period=readiness["periodSeconds"] * scale,
        min_ready=deployment["spec"]["minReadySeconds"] * scale,
        readiness_failures=readiness["failureThreshold"],
        max_surge=rolling["maxSurge"],
        max_unavailable=rolling["maxUnavailable"],
    )
