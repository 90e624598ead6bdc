"""Sequence-classification reward models in transformers, batched by length.

Supports heads with one logit (FsfairX, Skywork), and models that return a `score` (ArmoRM, which is custom code:
`trust_remote_code`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ..errors import ModelError, quoted
from ..models import DEMO, ModelRef


Messages: TypeAlias = Sequence[Mapping[str, str]]
"""A conversation, {"role", "content"} each."""
FIXED_ROWS = 16
"""Rows of a deterministic forward: with fewer rows, matrix products use other kernels."""
LENGTH_STEP = 32


class Scored(NamedTuple):
    """A conversation's reward (None if it is not finite), whether it was truncated, and its number of tokens."""

    reward: float | None
    truncated: bool = False
    tokens: int = 0
    error: str | None = None


class RewardModel:
    """A loaded reward model.

    `dtype`: bfloat16 on a GPU and float32 on the CPU by default. `max_length`: maximum tokens of a conversation.
    `batch_tokens`: maximum tokens (with padding) of one forward. `deterministic` (default for "demo"): each row is computed
    in a forward with a fixed shape for its length, so that its reward is bitwise independent of the other rows.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        dtype: str | None = None,
        device: str | None = None,
        max_length: int = 4096,
        batch_tokens: int = 16_384,
        trust_remote_code: bool = False,
        deterministic: bool | None = None,
    ) -> None:
        """Load model and tokenizer.

        Raises:
            ModelError: it cannot be loaded, has no chat template, or returns more than one number.
        """
        import torch
        import transformers

        from ..engines.local.loading import pick_device
        from ..templates.load import load_tokenizer

        self.name = ref.name
        self.deterministic = ref.name == DEMO if deterministic is None else deterministic
        where = pick_device(device)
        kind = dtype or ("float32" if where == "cpu" else "bfloat16")
        try:
            self._model = transformers.AutoModelForSequenceClassification.from_pretrained(
                ref.source, revision=ref.load_revision, dtype=getattr(torch, kind), trust_remote_code=trust_remote_code
            )
        except Exception as error:
            hint = "Use a reward model with a sequence-classification head."
            if "trust_remote_code" in str(error):
                hint = "It has custom code: read it, then set trust_remote_code: true."
            raise ModelError(
                f"The reward model {quoted(ref.name)} cannot be loaded: {quoted(error)}.", hint=hint, model=ref.name
            ) from error
        self._model = self._model.to(where).eval()
        self._tokenizer = load_tokenizer(ref.source, ref.load_revision, ref.name, trust_remote_code=trust_remote_code)
        if not getattr(self._tokenizer, "chat_template", None):
            raise ModelError(
                f"The reward model {quoted(ref.name)} has no chat template.",
                hint="Reward models score conversations: use one with a chat template.",
                model=ref.name,
            )
        context = getattr(self._model.config, "max_position_embeddings", None)
        self.max_length = min(max_length, context or max_length)
        self.batch_tokens = max(batch_tokens, self.max_length)
        self._check_head(trust_remote_code)

    def _check_head(self, has_own_code: bool) -> None:
        labels = getattr(self._model.config, "num_labels", 1)
        if labels != 1 and not has_own_code:
            raise ModelError(
                f"The model {quoted(self.name)} returns {labels} numbers instead of one reward.",
                hint="Use a reward model with one output.",
                model=self.name,
            )

    def score(self, conversations: Sequence[Messages]) -> list[Scored]:
        """Return the reward of each conversation, in order; one that the chat template rejects has an error."""
        out: list[Scored] = []
        rows: dict[int, tuple[list[int], bool]] = {}
        for n, messages in enumerate(conversations):
            try:
                rows[n] = self._encode(messages)
                out.append(Scored(None))
            except Exception as error:  # noqa: BLE001 (templates are programs of others; the row keeps the error)
                out.append(Scored(None, error=f"the chat template rejects the conversation: {quoted(error, 120)}"))
        numbers, lengths = [*rows], [len(ids) for ids, _ in rows.values()]
        batches = _fixed_batches(lengths) if self.deterministic else _batches(lengths, self.batch_tokens)
        for batch in batches:
            members = [numbers[place] for place in batch]
            for n, reward in zip(members, self._forward([rows[n][0] for n in members]), strict=True):
                ids, was_cut = rows[n]
                if math.isfinite(reward):
                    out[n] = Scored(reward, was_cut, len(ids))
                else:
                    out[n] = Scored(None, was_cut, len(ids), f"the reward model returned {reward}")
        return out

    def _encode(self, messages: Messages) -> tuple[list[int], bool]:
        """Return a conversation's token ids with exactly one BOS, and whether they were truncated."""
        text = str(self._tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=False))
        bos = self._tokenizer.bos_token
        if bos and text.startswith(bos):
            text = text.removeprefix(bos)
        ids = list(self._tokenizer(text, add_special_tokens=True)["input_ids"])
        return ids[: self.max_length], len(ids) > self.max_length

    def _forward(self, rows: list[list[int]]) -> list[float]:
        import torch

        pad, count = self._unused_token(rows), len(rows)
        longest = max(map(len, rows))
        if self.deterministic:
            longest = _bucket(longest)
            rows = rows + rows[:1] * (FIXED_ROWS - count)
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        # The head reads the last token that is not the pad token, so the pad token must not occur in any row.
        self._model.config.pad_token_id = pad
        device = self._model.device
        with torch.inference_mode():
            output: Any = self._model(input_ids=ids.to(device), attention_mask=mask.to(device))
        scores = getattr(output, "score", None)
        scores = output.logits if scores is None else scores
        found: list[float] = scores.float().reshape(len(rows), -1)[:count, 0].tolist()
        return found

    def _unused_token(self, rows: list[list[int]]) -> int:
        used = set().union(*rows)
        return next(token for token in range(self._model.config.vocab_size - 1, -1, -1) if token not in used)

    def close(self) -> None:
        """Free the model's memory."""
        import gc

        import torch

        on_gpu = self._model.device.type == "cuda"
        del self._model
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def _bucket(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def _fixed_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield groups of at most `FIXED_ROWS` positions with the same padded length."""
    buckets: dict[int, list[int]] = {}
    for n, length in enumerate(lengths):
        buckets.setdefault(_bucket(length), []).append(n)
    for members in buckets.values():
        for at in range(0, len(members), FIXED_ROWS):
            yield members[at : at + FIXED_ROWS]


def _batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield groups of positions, the longest first, each with at most `limit` tokens including padding."""
    group: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if group and lengths[group[0]] * (len(group) + 1) > limit:
            yield group
            group = []
        group.append(n)
    if group:
        yield group
