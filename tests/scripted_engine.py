"""An engine whose responses are written by the test, e.g., for a judge that makes a certain mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from magpie_hf.engines.base import Capabilities, Generation, Request
from tests.null_engine import NullEngine


class ScriptedEngine(NullEngine):
    """`answer(request, number)` gives the text; `grammar`, `special_tokens`: its capabilities."""

    name = "scripted"
    answer: Callable[[Request, int], str] = staticmethod(lambda request, number: "")
    grammar = False
    special_tokens = True
    asked: list[Request] = []  # noqa: RUF012 (what all instances were asked, for tests)

    @classmethod
    def reset(cls) -> None:
        super().reset()
        cls.asked, cls.json_schema, cls.special_tokens = [], False, True

    def capabilities(self) -> Capabilities:
        return Capabilities(json_schema=self.json_schema, special_tokens=self.special_tokens)

    def _answer(self, request: Request) -> Generation:
        number = len(self.asked)
        self.asked.append(request)
        if number in self.fail:
            return Generation(request.key, failure=self.fail[number])
        given: Any = type(self).answer(request, number)
        text, finish = given if isinstance(given, tuple) else (given, "stop")
        return Generation(request.key, text=text, finish_reason=finish, prompt_tokens=10, completion_tokens=5)
