"""Ask a patched checkout for a text by its Neuron loader, on the stand-in for AWS's software.

`python -m tests.upstream.ask_neuron DIR PYTHON`: DIR is patched, PYTHON runs it. Makes a tiny
Llama as NAME-neuron (model/, tokenizer/, neuron_artifacts/), compiles it, starts upstream's
server with CUDA made to raise, streams a completion, and holds the text to Transformers' own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.neuron import standin_env
from tgwui_k8s.demo.tiny import make_checkpoint
from tgwui_k8s.demo.tiny_tokenizer import write_tokenizer
from tgwui_k8s.patching.questions import _check as check
from tgwui_k8s.patching.site import Site

NAME = "Tiny-Llama-neuron"
PROMPT = "def forward(self, hidden"
NUM_TOKENS = 12
POSITIONS = 128
NO_CUDA = """
import importlib.abc, importlib.machinery, sys

class _NoCuda(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            def touched(*args, **kwargs):
                raise AssertionError("CUDA was touched")
            module.Tensor.cuda = touched
            module.cuda._lazy_init = touched
            module.cuda.empty_cache = touched
            module.cuda.is_available = lambda: True
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, _NoCuda())
"""
"""A sitecustomize: a torch that says it has CUDA, where every use of it raises."""
COMPILE = """
import sys
from transformers_neuronx.config import NeuronConfig
from transformers_neuronx.llama.model import LlamaForSampling
folder, artifacts = sys.argv[1:]
model = LlamaForSampling.from_pretrained(folder, batch_size=1, tp_degree=2, amp="f32",
    n_positions=[128], context_length_estimate=[128],
    neuron_config=NeuronConfig(attention_layout="HSB", collectives_layout="HSB", fuse_qkv=False))
model.to_neuron()
model.save(artifacts)
"""


def main(root: Path, python: str) -> None:
    """Exit code 1 and a line where the answer is wrong."""
    work = Path(tempfile.mkdtemp(prefix="tgwui-k8s-neuron-"))
    work.chmod(0o755)
    site = Site(root, python)
    folder = site.models / NAME
    checkpoint = make_checkpoint(folder / "model", "llama")
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer")
    write_merges_as_in_2023(folder / "tokenizer" / "tokenizer.json")
    env = standin_env(work / "host", NEURON_RT_NUM_CORES="2")
    compiling = [python, "-c", COMPILE, str(checkpoint), str(folder / "neuron_artifacts")]
    subprocess.run(compiling, env=env, check=True)
    (work / "site").mkdir()
    (work / "site" / "sitecustomize.py").write_text(NO_CUDA)
    subprocess.run(["chmod", "-R", "a+rwX", str(work), str(site.models)], check=True)
    env["PYTHONPATH"] = os.pathsep.join([str(work / "site"), env["PYTHONPATH"]])
    os.environ.update(env)
    flags = ("--model", NAME, "--tp-degree", "2", "--amp", "f32", "--n-positions", str(POSITIONS))
    try:
        with site.serving(*flags) as server:
            server.wait("/v1/models", 200)
            loaders = [line for line in server.lines if "LOADER:" in line]
            check("Neuron" in "".join(loaders), f"inferred otherwise: {loaders}")
            reply = server.complete(PROMPT, stream=True, max_tokens=NUM_TOKENS, do_sample=False)
            chunks = [
                json.loads(line[5:])
                for line in reply.text.splitlines()
                if line.startswith("data:") and "{" in line
            ]
            pieces = [chunk["choices"][0]["text"] for chunk in chunks if chunk.get("choices")]
            text = "".join(pieces)
            # Upstream holds a text back from the first bytes on that are no character.
            expected = greedy(checkpoint, folder / "tokenizer").partition("\ufffd")[0]
            check(len(expected) > 4, f"the model says too little: {expected!r}")
            check(text.strip() == expected.strip(), f"{text!r}, expected {expected!r}")
            check(len([piece for piece in pieces if piece]) > 1, "it does not stream")
            refused = server.complete(PROMPT, guidance_scale=2.0, negative_prompt="x")
            check(refused.status == 400, f"guidance: {refused.status} {refused.text[:200]}")
            # The one thing that its caller reads.
            sys.stdout.write(
                f"streamed {len(pieces)} pieces through Neuron without CUDA: {text!r}\n"
            )
    finally:
        site.close()


def write_merges_as_in_2023(path: Path) -> None:
    """Pairs as text: what the tokenizers library of that year reads."""
    content = json.loads(path.read_text())
    merges = content["model"]["merges"]
    content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    path.write_text(json.dumps(content))


def greedy(checkpoint: Path, tokenizer_folder: Path) -> str:
    """What Transformers says in float32."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).float()
    ids = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=True)["input_ids"]
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False
    )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
