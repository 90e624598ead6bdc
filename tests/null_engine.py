"""An engine without a model: its text is a pure function of prompt and seed. For tests and for measuring overhead."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from magpie_hf.engines.base import Capabilities, Engine, Failure, Generation, Request, Served, setting


@dataclass(frozen=True)
class NullSettings:
    window: int = setting(64, "Requests in flight.", silent=True)
    unfinished_every: int = setting(0, "Every so many seeds end by length.", silent=True)
    log_requests: bool = setting(True, "Keep a log of requests.", silent=True)
    reverse: bool = setting(False, "Answer the last request first.", silent=True)


class NullEngine(Engine):
    """Responds at once. `window`: requests in flight. `unfinished_every`: seeds divisible by it end by length.

    `fail`: request numbers (counted from 0) that fail: {number: Failure}. `die_after`: raise KeyboardInterrupt then.
    """

    name = "null"
    settings_class = NullSettings
    settings: NullSettings
    log: list[tuple[str, int | None]] = []  # noqa: RUF012 (what all instances were asked, for tests)
    opened = 0
    fail: dict[int, Failure] = {}  # noqa: RUF012
    die_after: int | None = None
    served_now: Served | None = None

    def __init__(self, model, **given):
        super().__init__(model, **given)
        self.window = self.settings.window

    @classmethod
    def reset(cls) -> None:
        cls.log = []
        cls.opened, cls.fail, cls.die_after, cls.served_now = 0, {}, None, None

    def open(self) -> None:
        type(self).opened += 1

    def capabilities(self) -> Capabilities:
        return Capabilities(max_n=self.window)

    @property
    def served(self) -> Served | None:
        return self.served_now

    def close(self) -> None:
        pass

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Generation]:
        flying: deque[Request] = deque()
        for request in requests:
            if request is not None:
                flying.append(request)
                if len(flying) < self.window:
                    continue
            yield self._answer(flying.pop() if self.settings.reverse else flying.popleft())
        while flying:
            yield self._answer(flying.popleft())

    def _answer(self, request: Request) -> Generation:
        number = self.stats.requests
        self.stats.requests += 1
        if self.die_after is not None and number >= self.die_after:
            raise KeyboardInterrupt
        if self.settings.log_requests:
            self.log.append((request.prompt.text, request.sampling.seed))
        if number in self.fail:
            return Generation(request.key, failure=self.fail[number])
        seed = request.sampling.seed
        digest = hashlib.blake2b(f"{request.prompt.text}\0{seed}".encode(), digest_size=6).hexdigest()
        cut = bool(self.settings.unfinished_every) and seed is not None and seed % self.settings.unfinished_every == 0
        return Generation(
            request.key,
            text=f"What is the meaning of {digest}?",
            finish_reason="length" if cut else "stop",
            prompt_tokens=10,
            completion_tokens=12,
            seed=seed,
            served=self.served_now,
        )
