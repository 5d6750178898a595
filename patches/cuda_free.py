"""No CUDA on the text path for models that are not there."""

from __future__ import annotations

import libcst.matchers as m

from patches.places import CALLBACKS, FROM_HF, MODELS, TEXT
from tgwui_k8s.patching.edits import Edit
from tgwui_k8s.patching.series import Patch
from tgwui_k8s.patching.verbs import call, replace

TO_CUDA = m.Call(
    func=m.Attribute(value=m.SaveMatchedNode(m.DoNotCare(), "tensor"), attr=m.Name("cuda")), args=[]
)


def _placed(path: str, function: str) -> Edit:
    return replace(
        path,
        function,
        f".cuda() in {function}",
        TO_CUDA,
        "tgwui_k8s_device.place({tensor}, shared.model)",
        "tgwui_k8s_device.place(",
        at_most=None,
        is_optional=True,
    )


def _uncached(path: str) -> Edit:
    return replace(
        path,
        "clear_torch_cache()",
        "torch.cuda.empty_cache() in clear_torch_cache()",
        call("torch.cuda.empty_cache", args=[]),
        "tgwui_k8s_device.empty_cache()",
        "tgwui_k8s_device.empty_cache()",
        is_optional=True,
        if_scope=True,
    )


PATCH = Patch(
    name="cuda_free",
    title="Encode and decode without CUDA",
    reason="Without --cpu upstream sends every prompt to CUDA, wherever the model is.",
    versions="until 2025; v4.7.3 asks the model for its device, and needs nothing",
    test="Generate with a model whose device is the CPU, with torch.cuda made to raise.",
    edits=(
        _placed(TEXT, "encode(prompt)"),
        _placed(TEXT, FROM_HF),
        _placed("modules/logits.py", "get_next_logits()"),
        _uncached(MODELS),
        _uncached(CALLBACKS),
    ),
)
