"""Documents that the demo model is trained on: what to draw, how often, and in which form."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tgwui_k8s.demo.conversation import Conversation, Message, turn
from tgwui_k8s.demo.corpus_files import (
    Flag,
    Recipe,
    Topic,
    read_flags,
    read_lists,
    read_recipes,
    read_slots,
    read_texts,
    read_topics,
)
from tgwui_k8s.demo.json_answers import JsonMaker
from tgwui_k8s.demo.repetition import RepetitionMaker
from tgwui_k8s.demo.templates import fill, fill_skewed
from tgwui_k8s.demo.weather import WeatherMaker


class DocumentMaker:
    """An endless, seeded source of documents: plain texts and conversations."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 (not for secrets)
        self._project = read_topics("project.txt")
        self._talk = read_topics("talk.txt")
        self._flags = read_flags()
        self._wordings = read_lists("wordings.txt")
        self._prose = read_texts("prose.txt")
        self._stories = read_texts("stories.txt")
        self._story_slots = read_slots("stories.txt")
        self._recipes = read_recipes()
        self._recipe_slots = read_slots("recipes.txt")
        self._weather = WeatherMaker(self._random)
        self._json = JsonMaker(self._random)
        self._repetition = RepetitionMaker(self._random, self._sentences())
        self._small_words = set(self._wordings["small words"][0].split())
        self._kinds: dict[Callable[[], str | Conversation], float] = {
            self._questions: 42.0,
            self._about_weather: 12.0,
            self._in_json: 12.0,
            self._to_repeat: 10.0,
            self._on_request: 5.0,
            self._recipe: 5.0,
            self._story: 6.0,
            self._plain_questions: 5.0,
            self._statements: 3.0,
            self._prose_text: 2.0,
        }

    def next(self) -> str | Conversation:
        """Another document."""
        make = self._random.choices(list(self._kinds), list(self._kinds.values()))[0]
        return make()

    def _questions(self) -> Conversation:
        messages = self._system()
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            messages += turn(*self._question_and_answer())
        tools = self._weather.idle_tools() if self._maybe(0.06) else ()
        return Conversation(tuple(messages), tools)

    def _about_weather(self) -> Conversation:
        if self._maybe(0.12):
            return self._with_system(self._weather.without_tool())
        return self._with_system(self._weather.with_tool())

    def _in_json(self) -> Conversation:
        return self._with_system(self._json.next())

    def _to_repeat(self) -> Conversation:
        return self._with_system(self._repetition.next())

    def _on_request(self) -> Conversation:
        """A recipe or a story that the user asked for."""
        if self._maybe(0.5):
            recipe = self._any_recipe()
            asked = self._wording("recipe", kind=recipe.kind)
            return Conversation((*self._system(), *turn(asked, self._cook(recipe))))
        return Conversation((*self._system(), *turn(self._wording("story"), self._tale())))

    def _recipe(self) -> str:
        return self._cook(self._any_recipe())

    def _any_recipe(self) -> Recipe:
        """Any kind, cake above all."""
        return self._recipes[0] if self._maybe(0.2) else self._random.choice(self._recipes)

    def _cook(self, recipe: Recipe) -> str:
        steps = [
            step.removeprefix("? ")
            for step in recipe.steps
            if not step.startswith("? ") or self._maybe(0.35)
        ]
        numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
        closing = f"\n\n{recipe.closing}" if self._maybe(0.7) else ""
        article = "an" if recipe.kind[0] in "aeio" else "a"
        text = f"This is {article} {recipe.kind} recipe:\n\n{numbered}{closing}"
        return fill_skewed(text, self._random, self._recipe_slots)

    def _story(self) -> str:
        return self._from_anywhere(self._tale())

    def _tale(self) -> str:
        return fill_skewed(self._random.choice(self._stories), self._random, self._story_slots)

    def _plain_questions(self) -> str:
        """Questions and answers as a text to be continued."""
        form = self._random.choice(("Question: {}\nAnswer: {}", "Q: {}\nA: {}"))
        pairs = [self._question_and_answer() for _ in range(self._random.randint(1, 3))]
        return "\n\n".join(form.format(*pair) for pair in pairs)

    def _statements(self) -> str:
        """Answers without their questions."""
        topics = self._random.choices(self._project + self._talk, k=self._random.randint(1, 3))
        return self._from_anywhere("\n".join(topic.answer for topic in topics))

    def _prose_text(self) -> str:
        return self._from_anywhere(fill_skewed(self._random.choice(self._prose), self._random))

    def _from_anywhere(self, text: str) -> str:
        """Often the text without its beginning, so that any prompt is the middle of something."""
        if self._maybe(0.6):
            return text
        words = text.split(" ")
        return " ".join(words[self._random.randrange(len(words)) :])

    def _sentences(self) -> list[str]:
        """The answers and the sentences of the prose, for repeating."""
        prose = [
            f"{part}." for text in self._prose for part in fill(text, self._random).split(". ")
        ]
        return [topic.answer for topic in self._project + self._talk] + prose

    def _question_and_answer(self) -> tuple[str, str]:
        draw = self._random.random()
        if draw < 0.25:
            question, answer = self._flag_question(self._random.choice(self._flags))
        else:
            topic: Topic = self._random.choice(self._project if draw < 0.78 else self._talk)
            question = fill(self._random.choice(topic.questions), self._random)
            answer = topic.answer
        return self._reworded(question), answer

    def _flag_question(self, flag: Flag) -> tuple[str, str]:
        if flag.default != "-" and self._maybe(0.25):
            question = self._wording("flag default", flag=flag.name)
            return question, f"The default of {flag.name} is {flag.default}."
        answer = f"The flag {flag.name} {flag.purpose}."
        if flag.default != "-":
            answer += f" The default is {flag.default}."
        if self._maybe(0.25):
            return self._wording("flag purpose", purpose=flag.purpose), answer
        question = self._wording("flag", flag=flag.name)
        return question.replace("--", "") if self._maybe(0.2) else question, answer

    def _reworded(self, question: str) -> str:
        """The question as a hurried human may write it."""
        if self._maybe(0.3):
            old, new = self._random.choice(self._wordings["same meaning"]).split(" = ")
            question = question.replace(old, new, 1)
        if self._maybe(0.15):
            lead_in = self._random.choice(self._wordings["lead-in"])
            question = f"{lead_in} {question[0].lower()}{question[1:]}"
        if self._maybe(0.15):
            question = question.lower()
        if self._maybe(0.12):
            question = question.rstrip("?.!")
        if self._maybe(0.06):
            spot = self._random.randrange(len(question))
            question = question[:spot] + question[spot + 1 :]
        if self._maybe(0.2):
            kept = [word for word in question.split(" ") if not self._is_dropped(word)]
            question = " ".join(kept) or question
        return question

    def _is_dropped(self, word: str) -> bool:
        return word.lower() in self._small_words and self._maybe(0.6)

    def _wording(self, title: str, **values: str) -> str:
        slots = {name: [value] for name, value in values.items()}
        return fill(self._random.choice(self._wordings[title]), self._random, slots)

    def _system(self) -> list[Message]:
        if self._maybe(0.65):
            return []
        prompt = self._random.choice(self._wordings["system prompt"])
        return [{"role": "system", "content": prompt}]

    def _with_system(self, conversation: Conversation) -> Conversation:
        return Conversation((*self._system(), *conversation.messages), conversation.tools)

    def _maybe(self, probability: float) -> bool:
        return self._random.random() < probability
