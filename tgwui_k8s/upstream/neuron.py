"""Hooks for the loader `Neuron`: its name, flags, inference, and its entry in upstream's table.

The folder is as this project's own loader has it: NAME/model, NAME/tokenizer and
NAME/neuron_artifacts, or all in one. Settings come from flags, then from the manifest that
`tgwui-k8s neuron compile` writes beside the graphs.
"""

from __future__ import annotations

import functools
import json
import logging
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tgwui_k8s.upstream.neuron_model import NeuronModel, NeuronSettings, load

NAME = "Neuron"
ALIASES = ("neuron", "neuronx", "aws-neuron", "transformers-neuronx", "transformers_neuronx")
ARTIFACTS = "neuron_artifacts"
MANIFEST = "tgwui-k8s.json"
PARAMETERS = ["trust_remote_code", "no_use_fast"]
"""What upstream's model tab shows for this loader; the rest are flags."""
_TYPES = ("f32", "f16", "bf16")
_CUSTOM_TEMPLATE = "Custom (obtained from model metadata)"

logger = logging.getLogger("tgwui_k8s")


def add_flags(parser: ArgumentParser) -> None:
    """Before upstream parses its command line."""
    group = parser.add_argument_group("Neuron")
    group.add_argument("--tp-degree", type=int, help="NeuronCores that the model lies on.")
    group.add_argument("--amp", choices=_TYPES, help="Type to compute in.")
    group.add_argument("--n-positions", type=int, help="Longest prompt plus completion.")
    group.add_argument("--context-buckets", help="Prompt lengths, such as 128,512,2048.")
    group.add_argument("--neuron-artifacts", help="Folder with the compiled graphs.")
    group.add_argument(
        "--neuron-compile-on-start",
        action="store_true",
        help="Compile where there are no graphs, which may take hours.",
    )


def named(fix: Callable[[str | None], str | None]) -> Callable[[str | None], str | None]:
    """Decorator of upstream's `fix_loader_name`."""

    @functools.wraps(fix)
    def fixed(name: str | None) -> str | None:
        return NAME if name and name.lower() in ALIASES else fix(name)

    return fixed


def inferred(shared: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of upstream's `infer_loader`: `NAME-neuron`, or a folder laid out for Neuron."""

    def decorate(infer: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(infer)
        def inferring(model_name: str, *args: Any, **kwargs: Any) -> Any:
            folder = _folder(shared, model_name)
            return NAME if is_for_neuron(folder) else infer(model_name, *args, **kwargs)

        return inferring

    return decorate


def described(shared: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of upstream's `get_model_metadata`: the chat template lies with the tokenizer."""

    def decorate(describe: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(describe)
        def describing(model: str, *args: Any, **kwargs: Any) -> Any:
            metadata = describe(model, *args, **kwargs)
            inside = f"{model}/tokenizer"
            if metadata.get("loader") == NAME and _folder(shared, inside).is_dir():
                within = describe(inside, *args, **kwargs)
                if within.get("instruction_template") == _CUSTOM_TEMPLATE:
                    names = ("instruction_template", "instruction_template_str")
                    metadata.update({name: within[name] for name in names if name in within})
            return metadata

        return describing

    return decorate


def loader(shared: ModuleType) -> Callable[[str], tuple[NeuronModel, Any]]:
    """The entry in upstream's table of loaders: a function of the model's name."""

    def load_by_name(model_name: str) -> tuple[NeuronModel, Any]:
        args: Any = shared.args
        folder = _folder(shared, model_name)
        artifacts = Path(args.neuron_artifacts) if args.neuron_artifacts else folder / ARTIFACTS
        model = load(
            _within(folder, "model"),
            artifacts,
            settings(args, artifacts),
            compile_on_start=args.neuron_compile_on_start,
        )
        return model, _tokenizer(_within(folder, "tokenizer"), args)

    return load_by_name


def set_truncation_length(shared: Any, model: Any) -> None:
    """After a load: upstream's prompts are cut to what the graphs were compiled for."""
    length = getattr(model, "n_positions", None)
    if isinstance(model, NeuronModel) and length is not None:
        shared.settings["truncation_length"] = length


# ------------------------------------------------------------------------------------- details


def is_for_neuron(folder: Path) -> bool:
    """By name (`-neuron` at its end) or by layout (compiled graphs inside)."""
    if not folder.is_dir():
        return False
    return folder.name.lower().endswith("-neuron") or (folder / ARTIFACTS).is_dir()


def settings(args: Any, artifacts: Path) -> NeuronSettings:
    """What the flags say, else what the graphs were compiled for, else defaults.

    Raises ValueError where the graphs cannot be used this way.
    """
    compiled = _compiled(artifacts)
    if compiled.get("mode", "sample") != "sample" or compiled.get("batch_size", 1) != 1:
        raise ValueError(
            f"the graphs in {artifacts} batch continuously, which upstream cannot drive; compile "
            "with --neuron-mode sample --batch-size 1"
        )
    buckets: Any = compiled.get("context_buckets")
    if args.context_buckets:
        buckets = sorted({int(part) for part in args.context_buckets.split(",")})
    return NeuronSettings(
        tp_degree=args.tp_degree or compiled.get("tp_degree"),
        amp=args.amp or compiled.get("amp") or "bf16",
        n_positions=args.n_positions or compiled.get("n_positions"),
        context_buckets=tuple(buckets or ()),
        quantization=compiled.get("quantization", "none"),
        gqa=compiled.get("gqa", ""),
        attention_layout=compiled.get("attention_layout", "HSB"),
        collectives_layout=compiled.get("collectives_layout", "HSB"),
        fuse_qkv=compiled.get("fuse_qkv", False),
    )


def _compiled(artifacts: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((artifacts / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        return {}
    parameters: dict[str, Any] = manifest["parameters"]
    return parameters


def _folder(shared: Any, model_name: str) -> Path:
    given = Path(model_name)
    return given if given.is_absolute() else Path(shared.args.model_dir, model_name)


def _within(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _tokenizer(folder: Path, args: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        folder,
        trust_remote_code=args.trust_remote_code,
        use_fast=not getattr(args, "no_use_fast", False),
    )
