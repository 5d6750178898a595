"""What the engine process does with messages between two steps."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.scripted_channel import ScriptedChannel
from tests.helpers.toy_runner import ToyRunner, expected_tokens, make_core
from tgwui_k8s.contract import GenerationRequest
from tgwui_k8s.engine.messages import AdapterChanged, AddRequest, LoadAdapter, StepOutput
from tgwui_k8s.engine.process import StepLoop
from tgwui_k8s.sampling import SamplingParams


class ToyAdapterRunner(ToyRunner):
    """Trips over every adapter."""

    def load_adapter(self, key: str, folder: Path) -> None:
        raise KeyError("lora_A")

    def unload_adapter(self, key: str) -> None:
        raise AssertionError("nothing was loaded")


def test_an_adapter_that_nobody_knows_to_refuse_ends_no_engine() -> None:
    """The load fails with what there is to say; a stream under way does not notice."""
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    request = GenerationRequest(request_id="a", prompt_token_ids=(1, 2), params=params)
    channel = ScriptedChannel([AddRequest(request)], [LoadAdapter("it", "/somewhere")])

    StepLoop(make_core(ToyAdapterRunner())).run(channel)  # type: ignore[arg-type]

    (answer,) = [message for message in channel.sent if isinstance(message, AdapterChanged)]
    assert answer.error_kind == "StartupError"
    assert "the adapter 'it' cannot be loaded: KeyError" in answer.message
    steps = [message for message in channel.sent if isinstance(message, StepOutput)]
    deltas = [d for step in steps for output in step.requests for d in output.deltas]
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert tokens == expected_tokens((1, 2), params)
