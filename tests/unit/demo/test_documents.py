"""The documents that the demo model is trained on are well formed and repeatable."""

from __future__ import annotations

import json
from itertools import pairwise

from tgwui_k8s.demo.conversation import Conversation
from tgwui_k8s.demo.corpus_files import read_flags, read_topics
from tgwui_k8s.demo.documents import DocumentMaker

NUM_DOCUMENTS = 2000


def documents(seed: int) -> list[str | Conversation]:
    """A few documents of every kind."""
    maker = DocumentMaker(seed)
    return [maker.next() for _ in range(NUM_DOCUMENTS)]


def test_the_same_seed_makes_the_same_documents() -> None:
    """Training is repeatable."""
    assert documents(3) == documents(3)


def test_no_template_mark_is_left_in_a_plain_text() -> None:
    """Every choice and slot is filled, and every recipe step is numbered."""
    for document in documents(1):
        if isinstance(document, str) and document.startswith("This is a"):
            assert not set("[]{}|?") & set(document)
            assert "\n\n1. " in document


def test_every_conversation_ends_with_the_assistant() -> None:
    """There is something to learn in each."""
    conversations = [d for d in documents(2) if isinstance(d, Conversation)]
    assert conversations
    assert all(c.messages[-1]["role"] == "assistant" for c in conversations)


def test_every_tool_call_names_a_listed_tool_and_the_city_asked_for() -> None:
    """What is learned about tools is true to the conversation."""
    num_calls = 0
    for document in documents(4):
        messages = document.messages if isinstance(document, Conversation) else ()
        for question, message in pairwise(messages):
            for call in message.get("tool_calls", ()):
                names = [tool["function"]["name"] for tool in document.tools]
                assert call["function"]["name"] in names
                assert all(
                    city in question["content"] for city in call["function"]["arguments"].values()
                )
                num_calls += 1
    assert num_calls > NUM_DOCUMENTS / 20


def test_answers_in_json_parse() -> None:
    """Whoever asks for JSON is shown an object."""
    num_objects = 0
    for document in documents(5):
        if isinstance(document, Conversation) and "JSON" in str(document.messages[-2]["content"]):
            answer = document.messages[-1]["content"]
            if answer.startswith("{"):
                assert isinstance(json.loads(answer), dict)
                num_objects += 1
    assert num_objects > NUM_DOCUMENTS / 20


def test_no_question_is_asked_under_two_answers() -> None:
    """A wording leads to one answer, or the model could only guess."""
    seen: dict[str, str] = {}
    for topic in [*read_topics("project.txt"), *read_topics("talk.txt")]:
        for question in topic.questions:
            assert seen.setdefault(question, topic.answer) == topic.answer, question


def test_the_flags_are_named_as_on_the_command_line() -> None:
    """Each line of the table begins with a flag."""
    assert all(flag.name.startswith("--") for flag in read_flags())
