"""The native decoder against Transformers' float32 logits of the same bfloat16 weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.native import execute, load, needs_native_decoder, part, with_each_numerics
from tests.helpers.toy_runner import run_to_end
from tests.helpers.versions import in_dtype, needs_transformers
from tgwui_k8s.contract import GenerationRequest
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.engine.core import EngineCore
from tgwui_k8s.engine.messages import EngineSettings
from tgwui_k8s.errors import NotEnoughMemoryError, UnsupportedModelError
from tgwui_k8s.runtime.native_library import variants_here
from tgwui_k8s.runtime.rope import rope_tables
from tgwui_k8s.runtime.tensor_reader import round_to_bfloat16
from tgwui_k8s.sampling import SamplingParams

pytestmark = [needs_native_decoder, needs_transformers("5")]

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama wide heads": ("llama", {"head_dim": 64}),
    "llama one group": (
        "llama",
        {"num_key_value_heads": 1, "num_attention_heads": 8, "head_dim": 16},
    ),
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "yarn rope": ("llama", {"rope_parameters": YARN}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "odd vocabulary": ("llama", {"vocab_size": 301}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2 windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {}),
}
TOKENS = np.random.default_rng(0).integers(3, 250, 120).tolist()


def reference_logits(folder, token_ids):
    """Transformers in float32, whole and without a cache."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, **in_dtype(torch.float32), attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


@with_each_numerics
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name, variant, tmp_path):
    """Close to float32, and closer than Transformers' own bfloat16, for every kind of model."""
    architecture, overrides = MODELS[name]
    folder = make_checkpoint(tmp_path, architecture, dtype="bfloat16", **overrides)
    expected = reference_logits(folder, TOKENS)
    runner = load(folder, variant)
    logits = execute(runner, part(runner, TOKENS))
    assert logits.dtype == np.float32
    gap = np.abs(logits - expected).mean()
    own = AutoModelForCausalLM.from_pretrained(folder, **in_dtype(torch.bfloat16))
    with torch.no_grad():
        own_gap = np.abs(own(torch.tensor([TOKENS])).logits[0].float().numpy() - expected).mean()
    assert gap < own_gap
    runner.close()


@with_each_numerics
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("llama", "bfloat16"),
        ("mistral", "bfloat16"),
        ("qwen2 windows", "bfloat16"),
        ("qwen3", "bfloat16"),
        ("llama", "int8"),
        ("qwen2", "int8"),
    ],
)
def test_batches_chunks_and_block_tables_change_no_bit(name, weights, variant, tmp_path):
    """Alone or with others, whole or in chunks, in whatever blocks: the identical floats."""
    architecture, overrides = MODELS[name]
    folder = make_checkpoint(tmp_path, architecture, dtype="bfloat16", **overrides)
    runner = load(folder, variant, options={"weights": weights})
    whole = execute(runner, part(runner, TOKENS))
    chunks = [
        execute(runner, part(runner, TOKENS[begin:end], begin, first_block=10))
        for begin, end in ((0, 33), (33, 34), (34, 50), (50, 119), (119, 120))
    ]
    assert np.array_equal(np.concatenate(chunks), whole)
    beside = execute(
        runner,
        part(runner, TOKENS[::-1][:17], first_block=20),
        part(runner, TOKENS[119:], 119, first_block=10),
        part(runner, TOKENS, first_block=25),
    )
    assert np.array_equal(beside[17], whole[119])
    assert np.array_equal(beside[18:], whole)
    runner.close()


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["llama", "odd vocabulary", "qwen2 windows", "qwen3"])
def test_variants_with_the_same_numerics_give_the_same_bits(name, weights, tmp_path):
    """What the fingerprint says of replicas on different processors is true."""
    architecture, overrides = MODELS[name]
    folder = make_checkpoint(tmp_path, architecture, dtype="bfloat16", **overrides)
    found = {}
    for variant in variants_here():
        runner = load(folder, variant, options={"weights": weights})
        logits = execute(runner, part(runner, TOKENS))
        first = found.setdefault(runner.info.fingerprint, logits)
        np.testing.assert_array_equal(logits, first, err_msg=variant.name)
        runner.close()
    assert len(found) == len({variant.numerics for variant in variants_here()})


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_tokens_computed_ahead_change_no_text(weights, tmp_path):
    """Guessed or one by one, greedy or sampled: the same tokens, since no bit depends on it."""
    folder = make_checkpoint(tmp_path, "llama", dtype="bfloat16", vocab_size=16)
    texts = []
    for num_guessed in (0, 8):
        runner = load(folder, options={"weights": weights})
        core = EngineCore(runner, EngineSettings(max_num_seqs=8, max_waiting_requests=8))
        for index in range(6):
            params = SamplingParams(
                max_tokens=60,
                temperature=index % 3 / 2,
                seed=index,
                ignore_eos=True,
                prompt_lookup_num_tokens=num_guessed,
            )
            prompt = tuple(token % 16 for token in TOKENS[: 10 * index + 1])
            core.add_request(
                GenerationRequest(request_id=str(index), prompt_token_ids=prompt, params=params)
            )
        texts.append(run_to_end(core))
        assert (core.stats.num_accepted_tokens > 20) == (num_guessed > 0)
        runner.close()
    assert texts[0] == texts[1]


def test_a_windowed_layer_needs_no_block_before_its_window(tmp_path):
    """Table entries that the window has passed may be -1."""
    runner = load(make_checkpoint(tmp_path, "mistral", dtype="bfloat16"))
    execute(runner, part(runner, TOKENS[:119]))
    last = part(runner, TOKENS[119:], 119)
    expected = execute(runner, last)
    for table in last.block_tables:
        table[: (119 - 24 + 1) // 16] = [-1] * ((119 - 24 + 1) // 16)
    assert np.array_equal(execute(runner, last), expected)
    runner.close()


def test_wider_checkpoints_are_rounded_to_nearest_even():
    """float32 becomes bfloat16 exactly as torch rounds it, NaN and ties included."""
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    values[:4] = [np.nan, np.inf, -np.inf, 0.0]
    values[4:1000].view(np.uint32)[:] = values[4:1000].view(np.uint32) & 0xFFFF0000 | 0x8000
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    got = round_to_bfloat16(values)
    assert np.array_equal(got[1:], expected[1:])
    assert (got[0] & 0x7FFF) > 0x7F80


def test_a_float32_checkpoint_runs(tmp_path):
    """Wider checkpoints are converted at load and stay close to the original."""
    folder = make_checkpoint(tmp_path, "llama", dtype="float32", weight_format="sharded")
    expected = reference_logits(folder, TOKENS)
    runner = load(folder)
    logits = execute(runner, part(runner, TOKENS))
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.99
    runner.close()


@pytest.mark.parametrize(
    ("architecture", "overrides", "word"),
    [
        ("gpt2", {}, "GPT2LMHeadModel"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"intermediate_size": 120}, "ffn 120"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_what_is_not_plain_llama_is_left_to_transformers(architecture, overrides, word, tmp_path):
    """Anything the kernels do not do exactly is refused by name."""
    folder = make_checkpoint(tmp_path, architecture, **overrides)
    with pytest.raises(UnsupportedModelError, match=word):
        load(folder)


def test_an_incomplete_configuration_is_left_to_transformers(tmp_path):
    """A key that is missing is no crash here: Transformers has defaults, or says what is wrong."""
    folder = make_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    del config["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="num_attention_heads"):
        load(folder)


def test_float32_is_left_to_transformers(tmp_path):
    """The kernels compute in bfloat16; asking for another type refuses."""
    folder = make_checkpoint(tmp_path, "llama")
    with pytest.raises(UnsupportedModelError, match="float32"):
        load(folder, dtype="float32")


def test_too_little_memory_is_said_before_weights_are_read(tmp_path):
    """A KV budget below one full sequence names a length that would fit."""
    folder = make_checkpoint(tmp_path, "llama")
    with pytest.raises(NotEnoughMemoryError, match="--max-model-len"):
        load(folder, kv_cache_bytes=100_000)


def test_rope_tables_are_those_of_transformers(tmp_path):
    """Cosines and sines equal the model's own rotary module, for every kind of scaling."""
    for name in ("llama", "llama3 rope", "yarn rope", "linear rope"):
        architecture, overrides = MODELS[name]
        folder = make_checkpoint(tmp_path / name, architecture, **overrides)
        model = AutoModelForCausalLM.from_pretrained(folder)
        cosines, sines = model.model.rotary_emb(torch.zeros(1), torch.arange(200)[None])
        config = model.config.to_dict()
        got = rope_tables(config, head_dim=16, num_positions=200)
        np.testing.assert_allclose(got[0], cosines[0, :, :8].numpy(), atol=2e-5)
        np.testing.assert_allclose(got[1], sines[0, :, :8].numpy(), atol=2e-5)


@with_each_numerics
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_broken_sequence_leaves_nothing_in_its_blocks(variant, weights, tmp_path):
    """Who gets the blocks of a sequence of NaN computes the same bits as in blocks of nobody's."""
    folder = make_checkpoint(tmp_path, "llama", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("nan")
        model.save_pretrained(folder)
    runner = load(folder, variant, options={"weights": weights})
    healthy = [token for token in TOKENS if token != 7][:24]
    lives = []
    for first_block in (4, 0):
        if first_block == 0:
            assert np.isnan(execute(runner, part(runner, [7] * 30))).all()
        chunks = [
            part(runner, healthy[start:stop], start, first_block)
            for start, stop in [(0, 5), (5, 6), (6, 21), (21, 24)]
        ]
        lives.append(np.concatenate([execute(runner, chunk) for chunk in chunks]))
    assert np.isfinite(lives[0]).all()
    np.testing.assert_array_equal(lives[1], lives[0])
    runner.close()
