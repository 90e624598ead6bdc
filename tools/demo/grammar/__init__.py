"""The grammar that the demo models learned from: forms of exchanges, conversations drawn from them, judging tasks."""

from .base import CATEGORIES, DIFFICULTIES, FORMS, Exchange
from .sample import Conversation, conversations, sample_conversation, sample_exchange, system_prompt


__all__ = [
    "CATEGORIES",
    "DIFFICULTIES",
    "FORMS",
    "Conversation",
    "Exchange",
    "conversations",
    "sample_conversation",
    "sample_exchange",
    "system_prompt",
]
