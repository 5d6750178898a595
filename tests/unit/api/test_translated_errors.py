"""Every field that a translated request can be refused for has the client's name."""

from __future__ import annotations

import pytest

from tgwui_k8s.api.invocations import FIELD_NAMES as OF_INVOCATIONS
from tgwui_k8s.api.messages_prompt import FIELD_NAMES as OF_MESSAGES
from tgwui_k8s.api.response_prompt import FIELD_NAMES as OF_RESPONSES
from tgwui_k8s.api.translated_errors import FieldNames, naming_fields
from tgwui_k8s.errors import ContextLengthError, InvalidRequestError


@pytest.mark.parametrize(
    ("names", "ours", "theirs"),
    [
        (OF_MESSAGES, "tools.3.function.parameters.x", "tools.3.input_schema.x"),
        (OF_MESSAGES, "tools.3.function.name", "tools.3.name"),
        (OF_MESSAGES, "tools", "tools"),
        (OF_MESSAGES, "parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
        (OF_MESSAGES, "max_completion_tokens", "max_tokens"),
        (OF_MESSAGES, "messages.2.content", "messages"),
        (OF_MESSAGES, "response_format", "output_config.format"),
        (OF_MESSAGES, "stop.0", "stop_sequences.0"),
        (OF_RESPONSES, "tools.3.function.parameters.x", "tools.3.parameters.x"),
        (OF_RESPONSES, "max_completion_tokens", "max_output_tokens"),
        (OF_RESPONSES, "response_format.json_schema.name", "text.format.name"),
        (OF_RESPONSES, "response_format.type", "text.format.type"),
        (OF_RESPONSES, "parallel_tool_calls", "parallel_tool_calls"),
        (OF_INVOCATIONS, "prompt", "inputs"),
        (OF_INVOCATIONS, "max_tokens", "parameters.max_new_tokens"),
        (OF_INVOCATIONS, "stop.0", "parameters.stop.0"),
        (OF_INVOCATIONS, "top_p", "parameters.top_p"),
        (OF_INVOCATIONS, "model", "model"),
    ],
)
def test_an_error_names_what_the_client_sent(names: FieldNames, ours: str, theirs: str) -> None:
    """In its `param` and in its words."""
    with pytest.raises(InvalidRequestError) as caught, naming_fields(names):
        raise InvalidRequestError(f"Invalid '{ours}': no.", param=ours)

    assert (caught.value.param, caught.value.message) == (theirs, f"Invalid '{theirs}': no.")


def test_what_is_said_without_quotes_is_translated_too() -> None:
    """How long a prompt is."""
    with pytest.raises(InvalidRequestError) as caught, naming_fields(OF_RESPONSES):
        raise ContextLengthError("your messages has 7 tokens", param="messages")

    assert caught.value.message == "your input has 7 tokens"


def test_an_error_without_a_field_stays() -> None:
    """Nothing to translate."""
    with pytest.raises(InvalidRequestError) as caught, naming_fields(OF_INVOCATIONS):
        raise InvalidRequestError("'' no")

    assert (caught.value.param, caught.value.message) == (None, "'' no")
