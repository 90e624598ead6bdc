"""Ways to spoil an answer: what the reward model learns to dislike, and what a base model often writes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from .base import FORMS
from .sample import Conversation


def shuffled(rng: random.Random, answer: str, _: Conversation) -> str:
    """Put the words in another order."""
    words = re.findall(r"\S+\s*", answer)
    rng.shuffle(words)
    return "".join(words)


def truncated(rng: random.Random, answer: str, _: Conversation) -> str:
    """Break the answer off in its middle."""
    words = answer.split(" ")
    return " ".join(words[: rng.randint(1, max(1, len(words) * 2 // 3))]).rstrip(".,;:!")


def repeated(rng: random.Random, answer: str, _: Conversation) -> str:
    """Get stuck: say a part again and again."""
    words = answer.split(" ")
    start = rng.randrange(len(words))
    stuck = words[start : start + rng.randint(1, 6)]
    return " ".join(words[:start] + stuck * rng.randint(3, 6))


def off_topic(rng: random.Random, _: str, conversation: Conversation) -> str:
    """Answer another question."""
    entry = rng.choice(list(FORMS.values()))
    return entry.write(rng).answer


def neighboring(rng: random.Random, answer: str, conversation: Conversation) -> str:
    """Answer another question of the same form."""
    name = conversation.exchanges[-1].form.split("/")[0]
    for _ in range(5):
        other = FORMS[name].write(rng).answer
        if other != answer:
            return other
    return off_topic(rng, answer, conversation)


def miscounted(rng: random.Random, answer: str, conversation: Conversation) -> str:
    """Get the last number wrong."""
    numbers = list(re.finditer(r"\d+", answer))
    if not numbers:
        return truncated(rng, answer, conversation)
    last = numbers[-1]
    wrong = str(int(last.group()) + rng.choice([-3, -2, -1, 1, 2, 3, 10]))
    return answer[: last.start()] + wrong + answer[last.end() :]


def refused(rng: random.Random, _: str, __: Conversation) -> str:
    """Say nothing of use."""
    return rng.choice(
        ["I do not know.", "Sorry, I cannot help with that.", "Yes.", "OK.", "It depends.", "Why do you ask?"]
    )


CORRUPTIONS: dict[str, Callable[[random.Random, str, Conversation], str]] = {
    "shuffled": shuffled,
    "truncated": truncated,
    "repeated": repeated,
    "off_topic": off_topic,
    "neighboring": neighboring,
    "miscounted": miscounted,
    "refused": refused,
}
