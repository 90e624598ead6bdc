"""Small requests that detect what a server supports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import EngineError
from .client import is_settled
from .wire import Address, Question, Reply


if TYPE_CHECKING:
    from .endpoints import EndpointEngine

PROBE_TRIES = 5
# Enough for the first, cold request to a large model.
PROBE_TIMEOUT_S = 120.0


def ask_probes(
    engine: EndpointEngine, endpoint: Address, path: str, bodies: Sequence[Mapping[str, object]]
) -> list[Reply]:
    """Send small requests at the same time, and again while the server is overloaded or starting.

    Raises:
        EngineError: it stays unavailable, or refuses access.
    """

    def is_final(question: Question, reply: Reply) -> bool:
        engine.check_access(question.server, reply)
        return is_settled(question, reply)

    def give_up(_: Question, reply: Reply) -> Reply:
        # Some servers reply with 500 to unsupported fields: after the last attempt, the request counts as rejected.
        if reply.fault is None and reply.status == 500:
            return reply
        raise EngineError(
            f"{endpoint.url} replies to GET {engine.info_path}, but to no completion request: it is overloaded or broken.",
            hint="Look at the server's log; try again later.",
            endpoint=endpoint.url,
        )

    return engine.transport.client.ask_all(
        [Question(endpoint, "POST", path, dict(body)) for body in bodies],
        timeout_s=min(engine.settings.timeout_s, PROBE_TIMEOUT_S),
        is_final=is_final,
        give_up=give_up,
        backoff=engine.backoff.limited(2),
        attempts=PROBE_TRIES,
    )
