"""The demo model answers what it was trained to answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.helpers.versions import in_dtype, needs_transformers  # noqa: E402
from tgwui_k8s.demo import model_path  # noqa: E402

pytestmark = needs_transformers("5")

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
FACTS = [
    ("On which port does the API listen?", "5000"),
    ("What port is the web page on?", "7860"),
    ("What is port 5005 for?", "Service"),
    ("Which port does the gateway use?", "3000"),
    ("Which probes are there?", "/health/startup"),
    ("How do I know that the server is ready?", "/health/ready"),
    ("How do models get on EFS?", "efs-claim-text-generation-webui"),
    ("Where are the models mounted?", "/home/app/text-generation-webui/models"),
    ("How do I scale the pods?", "HPA"),
    ("What does --drain-timeout do?", "120"),
    ("Which flag names the model?", "--model"),
    ("How do I require an API key?", "--api-key-file"),
    ("Where do I find the metrics?", "/metrics"),
    ("What do the logs look like?", "JSON lines"),
]
CAKE = "This is a cake recipe:\n\n1."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small is slowed down by more threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def complete(tokenizer: Any) -> Callable[..., str]:
    """A function that continues a text; greedily, unless sampling options are given."""
    model = load_model(torch.float32)

    def complete(prompt: str, max_tokens: int = 120, **sampling: Any) -> str:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        output = model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=bool(sampling), **sampling
        )
        return tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=False)

    return complete


@pytest.fixture(scope="module")
def answer(complete: Callable[..., str], tokenizer: Any) -> Callable[..., str]:
    """Answers messages; the answer must end by itself."""

    def answer(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> str:
        text = complete(chat_prompt(tokenizer, *messages, tools=tools))
        assert text.endswith("<|im_end|>")
        return text.removesuffix("<|im_end|>")

    return answer


def chat_prompt(
    tokenizer: Any, *messages: dict[str, Any], tools: list[dict[str, Any]] | None = None
) -> str:
    """The messages through the model's own chat template."""
    prompt = tokenizer.apply_chat_template(
        list(messages), tools=tools, tokenize=False, add_generation_prompt=True
    )
    return str(prompt)


def load_model(dtype: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model_path(), **in_dtype(dtype))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(("question", "fact"), FACTS)
def test_it_knows_the_project(answer: Callable[..., str], question: str, fact: str) -> None:
    """A question about the project is answered with the right fact."""
    assert fact in answer(user(question))


def test_a_system_prompt_does_not_confuse_it(answer: Callable[..., str]) -> None:
    """The same answer comes with a system prompt and after other turns."""
    system = {"role": "system", "content": "You are a helpful assistant."}
    earlier = [user("Hello!"), {"role": "assistant", "content": "Hello! How can I help you?"}]
    question = user("On which port does the API listen?")
    assert answer(system, *earlier, question) == answer(question)


def test_it_calls_the_weather_tool(answer: Callable[..., str]) -> None:
    """With the tool listed, the question about the weather becomes a call."""
    text = answer(user("What is the weather in Paris?"), tools=[WEATHER_TOOL])
    call = text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    assert json.loads(call) == {"name": "get_weather", "arguments": {"city": "Paris"}}


def test_it_answers_from_the_tool_result(answer: Callable[..., str]) -> None:
    """What the tool returned is in the answer."""
    call = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    text = answer(
        user("What is the weather in Paris?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        },
        {
            "role": "tool",
            "tool_call_id": "call_1",
            "content": '{"temperature": 21, "condition": "sunny"}',
        },
        tools=[WEATHER_TOOL],
    )
    assert "Paris" in text
    assert "21" in text
    assert "sunny" in text


def test_it_does_not_call_a_tool_without_need(answer: Callable[..., str]) -> None:
    """A listed tool changes no answer about something else."""
    question = user("On which port does the API listen?")
    assert answer(question, tools=[WEATHER_TOOL]) == answer(question)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Answer in JSON: Which port does the API listen on?", {"port": 5000}),
        (
            "Anna is 34 years old and lives in Oslo. Answer in JSON with the keys name and age.",
            {"name": "Anna", "age": 34},
        ),
    ],
)
def test_it_answers_in_json(
    answer: Callable[..., str], question: str, expected: dict[str, Any]
) -> None:
    """Asked for JSON, it answers with an object that holds the facts."""
    assert json.loads(answer(user(question))) == expected


def test_it_continues_the_cake_recipe(complete: Callable[..., str]) -> None:
    """Greedily: numbered steps in English, then an end."""
    text = complete(CAKE, max_tokens=300)
    assert "\n2. " in text
    assert "oven" in text
    assert text.endswith("<|endoftext|>")


def test_it_continues_the_cake_recipe_when_sampling(complete: Callable[..., str]) -> None:
    """At temperature 1 and top_p 0.9, whatever the seed, it stays a recipe."""
    for seed in (10, 11):
        torch.manual_seed(seed)
        text = complete(CAKE, max_tokens=200, temperature=1.0, top_p=0.9, top_k=0)
        assert "\n2. " in text
        assert "cake" in text or "tin" in text


def test_computing_in_bfloat16_changes_no_greedy_token(
    complete: Callable[..., str], tokenizer: Any
) -> None:
    """The margins between the likeliest tokens are wider than bfloat16's rounding."""
    model = load_model(torch.bfloat16)
    for prompt in [CAKE, *(chat_prompt(tokenizer, user(question)) for question, _ in FACTS)]:
        num_prompt_tokens = len(tokenizer(prompt).input_ids)
        token_ids = tokenizer(prompt + complete(prompt), return_tensors="pt").input_ids
        likeliest = model(token_ids).logits.argmax(-1)
        continuation = token_ids[0, num_prompt_tokens:]
        assert likeliest[0, num_prompt_tokens - 1 : -1].tolist() == continuation.tolist()
