"""Reading the untrusted replies of `/v1/completions` and `/v1/models`: texts, token ids, counts."""

from __future__ import annotations

from collections.abc import Sequence

from ...sampling import SamplingParams
from ..base import Request, Served
from ..stops import Ending
from .untrusted import JsonObject, count_or_none
from .wire import Reply


MAX_FINGERPRINT = 200


def context_of(model: JsonObject) -> int | None:
    """Return the context length in an entry of `/v1/models`: vLLM's and SGLang's form, or llama.cpp's."""
    meta = model.get("meta")
    given = count_or_none(model.get("max_model_len"))
    return given or count_or_none(meta.get("n_ctx") if isinstance(meta, dict) else None)


def usage_of(reply: Reply, name: str) -> int | None:
    """Return a count from the reply's `usage`, None if it is missing."""
    usage = reply.payload.get("usage") if isinstance(reply.payload, dict) else None
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int else None


def tokens_of(reply: Reply, name: str) -> int:
    """Return a count from the usage of a reply that is not otherwise checked, 0 if it is missing or impossible."""
    return count_or_none(usage_of(reply, name)) or 0


def texts_of(reply: Reply) -> list[str]:
    """Return the texts of a reply's choices in the order of their `index`."""
    choices = reply.payload.get("choices") if isinstance(reply.payload, dict) else None
    good = [c for c in choices or [] if is_choice(c)]
    return [c["text"] for c in sorted(good, key=lambda c: c.get("index") or 0)]


def text_of(reply: Reply) -> str | None:
    """Return the text of the first choice, None without one."""
    texts = texts_of(reply)
    return texts[0] if texts else None


def choices_of(reply: Reply) -> int:
    """Return the number of choices of a reply."""
    return len(texts_of(reply))


def ids_of(reply: Reply) -> list[int]:
    """Return the token ids of the first choice, [] if the server does not return them."""
    choices = reply.payload.get("choices") if isinstance(reply.payload, dict) else None
    ids = choices[0].get("token_ids") if choices and is_choice(choices[0]) else None
    return ids if isinstance(ids, list) and all(isinstance(i, int) for i in ids) else []


def is_choice(choice: object) -> bool:
    """Whether an entry of `choices` has a text."""
    return isinstance(choice, dict) and isinstance(choice.get("text"), str)


def completion_counts(
    group: Sequence[Request], choices: Sequence[JsonObject], total: int | None, *, is_sum: bool
) -> list[int | None]:
    """Return the completion tokens of each choice: the number of its ids, else an even share of the total.

    If the total does not include all choices (not `is_sum`), our tokenizer counts the texts.
    """
    if all(isinstance(c.get("token_ids"), list) for c in choices):
        return [len(c["token_ids"]) for c in choices]
    if len(group) > 1 and not is_sum:
        return [_counted(request, choice) for request, choice in zip(group, choices, strict=True)]
    if total is None:
        return [None] * len(choices)
    share, rest = divmod(total, len(choices))
    return [share + (i < rest) for i in range(len(choices))]


def _counted(request: Request, choice: JsonObject) -> int | None:
    count = request.prompt.count_tokens(choice["text"])
    # The stop token, which is not in the text, counts too.
    return None if count is None else count + (choice["finish_reason"] != "length")


def kept_ids(choice: JsonObject, sampling: SamplingParams, ending: Ending) -> list[int] | None:
    """Return the token ids of the text before its stop; None if unknown, or if the text was cut inside."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or ending.text != choice["text"]:
        return None
    ended = choice["finish_reason"] != "length" and ending.finish_reason == "stop"
    if ids and (ids[-1] in sampling.stop_token_ids or (ended and "stop_reason" in choice)):
        return ids[:-1]
    return ids


def served_now(payload: JsonObject, served: Served | None, asked: str) -> Served | None:
    """Return the description from the identification of the endpoint, updated with this reply; `asked`: the model's name."""
    said, fingerprint = payload.get("model"), payload.get("system_fingerprint")
    now = served or Served()
    if isinstance(said, str) and said.partition("@")[0] != asked.partition("@")[0]:
        now = now._replace(model=said)
    if isinstance(fingerprint, str) and fingerprint:
        now = now._replace(fingerprint=fingerprint[:MAX_FINGERPRINT])
    return now if any(now) else None
