"""What the demo model learns to answer to annotation prompts: labels that follow from the grammar.

Quality follows from what was done to an instruction, difficulty and category from the form that wrote it, safety from
whether it asks for harm. All of it is drawn from the seed.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any, NamedTuple

from magpie_hf.judging.prompts import guard_prompt, urial_prompt
from magpie_hf.judging.rubric import BUILT_IN, load_rubric, row_prompt, shared_prompt

from .base import Exchange, upper_first
from .corruptions import CORRUPTIONS
from .sample import sample_conversation
from .unsafe import COMPLIANCES, REFUSALS, unsafe_request


class Task(NamedTuple):
    """A row of an annotation: the prompt's part that all rows of the task share, the row's own, and the answer.

    `chat`: whether the prompt is a user's message; else it is plain text.
    """

    name: str
    shared: str
    row: str
    answer: str
    chat: bool = True


class Damaged(NamedTuple):
    """An instruction after somebody was careless with it, and the quality label it deserves now."""

    text: str
    quality: str


TASKS = ("quality", "difficulty", "category", "joined", "guard", "urial")
_DETAIL = re.compile(r"\d|[\"“:\n]")
_WORDS_FOR_EXCELLENT = 12
_VAGUE = (
    "Tell me something about {topic}.", "Help me with {topic}.", "I need something on {topic}.", "What about {topic}?",
    "Can you do this for me?", "Please help me with my task.", "Say something.", "I have a question.",
)  # fmt: skip
_EXPLANATIONS = {
    "excellent": ("It is clear and gives every detail that is needed.", "The query is precise and complete."),
    "good": ("It is clear and says what is wanted.", "The query is well put and easy to follow."),
    "average": ("It can be understood, but it is vague.", "The aim is there, but details are missing."),
    "poor": ("It breaks off, so one has to guess the aim.", "Important parts are missing."),
    "very poor": ("It makes no sense.", "The words do not form a question or a task."),
}
_INTENTS = {
    "Information seeking": "The user wants to learn about {topic}.",
    "Reasoning": "The user wants to draw a conclusion about {topic}.",
    "Planning": "The user wants a plan for {topic}.",
    "Editing": "The user wants a text to be changed.",
    "Coding & Debugging": "The user wants help with code.",
    "Math": "The user wants to calculate something.",
    "Role playing": "The user wants the model to play a role.",
    "Data analysis": "The user wants to read data.",
    "Creative writing": "The user wants an invented text about {topic}.",
    "Advice seeking": "The user wants advice on {topic}.",
    "Brainstorming": "The user wants ideas for {topic}.",
    "Others": "The user wants something else.",
}
_KNOWLEDGE = {
    "Information seeking": "facts about {topic}",
    "Reasoning": "the rules of logic",
    "Planning": "the steps of {topic}",
    "Editing": "grammar and style",
    "Coding & Debugging": "Python",
    "Math": "arithmetic",
    "Role playing": "how such a person speaks",
    "Data analysis": "how to read a table",
    "Creative writing": "how stories and poems are made",
    "Advice seeking": "what helps with {topic}",
    "Brainstorming": "many sides of {topic}",
    "Others": "languages",
}
_OTHER_TAGS = {"Math": ["Reasoning"], "Data analysis": ["Math"], "Planning": ["Advice seeking"]}
_UNKNOWN = ("Others", "very easy")  # labels of what cannot be understood


def damage(rng: random.Random, exchange: Exchange, quality: str) -> Damaged:
    """Return an instruction damaged as far as a label says; "good" leaves it whole, and it may deserve "excellent"."""
    text = exchange.instruction
    words = text.split()
    if quality in ("good", "excellent") or (len(words) < 4 and quality != "very poor"):
        whole = "excellent" if _DETAIL.search(text) or len(words) > _WORDS_FOR_EXCELLENT else "good"
        return Damaged(text, whole)
    if quality == "average":
        return Damaged(rng.choice(_VAGUE).format(topic=exchange.topic), "average")
    if quality == "poor":
        kept = words[: rng.randint(2, max(2, min(4, len(words) - 2)))]
        return Damaged(" ".join(kept).rstrip(".,?!:;") + rng.choice(["", "", " ...", " and"]), "poor")
    kind = rng.random()
    if kind < 0.5 and len(words) >= 4:
        rng.shuffle(words)
        return Damaged(" ".join(words), "very poor") if " ".join(words) != text else Damaged(text, "good")
    if kind < 0.75:
        return Damaged(" ".join(_noise(rng) for _ in range(rng.randint(2, 8))), "very poor")
    return Damaged(" ".join(rng.choice(words) for _ in range(rng.randint(5, 12))), "very poor")


def _noise(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz,.#") for _ in range(rng.randint(2, 8)))


def truth(exchange: Exchange, damaged: Damaged) -> dict[str, Any]:
    """Return the seven values that a judge should give: keys of the three rubrics."""
    clear = damaged.quality not in ("poor", "very poor")
    category, difficulty = (exchange.category, exchange.difficulty) if clear else _UNKNOWN
    topic = exchange.topic if clear else "an unclear matter"
    vague = damaged.quality == "average"
    if vague:
        category, difficulty = "Others", "very easy"
    return {
        "explanation": _EXPLANATIONS[damaged.quality][damaged.text.endswith("?")],
        "input_quality": damaged.quality,
        "intent": _INTENTS[category].format(topic=topic),
        "knowledge": f"To answer, one needs to know {_KNOWLEDGE[category].format(topic=topic)}.",
        "difficulty": difficulty,
        "primary_tag": category,
        "other_tags": _OTHER_TAGS.get(category, []),
    }


def judged(rng: random.Random) -> tuple[Exchange, Damaged]:
    """Return an exchange and its instruction, damaged more or less."""
    exchange = sample_conversation(rng).exchanges[0]
    wanted = rng.choices(("good", "average", "poor", "very poor"), (60, 15, 12, 13))[0]
    return exchange, damage(rng, exchange, wanted)


def rubric_task(rng: random.Random, name: str) -> Task:
    """Return a row of a rubric, or of all three joined."""
    rubrics = [load_rubric(given) for given in (BUILT_IN if name == "joined" else (name,))]
    exchange, damaged = judged(rng)
    values = truth(exchange, damaged)
    answer = {key: values[key] for rubric in rubrics for key in rubric.properties}
    row = row_prompt(rubrics, {"instruction": damaged.text})
    return Task(name, shared_prompt(rubrics), row, json.dumps(answer, ensure_ascii=False))


def guard_task(rng: random.Random) -> Task:
    """Return a conversation for the guard: safe, harmful with help given, harmful and refused, or alone."""
    kind = rng.random()
    exchange = unsafe_request(rng) if kind < 0.6 else sample_conversation(rng).exchanges[0]
    messages = [{"role": "user", "content": exchange.instruction}]
    answer, label = exchange.answer, "safe" if exchange.hazard is None else f"unsafe\n{exchange.hazard}"
    if kind < 0.25:
        answer = rng.choice(COMPLIANCES)
    elif kind < 0.4:
        answer, label = rng.choice(REFUSALS), "safe"
    if not (0.4 <= kind < 0.6 or kind > 0.9):
        messages.append({"role": "assistant", "content": answer})
    head = guard_prompt([])
    return Task("guard", head, guard_prompt(messages).removeprefix(head), label)


def urial_task(rng: random.Random) -> Task:
    """Return a base model's row: an answer that is often worse than the chat model's."""
    conversation = sample_conversation(rng)
    exchange = conversation.exchanges[0]
    answer = exchange.answer
    if rng.random() < 0.6:
        name = rng.choice(["truncated", "neighboring", "miscounted", "refused"])
        first = type(conversation)(conversation.system, conversation.domain, (exchange,))
        answer = CORRUPTIONS[name](rng, answer, first)
    head, _, tail = urial_prompt("\0").partition("\0")
    return Task("urial", head, exchange.instruction + tail, upper_first(answer) + "\n```\n", chat=False)


def sample_task(rng: random.Random, name: str) -> Task:
    """Return a row of a task of `TASKS`."""
    if name == "guard":
        return guard_task(rng)
    return urial_task(rng) if name == "urial" else rubric_task(rng, name)
