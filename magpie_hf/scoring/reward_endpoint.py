"""A reward model on a server: vLLM's `/pooling`, which applies the model's chat template and returns its score."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..backoff import TRANSIENT, Backoff
from ..engines.remote.classify import INVALID
from ..engines.remote.client import HttpClient
from ..engines.remote.servers import error_text, normal_address, read_key
from ..engines.remote.untrusted import clean_text, count_or_none, name_or_none
from ..engines.remote.wire import MALFORMED, Address, Question, Reply
from ..errors import EngineError, EngineUnavailableError, quoted
from ..models import ModelRef
from .reward_model import Messages, Scored


PATH = "/pooling"
TIMEOUT_S = 120.0
ATTEMPTS = 6
BACKOFF = Backoff(0.5, 60.0)


class EndpointScorer:
    """Scores conversations with a server's `/pooling`.

    `api_key_env`: name of the environment variable with its key; without it no key is sent, and never the Hub's token.
    `concurrency`: maximum number of requests in flight. The server truncates a conversation longer than `max_length`
    tokens (`truncate_prompt_tokens`).
    """

    def __init__(
        self, endpoint: str, ref: ModelRef, *, api_key_env: str | None = None, concurrency: int = 32, max_length: int = 4096
    ) -> None:  # fmt: skip
        self._server = Address(normal_address(endpoint, (PATH, "/v1")))
        self._model = ref.name
        self._key = read_key(api_key_env)
        self._max_length = max_length
        self._concurrency = concurrency

    def score(self, conversations: Sequence[Messages]) -> list[Scored]:
        """Return the reward of each conversation, in order.

        Raises:
            EngineUnavailableError: the server does not reply, or only with transient errors.
            EngineError: the server refuses access or the model.
        """
        with HttpClient(key=self._key, connections=self._concurrency, timeout_s=TIMEOUT_S) as client:
            replies = client.ask_all(
                [self._question(messages) for messages in conversations],
                is_final=self._is_final,
                give_up=self._give_up,
                backoff=BACKOFF,
                attempts=ATTEMPTS,
            )
        return [self._scored(reply) for reply in replies]

    def close(self) -> None:
        """Do nothing: no connection stays open between calls of `score`."""

    def _question(self, messages: Messages) -> Question:
        body = {
            "model": self._model,
            "messages": [{**m, "content": clean_text(m["content"])} for m in messages],
            "add_generation_prompt": False,
            "truncate_prompt_tokens": self._max_length,
        }
        return Question(self._server, "POST", PATH, body)

    def _is_final(self, _: Question, reply: Reply) -> bool:
        """Whether a reply is a score, or an error of this row only. Raises EngineError for errors that affect all rows."""
        if reply.fault is not None or reply.status in TRANSIENT:
            return False
        if reply.status != 200 and reply.status not in INVALID:
            raise EngineError(
                f"The reward server replied with status {reply.status}: {quoted(_message(reply))}.",
                where=self._server.url + PATH,
                hint="Check URL, model and key (api_key_env).",
            )
        return True

    def _give_up(self, _: Question, reply: Reply) -> Reply:
        reason = reply.fault.message if reply.fault is not None else f"status {reply.status}"
        raise EngineUnavailableError(
            f"The reward server is not available ({reason}, {ATTEMPTS} attempts).",
            where=self._server.url + PATH,
            hint="Check the server, then run the same command again: finished rows are kept.",
        )

    def _scored(self, reply: Reply) -> Scored:
        if reply.status != 200:
            return Scored(None, error=f"status {reply.status}: {_message(reply)}"[:200])
        tokens, reward = _tokens(reply), _single(reply)
        if reward is None:
            return Scored(None, tokens=tokens, error=_message(reply) or "the server returned no single number")
        return Scored(reward, tokens >= self._max_length, tokens)


def _message(reply: Reply) -> str:
    return name_or_none(error_text(reply.payload)) or ""


def _tokens(reply: Reply) -> int:
    usage = reply.payload.get("usage") if isinstance(reply.payload, dict) else None
    return (count_or_none(usage.get("prompt_tokens")) if isinstance(usage, dict) else None) or 0


def _single(reply: Reply) -> float | None:
    """Return the only finite number of a reply, `data[0].data` in any nesting; None if there is none."""
    try:
        found = reply.payload["data"][0]["data"]
        while isinstance(found, list):
            (found,) = found
        reward = float(found) if type(found) in (int, float) else math.nan
        return reward if math.isfinite(reward) else None
    except MALFORMED:
        return None
