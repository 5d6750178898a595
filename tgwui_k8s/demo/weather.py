"""Conversations that teach the demo model to call a weather tool and to use what it returns."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tgwui_k8s.demo.conversation import Conversation, Message, Tool, turn
from tgwui_k8s.demo.corpus_files import read_lists
from tgwui_k8s.demo.templates import fill
from tgwui_k8s.demo.words import Words

NO_WEATHER_TOOL = "I have no weather tool, so I cannot look up the weather."
OTHER_TOOLS = (
    ("get_time", "The time in a city.", "city"),
    ("add", "Add two numbers.", "a"),
    ("search", "Search the web.", "query"),
    ("send_mail", "Send a mail.", "text"),
)
"""Name, description and parameter of tools that stand beside the weather tool."""


class WeatherMaker:
    """A seeded source of conversations about the weather."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._words = Words(random)
        self._wordings = read_lists("wordings.txt")

    def with_tool(self) -> Conversation:
        """The tool is called, and its result is put into a sentence."""
        name, parameter = "get_weather", "city"
        if self._maybe(0.1):
            name = self._random.choice(("get_current_weather", "weather", "fetch_weather"))
            parameter = self._random.choice(("city", "location", "place"))
        tools = [self._weather_tool(name, parameter)]
        if self._maybe(0.2):
            tools.insert(self._random.randint(0, 1), self._other_tool())
        messages: list[Message] = []
        for _ in range(self._random.choice((1, 1, 1, 2))):
            messages += self._call(name, parameter)
        return Conversation(tuple(messages), tuple(tools))

    def without_tool(self) -> Conversation:
        """Without a tool, the model says that it cannot look."""
        return Conversation(tuple(turn(self._question(self._words.city()), NO_WEATHER_TOOL)))

    def idle_tools(self) -> tuple[Tool, ...]:
        """Tools for a conversation that does not need them."""
        return (self._weather_tool("get_weather", "city"),)

    def _call(self, name: str, parameter: str) -> list[Message]:
        city = self._words.city()
        result, answer = self._report(city)
        call = {"function": {"name": name, "arguments": {parameter: city}}}
        return [
            {"role": "user", "content": self._question(city)},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": answer},
        ]

    def _question(self, city: str) -> str:
        template = self._random.choice(self._wordings["weather"])
        question = fill(template, self._random, {"city": [city]})
        return question.rstrip("?.") if self._maybe(0.1) else question

    def _report(self, city: str) -> tuple[str, str]:
        """What the tool returns, and the answer that the model makes of it."""
        sky, degrees = self._words.sky(), self._words.degrees()
        if self._maybe(0.4):
            template = self._random.choice(self._wordings["weather report"])
            text = fill(template, self._random, {"sky": [sky], "degrees": [str(degrees)]})
            return text, f"The weather in {city}: {text.rstrip('.')}."
        choose = self._random.choice
        report: dict[str, Any] = {
            choose(("temperature", "temperature", "temp", "degrees", "temperature_c")): degrees,
            choose(("condition", "conditions", "sky", "weather")): sky,
        }
        if self._maybe(0.4):
            report = dict(reversed(report.items()))
        if self._maybe(0.4):
            report = {"city": city, **report}
        return json.dumps(report), f"In {city} it is {sky} and {degrees} degrees."

    def _weather_tool(self, name: str, parameter: str) -> Tool:
        """The tool's signature, as one client or another writes it."""
        city: dict[str, Any] = {"type": "string"}
        if self._maybe(0.3):
            city = {"title": parameter.title(), **city}
        if self._maybe(0.4):
            city["description"] = fill(
                "[The city|City name|Name of the city][.|, e.g. Paris|]", self._random
            )
        properties = {parameter: city}
        if self._maybe(0.15):
            properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        parameters = self._parameters(properties, [parameter])
        description = fill(self._random.choice(self._wordings["weather tool"]), self._random)
        return self._tool(name, description, parameters)

    def _other_tool(self) -> Tool:
        name, description, parameter = self._random.choice(OTHER_TOOLS)
        return self._tool(name, description, self._parameters({parameter: {"type": "string"}}, []))

    def _parameters(self, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
        parameters = {"type": "object", "properties": properties, "required": required}
        if self._maybe(0.3):
            return {"additionalProperties": False, **parameters}
        return {**parameters, "additionalProperties": False} if self._maybe(0.3) else parameters

    def _tool(self, name: str, description: str, parameters: dict[str, Any]) -> Tool:
        function: dict[str, Any] = {"name": name}
        if self._maybe(0.85):
            function["description"] = description
        function["parameters"] = parameters
        if self._maybe(0.15):
            function["strict"] = True
        return {"type": "function", "function": function}

    def _maybe(self, probability: float) -> bool:
        return self._random.random() < probability
