"""Find out what a chat template does by rendering it: where the user's text goes, what is around it, what it needs."""

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

# What users' messages begin with: words, a digit, code, quotes, several scripts. No leading white space: templates trim
# it, and where they do not it merges with the header's last newline, so no header would be common to all.
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
# This many days earlier, the year, the month, the day of the month and the weekday all differ
_OTHER_DAY = 400
_DIRECTIVES = re.compile(r"%-?[aAbBcdDeFGhHIjmMpRSTuUVwWxXyYzZ]")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a user's text goes, in text and tokens.

    `text`: the prompt up to the slot, less `dropped`: characters that merge with the first word into one token (the
    space of `[INST] `), so that no prompt may end in them. `token_ids`: the tokens that every user text leaves as they
    are; `encode(text)` unless `tail_ids` is given: then the text's last characters, `tail_text`, must be encoded as
    `tail_ids`, which they would not be at the end of a text.
    """

    text: str
    token_ids: tuple[int, ...]
    dropped: str = ""
    tail_text: str = ""
    tail_ids: tuple[int, ...] = ()


class Renderer:
    """A tokenizer's chat template with its arguments and its date fixed.

    Rendering uses the tokenizer's own `apply_chat_template` (a sandboxed Jinja), because some tokenizers do more than
    Jinja. `as_parts`: pass message contents as lists of parts, for multimodal templates. `empty_tools`: pass an empty
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
        """Fix a template's arguments and date. `dated`: arguments that are given as the day, in Llama 3.1's format."""
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
        """Return the day as ISO text if the template prints it anywhere: whether another day makes another text."""
        other = copy.copy(self)
        other._set_day(self.day - dt.timedelta(days=_OTHER_DAY))
        differs = any(self._tried(messages) != other._tried(messages) for messages in _DATED_CONVERSATIONS)
        return self.day.isoformat() if differs else None

    def _tried(self, messages: Sequence[Message]) -> str | None:
        try:
            return self(messages)
        except Exception:  # noqa: BLE001 (a conversation that the template refuses prints nothing)
            return None

    def __call__(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """Render a conversation; whatever the template raises passes through."""
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

    def settle(self, check: Callable[[], object] | None = None) -> None:
        """Find the form of messages and tools that the template takes, plain text and none first.

        `check` raises TemplateError if the present form will not do; without it, one user message must be shown.

        Raises:
            TemplateError: it takes none of them; the reason is that of the plain form.
        """
        check = check or (lambda: split_at_slot(self, [], "a lone user message"))
        refused: TemplateError | None = None
        for self.as_parts, self.empty_tools in ((False, False), (True, False), (False, True), (True, True)):
            if self.empty_tools and "tools" in self.kwargs:
                break
            try:
                check()
            except TemplateError as error:
                refused = refused or error
            else:
                return
        if refused:
            raise refused

    def or_refuse(self, messages: Sequence[Message], what: str, *, generation: bool = True) -> str:
        """Render; what the template raises becomes a TemplateError about `what`."""
        try:
            return self(messages, generation=generation)
        except Exception as error:
            raise TemplateError(
                f"The chat template of {quoted(self.name)} refuses {what}: {reason_of(error)}",
                hint=_REFUSAL_HINT,
                template=self.name,
            ) from error


_REFUSAL_HINT = "Give another template (chat_template=…), template arguments (template_kwargs=…), or another model."


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

    It goes in front of the template: newer transformers take no functions as template arguments. The newline at its
    end is eaten by `trim_blocks`, which transformers always sets, so the template's own first characters are untouched.
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
        # `%-d` (no padding) is not known everywhere
        value = moment.strftime(directive.replace("-", ""))
    except ValueError:
        return directive
    return (value.lstrip("0") or "0") if "-" in directive else value.replace("'", "")


def sentinel_for(texts: Iterable[str]) -> str:
    """Return a word that none of the texts contains, in both cases, so that a template's changes to it show."""
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
        TemplateError: the template refuses the conversation or shows the message not once, unchanged.
    """
    word = sentinel_for(contents_of(history))
    rendered = render.or_refuse([*history, user(word)], what)
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
        hint="Magpie needs a place where the user's own words stand once, as they are. Give another template "
        "(chat_template=…) or another model.",
        template=render.name,
    )


def find_slot(
    render: Renderer, complete: Callable[[str], str], encode: Encode, history: Sequence[Message], what: str
) -> Slot:
    """Return the open user slot after `history`, its tokens being those that all probe texts have in common.

    `complete` puts the BOS where it belongs; `encode` adds no special tokens.
    """
    before = complete(split_at_slot(render, history, what)[0])
    common: list[int] | None = None
    for probe in PROBES:
        rendered = complete(render.or_refuse([*history, user(probe)], f"the user message {quoted(probe)}"))
        if not rendered.startswith(before + probe):
            raise TemplateError(
                f"The chat template of {quoted(render.name)} has no open user slot: what it prints before the user's "
                "message depends on the message, or it rewrites the message.",
                hint=f"Seen with the message {quoted(probe)}. " + _REFUSAL_HINT,
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
    """Find the longest text whose tokens are `common`, else the longest whose tokens begin it."""
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
    """What a template prints around messages.

    `after_user`: after a user's message that is to be answered: its end and the generation prompt. `before_answer`:
    the same in a past turn. `after_answer`: between an answer and the next user message. `at_end`: after a last
    answer. The latter three are "" where the template takes one turn only.
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
    except Exception:  # noqa: BLE001 (a template that takes one turn only is usable for one turn)
        return Frame(after_user)
    return Frame(after_user, past.rpartition(first)[2], rest.partition(second)[0], at_end)
