"""Analyze a chat template by rendering it: the place of the user's text, the text around it, required arguments."""

from __future__ import annotations

import copy
import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..errors import TemplateError, quoted
from ..messages import assistant, system, user


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")
Message = Mapping[str, object]
Encode = Callable[[str], Sequence[int]]

# Users' messages begin with words, a digit, code, quotes, or other scripts. None begins with white space: most templates
# remove it; in others it merges with the header's last newline into one token, and no common header would be found.
PROBES = (
    "How do I sort a list?",
    "the quick brown fox",
    "Write a haiku.",
    "3 + 4 = ?",
    "2024 was a leap year",
    "def f(x):\n    return x + 1",
    "`print`: what does it do?",
    '"To be" & <b>not</b> to be',
    "你好，世界",
    "Привет, мир",
    "éclair recipe",
)
_SEARCHED_BACK_CHARS = 64
# 400 days earlier, the year, the month, the day of the month and the weekday are all different
_OTHER_DAY = 400
_DIRECTIVES = re.compile(r"%-?[aAbBcdDeFGhHIjmMpRSTuUVwWxXyYzZ]")


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of the user's text: the prompt before it, as text and token ids.

    Attributes:
        text: The rendered text before the slot, without `dropped`.
        token_ids: The tokens of `text`, which are the same for every user message. They are equal to `encode(text)`
            unless `tail_ids` is set.
        dropped: Characters at the end of the rendered text that merge with the user's first word into one token, e.g.,
            the space of `[INST] `. A prompt must not end with them.
        tail_text: The last characters of `text` that must be encoded as `tail_ids`, because the tokenizer encodes them
            differently at the end of a text.
        tail_ids: See `tail_text`.
    """

    text: str
    token_ids: tuple[int, ...]
    dropped: str = ""
    tail_text: str = ""
    tail_ids: tuple[int, ...] = ()


class Renderer:
    """A tokenizer's chat template with fixed arguments and a fixed date.

    Rendering uses the tokenizer's own `apply_chat_template` (a sandboxed Jinja), because some tokenizers change
    the messages or the result. `as_parts`: pass message contents as lists of parts, for multimodal templates. `empty_tools`: pass an empty
    list of `tools`, for templates that require the argument.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        kwargs: Mapping[str, object],
        day: dt.date,
        name: str,
        *,
        dated: Sequence[str] = (),
    ) -> None:
        """Fix a template's arguments and date. `dated`: names of arguments whose value is the day, in Llama 3.1's format."""
        self.tokenizer = tokenizer
        self.text = text
        self.name = name
        self.as_parts = False
        self.empty_tools = False
        self._given, self._dated = dict(kwargs), dated
        self._set_day(day)

    def _set_day(self, day: dt.date) -> None:
        self.day = day
        self.kwargs = {**self._given, **{key: day.strftime("%d %b %Y") for key in self._dated}}
        self._source = date_macro(self.text, day) + self.text

    def printed_date(self) -> str | None:
        """Return the day as ISO text if the template prints it, i.e., if another day changes the text; otherwise None."""
        other = copy.copy(self)
        other._set_day(self.day - dt.timedelta(days=_OTHER_DAY))
        differs = any(self._try_render(messages) != other._try_render(messages) for messages in _DATED_CONVERSATIONS)
        return self.day.isoformat() if differs else None

    def _try_render(self, messages: Sequence[Message]) -> str | None:
        try:
            return self(messages)
        except Exception:  # noqa: BLE001 (a conversation that the template rejects prints no date)
            return None

    def __call__(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """Render a conversation. Exceptions of the template are not caught."""
        given = [_in_parts(m) for m in messages] if self.as_parts else list(messages)
        return str(
            self.tokenizer.apply_chat_template(
                given,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=generation,
                **({"tools": []} if self.empty_tools else {}),
                **self.kwargs,
            )
        )

    def choose_format(self, check: Callable[[], object] | None = None) -> None:
        """Choose the first message format that the template supports, and set `as_parts` and `empty_tools`.

        Contents as plain texts without tools are tried first. `check` raises TemplateError if the template does not
        support the current format; by default, the prompt must contain a single user message.

        Raises:
            TemplateError: the template supports no format; the error is that of plain texts.
        """
        check = check or (lambda: split_at_slot(self, [], "a lone user message"))
        first_error: TemplateError | None = None
        for self.as_parts, self.empty_tools in ((False, False), (True, False), (False, True), (True, True)):
            if self.empty_tools and "tools" in self.kwargs:
                break
            try:
                check()
            except TemplateError as error:
                first_error = first_error or error
            else:
                return
        if first_error:
            raise first_error

    def render_or_raise(self, messages: Sequence[Message], what: str, *, generation: bool = True) -> str:
        """Render a conversation; raise TemplateError if the template rejects it. `what`: the conversation, for the message."""
        try:
            return self(messages, generation=generation)
        except Exception as error:
            raise TemplateError(
                f"The chat template of {quoted(self.name)} rejects {what}: {reason_of(error)}",
                hint=_REJECTION_HINT,
                template=self.name,
            ) from error


_REJECTION_HINT = "Give another template (chat_template=…), template arguments (template_kwargs=…), or another model."


def reason_of(error: BaseException) -> str:
    """Return the message of any error as one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def date_macro(template: str, day: dt.date) -> str:
    """Return Jinja that fixes `strftime_now` of a template to `day`, 00:00; "" if the template does not call it.

    The macro is inserted before the template, because newer versions of transformers accept no functions as template
    arguments. `trim_blocks`, which transformers always sets, removes the newline after the macro.
    """
    if "strftime_now" not in template:
        return ""
    moment = dt.datetime.combine(day, dt.time())
    steps = "".join(
        f"|replace('{directive}','{_directive(moment, directive)}')"
        for directive in sorted(set(_DIRECTIVES.findall(template)))
    )
    return "{%- macro strftime_now(format) -%}{{- format" + steps + "|replace('%%','%') -}}{%- endmacro %}\n"


def _directive(moment: dt.datetime, directive: str) -> str:
    try:
        # not every system supports `%-d` (no padding)
        value = moment.strftime(directive.replace("-", ""))
    except ValueError:
        return directive
    return (value.lstrip("0") or "0") if "-" in directive else value.replace("'", "")


def sentinel_for(texts: Iterable[str]) -> str:
    """Return a word that none of the texts contains; it has both cases, so that a changed case is detected."""
    joined = "\0".join(texts)
    number = 0
    while (word := f"MagpieSlot{number}Qx") in joined:
        number += 1
    return word


_DATED_CONVERSATIONS: tuple[list[Message], ...] = tuple(
    [*head, *turns]
    for head in ([], [system("Be brief.")])
    for turns in (
        [user("Hi")],
        [
            user("Hi"),
            assistant("Hello"),
            user("Continue"),
        ],
    )
)


def contents_of(messages: Sequence[Message]) -> list[str]:
    """Return all texts of a conversation, parts and extra fields included."""
    return [str(value) for message in messages for key, value in message.items() if key != "role"]


def split_at_slot(render: Renderer, history: Sequence[Message], what: str) -> tuple[str, str]:
    """Return the rendered text before and after the user message that follows `history`.

    Raises:
        TemplateError: the template rejects the conversation, or does not print the message exactly once and unchanged.
    """
    word = sentinel_for(contents_of(history))
    rendered = render.render_or_raise([*history, user(word)], what)
    before, *rest = rendered.split(word)
    if len(rest) == 1:
        return before, rest[0]
    if rest:
        reason = f"it prints the user's message {len(rest)} times"
    elif word.lower() in rendered.lower():
        reason = "it changes the case of the user's message"
    else:
        reason = "it drops or rewrites the user's message"
    raise TemplateError(
        f"The chat template of {quoted(render.name)} has no open user slot: {reason}.",
        hint="Magpie requires a template that prints the user's message exactly once and unchanged. Give another "
        "template (chat_template=…) or another model.",
        template=render.name,
    )


def split_at_answer(render: Renderer, conversation: Sequence[Message]) -> str:
    """Return the rendered text up to the place where the assistant's answer to a conversation begins.

    Raises:
        TemplateError: the template rejects the conversation, or does not print the answer exactly once and unchanged.
    """
    word = sentinel_for(contents_of(conversation))
    what = "a conversation that ends with the assistant's message"
    before, *rest = render.render_or_raise([*conversation, assistant(word)], what, generation=False).split(word)
    if len(rest) == 1:
        return before
    raise TemplateError(
        f"The chat template of {quoted(render.name)} has no place for the beginning of an answer (prefill): it does not print "
        "the assistant's message exactly once and unchanged.",
        hint="Remove the prefill, or give another template (chat_template=…) or another model.",
        template=render.name,
    )


def find_slot(
    render: Renderer, complete: Callable[[str], str], encode: Encode, history: Sequence[Message], what: str
) -> Slot:
    """Return the open user slot after `history`; its tokens are the common prefix of the tokens of all probe texts.

    `complete` adds the BOS if the template does not print it; `encode` adds no special tokens.
    """
    before = complete(split_at_slot(render, history, what)[0])
    common: list[int] | None = None
    for probe in PROBES:
        rendered = complete(render.render_or_raise([*history, user(probe)], f"the user message {quoted(probe)}"))
        if not rendered.startswith(before + probe):
            raise TemplateError(
                f"The chat template of {quoted(render.name)} has no open user slot: what it prints before the user's "
                "message depends on the message, or it rewrites the message.",
                hint=f"This happened with the message {quoted(probe)}. " + _REJECTION_HINT,
                template=render.name,
            )
        ids = encode(rendered)
        common = list(ids) if common is None else common_prefix(common, ids)
    return _slot_of(before, common or [], encode)


def common_prefix(left: Sequence[T], right: Sequence[T]) -> list[T]:
    """Return the common prefix of two sequences."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return list(left[:length])


def _slot_of(before: str, common: list[int], encode: Encode) -> Slot:
    """Return the slot for the longest prefix of `before` whose tokens are `common`, or else a prefix of `common`."""
    shortest = max(0, len(before) - _SEARCHED_BACK_CHARS)
    fallback: tuple[int, int] = (0, 0)
    for end in range(len(before), shortest - 1, -1):
        ids = list(encode(before[:end])) if end else []
        if ids == common:
            return Slot(before[:end], tuple(common), dropped=before[end:])
        if not fallback[0] and ids == common[: len(ids)]:
            fallback = (end, len(ids))
    end, count = fallback
    return Slot(before, tuple(common), tail_text=before[end:], tail_ids=tuple(common[count:]))


@dataclass(frozen=True, slots=True)
class Frame:
    """The text that a template prints around messages.

    Attributes:
        after_user: The text after the last user message, including the generation prompt.
        before_answer: The text between a user message and its answer in a past turn.
        after_answer: The text between an answer and the next user message.
        at_end: The text after the last answer.

    All except `after_user` are "" if the template supports only one turn.
    """

    after_user: str
    before_answer: str = ""
    after_answer: str = ""
    at_end: str = ""


def find_frame(render: Renderer) -> Frame:
    """Return the text around messages, from a conversation of two turns (one, if the template accepts no more)."""
    after_user = split_at_slot(render, [], "a lone user message")[1]
    first, answer, second = (f"MagpieSlot0Part{n}Qx" for n in range(3))
    turn = [user(first), assistant(answer)]
    try:
        past, rest = render([*turn, user(second)]).rsplit(answer, 1)
        at_end = render(turn, generation=False).rpartition(answer)[2]
    except Exception:  # noqa: BLE001 (a template may support only one turn)
        return Frame(after_user)
    return Frame(after_user, past.rpartition(first)[2], rest.partition(second)[0], at_end)
