"""A reward model behind a server: vLLM's `/pooling`, which applies the model's chat template and gives its score."""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .engines.servers import normal_address, read_key
from .errors import EngineError, EngineUnavailableError, quoted
from .models import ModelRef
from .reward_model import Scored


TIMEOUT_S = 120.0
ATTEMPTS = 6
FIRST_WAIT_S = 0.5
_TRANSIENT = {408, 409, 425, 429, 500, 502, 503, 504}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


class EndpointScorer:
    """Scores conversations by a server's `/pooling`.

    `api_key_env`: name of the variable with its key; without it none is sent, the Hub's login neither. `concurrency`:
    requests at once. A conversation beyond `max_length` is cut by the server (`truncate_prompt_tokens`).
    """

    def __init__(
        self, endpoint: str, ref: ModelRef, *, api_key_env: str | None = None, concurrency: int = 32, max_length: int = 4096
    ) -> None:  # fmt: skip
        self._url = normal_address(endpoint, ("/pooling", "/v1")) + "/pooling"
        self._model = ref.name
        self._key = read_key(api_key_env)
        self._max_length = max_length
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="magpie-reward")
        self._opener = urllib.request.build_opener(_NoRedirect())

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """Return the reward of each (instruction, response), in order.

        Raises:
            EngineUnavailableError: the server does not answer, or only with transient errors.
            EngineError: the server refuses what is asked of it.
        """
        return list(self._pool.map(self._score, pairs))

    def _score(self, pair: tuple[str, str]) -> Scored:
        messages = [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        body = {
            "model": self._model,
            "messages": messages,
            "add_generation_prompt": False,
            "truncate_prompt_tokens": self._max_length,
        }
        reply = self._ask(json.dumps(body).encode("utf-8", "replace"))
        if "error" in reply:
            return Scored(None, error=str(reply["error"])[:200])
        tokens = int(reply.get("usage", {}).get("prompt_tokens") or 0)
        reward = _single(reply)
        if reward is None or not math.isfinite(reward):
            return Scored(None, tokens=tokens, error="the server gave no single number")
        return Scored(reward, tokens >= self._max_length, tokens)

    def _ask(self, body: bytes) -> dict[str, Any]:
        wait, last = FIRST_WAIT_S, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(wait)
                wait *= 2
            request = urllib.request.Request(self._url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310 (the recipe's own address)
            if self._key:
                request.add_unredirected_header("Authorization", f"Bearer {self._key}")
            try:
                with self._opener.open(request, timeout=TIMEOUT_S) as reply:
                    found = json.loads(reply.read())
                return found if isinstance(found, dict) else {"error": "the reply is no object"}
            except urllib.error.HTTPError as error:
                text = error.read(500).decode("utf-8", "replace")
                if error.code not in _TRANSIENT:
                    return self._refused(error.code, text)
                last = f"status {error.code}"
                wait = max(wait, _retry_after(error))
            except (OSError, ValueError) as error:
                last = type(error).__name__
        raise EngineUnavailableError(
            f"The reward server does not answer ({last}, {ATTEMPTS} times).",
            where=self._url,
            hint="Look at the server, then run the same command again: finished rows are kept.",
        )

    def _refused(self, status: int, text: str) -> dict[str, Any]:
        """Return the error of one row, or raise what concerns them all."""
        if status in (400, 413, 422):
            return {"error": f"status {status}: {text[:150]}"}
        hint = "Check address, model and key (api_key_env)."
        raise EngineError(f"The reward server says {status}: {quoted(text)}.", where=self._url, hint=hint)

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _single(reply: dict[str, Any]) -> float | None:
    """Return the one number of a reply: `data[0].data`, however deep it is wrapped."""
    try:
        found = reply["data"][0]["data"]
        while isinstance(found, list):
            if len(found) != 1:
                return None
            found = found[0]
        return float(found)
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        return min(60.0, max(0.0, float(error.headers.get("Retry-After", 0))))
    except ValueError:
        return 0.0
