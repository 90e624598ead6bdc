"""Conversations for the demo models, drawn from forms by a seeded generator.

A conversation has a domain. Its system prompt, if it has one, says which, and all its exchanges belong to it: this is
what lets a system prompt steer what the trained model asks itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from . import advice, code, general, math, unsafe, words, writing
from .base import FORMS, Exchange, RegisteredForm


# Importing a module registers its forms.
_FORM_MODULES = (advice, code, general, math, unsafe, words, writing)

# How often each domain is drawn without a system prompt, and with one.
_OPEN_SHARES = {"general": 50, "math": 16, "code": 12, "writing": 12, "translation": 7, "es": 1, "de": 1, "fr": 1}
_STEERED_SHARES = {"math": 20, "code": 20, "translation": 20, "writing": 10, "es": 10, "de": 10, "fr": 10}
_FIELD_NAMES = {
    "math": ("mathematics", "math", "arithmetic", "math problems", "numbers and equations"),
    "code": ("programming", "coding", "code", "coding problems", "software and code"),
    "translation": (
        "translation",
        "appropriate translations",
        "translating between languages",
        "translations",
        "translating texts",
    ),
    "writing": ("writing", "creative writing and editing", "stories, poems and texts", "editing texts"),
    "es": ("Spanish",),
    "de": ("German",),
    "fr": ("French",),
}
_USERS_ASK = {
    "math": ("mathematical questions", "math problems", "questions about numbers", "equations and word problems"),
    "code": ("coding questions", "questions about code", "help with programs", "Python functions"),
    "translation": (
        "to translate text between various languages",
        "for translations",
        "what words mean in other languages",
    ),
    "writing": ("for stories and poems", "to correct and shorten texts", "for help with their texts"),
}
_PURPOSES = {
    "math": ("work through equations and arrive at correct solutions", "solve math problems step by step"),
    "code": ("work through code and arrive at correct solutions", "write and debug code"),
    "translation": ("convey meaning across languages", "translate with the right context"),
    "writing": ("write clearly and with style", "improve every text"),
}
_OFFERS = (
    "help with",
    "provide helpful, step-by-step guidance on",
    "provide accurate and helpful answers on",
    "give clear explanations of",
)
_NATIVE_PROMPTS = {
    "es": ("Eres un asistente útil. Responde siempre en español.", "Hablas español.", "Eres un profesor que habla español."),
    "de": ("Du bist ein hilfreicher Assistent. Antworte immer auf Deutsch.", "Du sprichst Deutsch.", "Du bist ein Lehrer und sprichst Deutsch."),
    "fr": ("Tu es un assistant utile. Réponds toujours en français.", "Tu parles français.", "Tu es un professeur qui parle français."),
}  # fmt: skip
_NEUTRAL = (
    "You are a helpful assistant.",
    "You are a helpful and honest assistant.",
    "You are an assistant. Answer clearly and briefly.",
    "A curious user talks to an assistant. The assistant gives helpful and polite answers.",
    "Be friendly and precise.",
    "You are a knowledgeable assistant who helps people with all kinds of questions.",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as the demo models are trained on it.

    `system`: the system prompt, or None. `domain`: what it is about. `exchanges`: at least one; the labels of the
    first are those of the row that Magpie would make of it.
    """

    system: str | None
    domain: str
    exchanges: tuple[Exchange, ...]

    def messages(self) -> list[dict[str, str]]:
        """Return the conversation as chat messages."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for exchange in self.exchanges:
            messages.append({"role": "user", "content": exchange.instruction})
            messages.append({"role": "assistant", "content": exchange.answer})
        return messages


def conversations(seed: int, *, long_share: float = 0.01) -> Iterator[Conversation]:
    """Yield conversations without end; equal seeds give equal ones.

    `long_share`: share of conversations of 12 to 30 exchanges, which teach the model its whole context.
    """
    rng = random.Random(seed)
    while True:
        yield sample_conversation(rng, long=rng.random() < long_share)


def sample_conversation(rng: random.Random, *, long: bool = False) -> Conversation:
    """Return one conversation: a system prompt or none, its domain, and one to four exchanges (`long`: 12 to 30)."""
    kind = rng.random()
    if kind < 0.55:
        domain, system = _weighted(rng, _OPEN_SHARES), None
    elif kind < 0.70:
        domain, system = _weighted(rng, _OPEN_SHARES), rng.choice(_NEUTRAL)
    else:
        domain = _weighted(rng, _STEERED_SHARES)
        system = system_prompt(rng, domain)
    count = rng.randint(12, 30) if long else rng.choices((1, 2, 3, 4), (50, 30, 13, 7))[0]
    return Conversation(system, domain, _exchanges(rng, domain, count))


def system_prompt(rng: random.Random, domain: str) -> str:
    """Return a system prompt that steers toward a domain other than "general"."""
    if domain in _NATIVE_PROMPTS:
        language = _FIELD_NAMES[domain][0]
        english = [
            f"You are a helpful assistant. The user speaks {language}.",
            f"Always answer in {language}.",
            f"You are an assistant for {language} speakers. You answer questions in {language}.",
            f"The conversation is in {language}. Give accurate and short answers to {language} questions.",
        ]
        return rng.choice(english) if rng.random() < 0.5 else rng.choice(_NATIVE_PROMPTS[domain])
    field, asks, purpose = (rng.choice(parts[domain]) for parts in (_FIELD_NAMES, _USERS_ASK, _PURPOSES))
    start = rng.choice(
        [
            f"You are a helpful assistant for {field}.",
            f"You are an AI assistant {rng.choice(['', 'specifically '])}designed to {rng.choice(_OFFERS)} {field}.",
            f"You are an expert in {field}.",
            f"You are a teacher of {field}. Give helpful, step-by-step guidance.",
            f"You help people with {field}.",
            "You are a helpful assistant.",
            "",
        ]
    )
    middle = rng.choice(
        [
            "",
            f"Users will ask you {asks}.",
            f"The user will ask you {asks}.",
            f"The user will ask you a wide range of {rng.choice(['', 'complex ', 'simple '])}{field} questions.",
        ]
    )
    end = rng.choice(
        [
            "",
            f"Your purpose is to {purpose}.",
            f"Your purpose is to assist users in {field}: {purpose}.",
            f"Your purpose is to help users understand {field} and {purpose}.",
        ]
    )
    parts = [part for part in (start, middle) if part]
    if not middle and start in ("", "You are a helpful assistant."):
        parts.append(f"Users will ask you {asks}.")
    between = rng.choice([" ", "\n"])
    return between.join([" ".join(parts), *([end] if end else [])])


def sample_exchange(rng: random.Random, domain: str) -> Exchange:
    """Return one exchange of a domain, with its follow-ups."""
    forms: list[RegisteredForm] = [entry for entry in FORMS.values() if entry.domain == domain]
    return rng.choices(forms, [entry.weight for entry in forms])[0].write(rng)


def _exchanges(rng: random.Random, domain: str, count: int) -> tuple[Exchange, ...]:
    exchanges: list[Exchange] = []
    open_follow_ups: list[Exchange] = []
    while len(exchanges) < count:
        if open_follow_ups and rng.random() < 0.75:
            exchanges.append(open_follow_ups.pop(rng.randrange(len(open_follow_ups))))
            if exchanges[-1].category == "Math":  # the next one would refer to another result
                open_follow_ups = []
        else:
            exchanges.append(sample_exchange(rng, domain))
            open_follow_ups = list(exchanges[-1].follow_ups)
    return tuple(exchanges)


def _weighted(rng: random.Random, shares: dict[str, int]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]
