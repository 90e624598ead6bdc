"""A reward model behind a server: vLLM's `/pooling`, which applies the model's chat template and gives its score."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ..backoff import retry_after_s
from ..engines.remote.servers import error_text, normal_address, read_key
from ..engines.remote.transport import Transport
from ..engines.remote.untrusted import clean_text, count_or_none, name_or_none
from ..engines.remote.wire import MALFORMED, Reply
from ..errors import EngineError, EngineUnavailableError, quoted
from ..messages import conversation
from ..models import ModelRef
from .reward_model import Scored


TIMEOUT_S = 120.0
ATTEMPTS = 6
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504}


class EndpointScorer:
    """Scores conversations by a server's `/pooling`.

    `api_key_env`: name of the variable with its key; without it none is sent, the Hub's login neither. `concurrency`:
    requests at once. A conversation beyond `max_length` is cut by the server (`truncate_prompt_tokens`).
    """

    def __init__(
        self, endpoint: str, ref: ModelRef, *, api_key_env: str | None = None, concurrency: int = 32, max_length: int = 4096
    ) -> None:  # fmt: skip
        self._address = normal_address(endpoint, ("/pooling", "/v1"))
        self._model = ref.name
        self._key = read_key(api_key_env)
        self._max_length = max_length
        self._concurrency = concurrency

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """Return the reward of each (instruction, response), in order.

        Raises:
            EngineUnavailableError: the server does not answer, or only with transient errors.
            EngineError: the server refuses what is asked of it.
        """
        transport = self._transport()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="magpie-reward")
        transport.start()
        try:
            return list(pool.map(partial(self._score, transport), pairs))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            transport.close()

    def _transport(self) -> Transport:
        """Return connections to the server: its replies are read as those of all servers, as untrusted."""
        return Transport(
            [self._address],
            judge=lambda *_: None,
            recognise=lambda *_: None,
            probe_path="/pooling",
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
            concurrency=self._concurrency,
            timeout_s=TIMEOUT_S,
        )

    def _score(self, transport: Transport, pair: tuple[str, str]) -> Scored:
        texts = [clean_text(text) for text in pair]
        messages = conversation((texts[0], texts[1]))
        body = {
            "model": self._model,
            "messages": messages,
            "add_generation_prompt": False,
            "truncate_prompt_tokens": self._max_length,
        }
        reply = self._ask(transport, body)
        if reply.status != 200:
            return Scored(None, error=f"status {reply.status}: {_message(reply)}"[:200])
        tokens, reward = _tokens(reply), _single(reply)
        if reward is None:
            return Scored(None, tokens=tokens, error=_message(reply) or "the server gave no single number")
        return Scored(reward, tokens >= self._max_length, tokens)

    def _ask(self, transport: Transport, body: dict[str, Any]) -> Reply:
        """Return the reply to a row's request: a score, or a refusal of this row."""
        wait, last = FIRST_WAIT_S, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(wait)
                wait *= 2
            reply = transport.ask(transport.endpoints[0], "POST", "/pooling", body, timeout_s=TIMEOUT_S)
            if reply.fault is not None:
                last = reply.fault.message
            elif reply.status in _TRANSIENT:
                last = f"status {reply.status}"
                asked = retry_after_s(reply.headers.get("Retry-After")) or 0.0
                wait = max(wait, min(asked, LONGEST_WAIT_S))
            elif reply.status in (200, 400, 413, 422):
                return reply
            else:
                raise EngineError(
                    f"The reward server says {reply.status}: {quoted(_message(reply))}.",
                    where=f"{self._address}/pooling",
                    hint="Check address, model and key (api_key_env).",
                )
        raise EngineUnavailableError(
            f"The reward server does not answer ({last}, {ATTEMPTS} times).",
            where=f"{self._address}/pooling",
            hint="Look at the server, then run the same command again: finished rows are kept.",
        )

    def close(self) -> None:
        """Nothing stays open between calls of `score`."""


def _message(reply: Reply) -> str:
    return name_or_none(error_text(reply.payload)) or ""


def _tokens(reply: Reply) -> int:
    usage = reply.payload.get("usage") if isinstance(reply.payload, dict) else None
    return (count_or_none(usage.get("prompt_tokens")) if isinstance(usage, dict) else None) or 0


def _single(reply: Reply) -> float | None:
    """Return the one finite number of a reply: `data[0].data`, however it is wrapped; None if there is none."""
    try:
        found = reply.payload["data"][0]["data"]
        while isinstance(found, list):
            (found,) = found
        reward = float(found) if type(found) in (int, float) else math.nan
        return reward if math.isfinite(reward) else None
    except MALFORMED:
        return None
