"""Served models over HTTP."""

from __future__ import annotations

import pytest

from tests.helpers.app_client import app_client
from tests.helpers.still_backend import make_state


@pytest.mark.parametrize("prefix", ["", "/openai"])
async def test_every_served_name_is_listed(prefix: str) -> None:
    """OpenAI's list, with the context length beside."""
    async with app_client(make_state()) as client:
        listed = (await client.get(f"{prefix}/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["still", "org/still"]
    assert {card["max_model_len"] for card in listed["data"]} == {64}


@pytest.mark.parametrize("name", ["still", "org/still"])
async def test_a_model_is_found_by_its_name_with_slashes_too(name: str) -> None:
    """The card is the one in the list."""
    async with app_client(make_state()) as client:
        card = (await client.get(f"/v1/models/{name}")).json()
        listed = (await client.get("/v1/models")).json()["data"]
    assert card in listed
    assert (card["id"], card["object"]) == (name, "model")


async def test_an_unknown_model_is_a_404() -> None:
    """With OpenAI's code."""
    async with app_client(make_state()) as client:
        answer = await client.get("/v1/models/gpt-4")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_before_loading_has_ended_no_model_is_served() -> None:
    """Who polls this route for readiness waits."""
    async with app_client(make_state(is_loaded=False)) as client:
        answer = await client.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")


async def test_a_draining_server_still_shows_its_model() -> None:
    """Looking costs nothing."""
    state = make_state()
    state.draining = True
    async with app_client(state) as client:
        assert (await client.get("/v1/models")).status_code == 200
