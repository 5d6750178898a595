"""Loader `Neuron`: NAME-neuron is inferred, its flags are there, its prompts fit its graphs."""

from __future__ import annotations

import libcst.matchers as m

from patches.places import LOAD, LOADERS, MODELS, PARSE_ARGS, SETTINGS, SHARED
from tgwui_k8s.patching.series import Patch
from tgwui_k8s.patching.verbs import add_entry, call, decorate, insert_after, insert_before, line

PATCH = Patch(
    name="neuron_loader",
    title="Loader for AWS Inferentia2 and Trainium",
    reason="Upstream has no loader for NeuronCores.",
    versions="every version; tried with snapshot-2023-12-24, snapshot-2024-01-28 and v4.7.3",
    test="Load NAME-neuron on inf2, or with tests/neuron_standin on the path; ask for a text.",
    needs=("cuda_free", "generation"),
    edits=(
        add_entry(
            MODELS,
            LOAD,
            "load_func_map",
            "Transformers",
            "Neuron",
            "tgwui_k8s_neuron.loader(shared)",
        ),
        insert_after(
            MODELS,
            LOAD,
            "call of shared.settings.update() in load_model()",
            line(m.Expr(call("shared.settings.update"))),
            "tgwui_k8s_neuron.set_truncation_length(shared, model)",
        ),
        add_entry(
            LOADERS,
            "",
            "loaders_and_params",
            "Transformers",
            "Neuron",
            "tgwui_k8s_neuron.PARAMETERS",
        ),
        add_entry(
            LOADERS, "", "loaders_samplers", "Transformers", "Neuron", "transformers_samplers()"
        ),
        insert_before(
            SHARED,
            "",
            "args = parser.parse_args()",
            PARSE_ARGS,
            "tgwui_k8s_neuron.add_flags(parser)",
        ),
        decorate(SHARED, "fix_loader_name(name)", "tgwui_k8s_neuron.named"),
        decorate(
            SETTINGS,
            "infer_loader(model_name, model_settings)",
            "tgwui_k8s_neuron.inferred(shared)",
        ),
        decorate(SETTINGS, "get_model_metadata(model)", "tgwui_k8s_neuron.described(shared)"),
    ),
)
