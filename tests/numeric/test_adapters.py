"""LoRA adapters: each sequence gets what PEFT computes for it, whatever runs beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.adapters import ATTENTION, edit_config, make_adapter, peft_tokens
from tests.helpers.transformers_models import load_runner, random_tokens
from tgwui_k8s.contract import GenerationRequest
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.errors import NotEnoughMemoryError, StartupError
from tgwui_k8s.runtime import transformers_loading
from tgwui_k8s.runtime.adapters import AdapterLayers
from tgwui_k8s.runtime.limits import AvailableMemory
from tgwui_k8s.sampling import SamplingParams

PROMPT = random_tokens(37, seed=2)
NUM_TOKENS = 10


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module", name="folders")
def _folders(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    everything = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
    return {
        "first": make_adapter(model, root / "first", seed=1),
        "second": make_adapter(
            model, root / "second", seed=2, r=3, use_rslora=True, target_modules=everything
        ),
        "patterns": make_adapter(
            model,
            root / "patterns",
            seed=3,
            rank_pattern={"v_proj": 2},
            alpha_pattern={"layers.1.self_attn.q_proj": 5, "o_proj": 2},
        ),
    }


@pytest.fixture(scope="module", name="expected")
def _expected(model: Path, folders: dict[str, Path]) -> dict[str, list[int]]:
    names: dict[str, Path | None] = {"": None, **folders}
    return {name: peft_tokens(model, path, PROMPT, NUM_TOKENS) for name, path in names.items()}


def make_core(model: Path, **fields: Any) -> EngineCore:
    settings = EngineSettings(max_num_seqs=8, max_num_batched_tokens=48, max_waiting_requests=8)
    return EngineCore(load_runner(model, **fields), settings)


def ask(core: EngineCore, adapter: str, request_id: str = "") -> None:
    """Put a greedy request into the engine."""
    core.add_request(
        GenerationRequest(
            request_id=request_id or f"r-{adapter}",
            prompt_token_ids=tuple(PROMPT),
            params=SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True),
            adapter=adapter,
        )
    )


def answers(core: EngineCore) -> dict[str, list[int]]:
    """All tokens by request, at the end of all of them."""
    found: dict[str, list[int]] = {}
    while core.has_work:
        for output in core.step():
            for delta in output.deltas:
                assert delta.error is None
                found.setdefault(output.request_id, []).extend(delta.token_ids)
    core.check_integrity()
    return found


def test_every_adapter_says_something_of_its_own(expected: dict[str, list[int]]) -> None:
    """Otherwise the tests below would show nothing."""
    assert len({tuple(tokens) for tokens in expected.values()}) == len(expected)


def test_base_and_adapters_in_one_batch_are_each_as_peft(
    model: Path, folders: dict[str, Path], expected: dict[str, list[int]]
) -> None:
    """Rank-stabilised ones and such with patterns too; prompts in chunks, one prefix cache."""
    core = make_core(model)
    for name, folder in folders.items():
        core.adapters.load(name, folder)
    for name in expected:
        ask(core, name)
    assert answers(core) == {f"r-{name}": tokens for name, tokens in expected.items()}


def test_the_prefix_cache_is_an_adapters_own(
    model: Path, folders: dict[str, Path], expected: dict[str, list[int]]
) -> None:
    """The same prompt hits it again, but not with another adapter, nor with one loaded anew."""
    core = make_core(model)
    core.adapters.load("it", folders["first"])
    hits = []
    for adapter, tokens in (("", ""), ("", ""), ("it", "first"), ("it", "first")):
        ask(core, adapter)
        assert answers(core) == {f"r-{adapter}": expected[tokens]}
        hits.append(core.stats.prefix_cache_hits)
    core.adapters.load("it", folders["second"])
    ask(core, "it")
    assert answers(core) == {"r-it": expected["second"]}
    hits.append(core.stats.prefix_cache_hits)
    assert hits == [0, 32, 32, 64, 64]


def test_unloading_waits_for_those_who_use_it(
    model: Path, folders: dict[str, Path], expected: dict[str, list[int]]
) -> None:
    """A running request ends with its adapter; a new one is told that it is gone."""
    core = make_core(model)
    core.adapters.load("it", folders["first"])
    ask(core, "it")
    core.step()
    core.adapters.unload("it")
    ask(core, "it", "late")
    (late,) = [o for o in core.step() if o.request_id == "late"]
    assert (late.deltas[0].finish_reason, late.deltas[0].error_code) == ("error", "model_not_found")
    answers(core)
    core.adapters.load("it", folders["first"])
    ask(core, "it")
    core.step()
    core.adapters.load("it", folders["second"])
    ask(core, "it", "newer")
    assert answers(core)["newer"] == expected["second"]


def test_an_unloaded_adapter_leaves_nothing_behind(model: Path, folders: dict[str, Path]) -> None:
    """No hook and no tensor stays on the model, whoever used it and however it ended."""
    runner = load_runner(model)
    settings = EngineSettings(max_num_seqs=8, max_num_batched_tokens=48, max_waiting_requests=8)
    core = EngineCore(runner, settings)
    core.adapters.load("a", folders["first"])
    core.adapters.load("b", folders["second"])
    ask(core, "a")
    core.step()
    core.adapters.unload("a")
    core.adapters.unload("b")
    core.abort("r-a")
    assert runner._adapters._layers == {}
    assert not any(m._forward_hooks for m in runner._forward._model.modules())


def test_quantized_layers_take_adapters_too(
    model: Path, folders: dict[str, Path], expected: dict[str, list[int]]
) -> None:
    """On weights of 8 bits: near the base in float32, and other text than without."""
    core = make_core(model, options={"weights": "int8"})
    core.adapters.load("first", folders["first"])
    ask(core, "first")
    ask(core, "")
    found = answers(core)
    assert found["r-first"] != found["r-"]
    assert found["r-first"][:3] == expected["first"][:3]


def test_gpt2s_layers_take_adapters_too(tmp_path: Path) -> None:
    """Their weights are transposed, which is no business of an adapter's."""
    model = make_checkpoint(tmp_path / "model", "gpt2")
    folder = make_adapter(
        model, tmp_path / "it", seed=1, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
    )
    core = make_core(model)
    core.adapters.load("it", folder)
    ask(core, "it")
    assert answers(core)["r-it"] == peft_tokens(model, folder, PROMPT, NUM_TOKENS)


def test_the_cache_leaves_room_for_the_adapters_of_the_flags(
    model: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are loaded after it has been made."""
    free = AvailableMemory(512 << 20, is_limited=True)
    monkeypatch.setattr(transformers_loading, "free_memory", lambda *_: free)
    fields = {"kv_cache_bytes": None, "max_num_seqs": 4096}
    without = load_runner(model, **fields).layout.groups[0].num_blocks
    adapters = {name: str(folder) for name, folder in folders.items()}
    beside = load_runner(model, adapters=adapters, **fields).layout.groups[0].num_blocks
    num_bytes = sum((f / "adapter_model.safetensors").stat().st_size for f in folders.values())
    block_bytes = 4 * 2 * 2 * 16 * 4 * 16
    assert (without - beside) * block_bytes == pytest.approx(num_bytes, rel=0.2)


def test_running_out_of_memory_is_said(
    model: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine lives on."""
    core = make_core(model)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AdapterLayers, "_place", fail)
    with pytest.raises(NotEnoughMemoryError, match="the adapter first does not fit the memory"):
        core.adapters.load("it", folders["first"])
    ask(core, "")
    assert answers(core)["r-"]


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "adapter of type IA3; this server runs LORA"),
        ({"peft_type": None}, "adapter of type unknown"),
        ({"use_dora": True}, "its use_dora is True, which this server does not compute"),
        ({"bias": "all"}, "its bias is all"),
        ({"modules_to_save": ["lm_head"]}, "its modules_to_save is"),
        ({"lora_alpha": None}, "has no lora_alpha"),
        ({"lora_alpha": "much"}, "has no lora_alpha"),
    ],
)
def test_what_is_not_computed_is_refused(
    model: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    """By the name of the setting."""
    folder = edit_config(make_adapter(model, tmp_path / "it", seed=1), **fields)
    with pytest.raises(StartupError, match=message):
        make_core(model).adapters.load("it", folder)


def test_an_adapter_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    """Other widths, and layers that are not there; the engine goes on as it was."""
    wide = make_checkpoint(tmp_path / "wide", "llama", hidden_size=128)
    deep = make_checkpoint(tmp_path / "deep", "llama", num_hidden_layers=6)
    core = make_core(model)
    with pytest.raises(StartupError, match=r"has 64 inputs and .* the adapter's has 128 and"):
        core.adapters.load("it", make_adapter(wide, tmp_path / "a", seed=1))
    with pytest.raises(StartupError, match=r"has no layer 'model.layers.4"):
        core.adapters.load("it", make_adapter(deep, tmp_path / "b", seed=1))
    ask(core, "")
    assert answers(core)["r-"]


def test_layers_that_do_not_see_all_tokens_are_refused(model: Path, tmp_path: Path) -> None:
    """The head sees only the rows that are wanted."""
    folder = make_adapter(model, tmp_path / "it", seed=1, target_modules=["q_proj", "lm_head"])
    path = folder / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "base_layer" not in n}, path)
    with pytest.raises(StartupError, match="layer 'lm_head' does not see every token once"):
        make_core(model).adapters.load("it", folder)


def _drop(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: t for name, t in tensors.items() if "layers.2.self_attn.q_proj.lora_B" not in name
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "'model.layers.2.self_attn.q_proj' has only one of lora_A and lora_B"),
        (lambda tensors: {}, "holds no LoRA weights"),
        (lambda tensors: {**tensors, "odd": torch.zeros(1)}, "'odd' is no part"),
        (
            lambda tensors: {n: t[:, :2] if "lora_B" in n else t for n, t in tensors.items()},
            r"lora_A \[4, 64\] and lora_B \[\d+, 2\] of layer",
        ),
    ],
)
def test_damaged_weights_are_refused(
    model: Path, tmp_path: Path, change: Any, message: str
) -> None:
    """The tensor or layer is named."""
    folder = make_adapter(model, tmp_path / "it", seed=1)
    path = folder / "adapter_model.safetensors"
    tensors = {name: t.contiguous() for name, t in change(load_file(path)).items()}
    save_file(tensors, path)
    with pytest.raises(StartupError, match=message):
        make_core(model).adapters.load("it", folder)


def test_folders_that_hold_no_adapter_are_refused(model: Path, tmp_path: Path) -> None:
    """Nothing there, no configuration, no weights, old weights, half the weights."""
    core = make_core(model)
    with pytest.raises(StartupError, match="it is no folder"):
        core.adapters.load("it", tmp_path / "nowhere")
    with pytest.raises(StartupError, match=r"it has no adapter_config.json"):
        core.adapters.load("it", model)
    folder = make_adapter(model, tmp_path / "it", seed=1)
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(StartupError, match="is truncated"):
        core.adapters.load("it", folder)
    path.unlink()
    with pytest.raises(StartupError, match="copy the whole folder"):
        core.adapters.load("it", folder)
    (folder / "adapter_model.bin").write_bytes(content)
    with pytest.raises(StartupError, match=r"convert adapter_model.bin to safetensors"):
        core.adapters.load("it", folder)
