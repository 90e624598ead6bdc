"""`reward` and `reward_difference`: the reward of a response, and how much it exceeds that of a base model's response.

Source: Magpie, arXiv:2406.08464, section 3.2: FsfairX-LLaMA3-RM scores the single turn; reward difference = r* - r_base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from ..errors import ArgumentError, DatasetError
from ..messages import conversation
from ..stage import (
    OK,
    Context,
    ModelChoice,
    ModelStage,
    Outcome,
    Record,
    Row,
    Scorer,
    Stage,
    Values,
    optional,
    resolved,
    silent,
)
from .over import PAIR, check_over, read_conversation


if TYPE_CHECKING:
    from datasets import Dataset

    from ..scoring.reward_model import Messages, Scored

MODEL = "sfairXC/FsfairX-LLaMA3-RM-v0.1"
"""The reward model of the releases."""
MAX_LENGTH = 4096
"""Maximum number of tokens of a conversation: the reference's limit for its reward models."""


class ConversationScorer(Protocol):
    """A reward model, loaded here or behind an endpoint."""

    def score(self, conversations: Sequence[Messages]) -> list[Scored]:
        """Return the score of each conversation."""

    def close(self) -> None:
        """Free the model, or close the connections."""


@dataclass(frozen=True)
class Rewarding(ModelStage):
    """Settings and methods shared by stages that load a reward model or request scores from an endpoint."""

    default_model: ClassVar[str] = MODEL

    model: str | None = resolved(None)
    revision: str | None = resolved(None)
    max_length: int = MAX_LENGTH
    dtype: str | None = None
    device: str | None = silent(None)
    batch_tokens: int = silent(16_384)
    trust_remote_code: bool = silent(False)
    endpoint: str | None = silent(None)
    api_key_env: str | None = silent(None)
    concurrency: int = silent(32)

    def __post_init__(self) -> None:
        if self.endpoint is not None:  # a key in a URL must not get into run.json
            from ..engines.remote.servers import normal_address

            normal_address(self.endpoint, ())

    def models(self, generator: str) -> dict[str, ModelChoice]:
        """Return the reward model: the demo one with the demo model, otherwise the default."""
        return {
            "reward": ModelChoice(
                self.model or ("demo" if generator == "demo" else self.default_model), self.revision, "reward"
            )
        }

    def check_ready(self) -> None:
        """Raise ArgumentError if the environment variable with the endpoint's key is not set."""
        if self.endpoint is not None:
            from ..engines.remote.servers import read_key

            read_key(self.api_key_env)

    def open(self, context: Context) -> Scorer:
        """Load the reward model, or connect to the endpoint that serves it."""
        ref = context.refs["reward"]
        if self.endpoint is not None:
            from ..scoring.reward_endpoint import EndpointScorer

            return self.row_scorer(
                EndpointScorer(
                    self.endpoint,
                    ref,
                    api_key_env=self.api_key_env,
                    concurrency=self.concurrency,
                    max_length=self.max_length,
                )
            )
        from ..scoring.reward_model import RewardModel

        scorer = RewardModel(
            ref,
            dtype=self.dtype,
            device=self.device,
            max_length=self.max_length,
            batch_tokens=self.batch_tokens,
            trust_remote_code=self.trust_remote_code,
        )
        return self.row_scorer(scorer)

    def conversation_of(self, row: Row) -> Messages | None:
        """Return the conversation of a row to score, None if a text is missing."""
        question, answer = row[self.needs[0]], row[self.needs[1]]
        return None if question is None or answer is None else conversation((question, answer))

    def row_scorer(self, scorer: ConversationScorer) -> Scorer:
        """Return the scorer of a row: it scores one conversation."""
        return _OneConversation(scorer, self.conversation_of)


class _OneConversation(Scorer):
    """Scores a conversation of each row; rows without one have no score."""

    def __init__(self, scorer: ConversationScorer, conversation_of: Callable[[Row], Messages | None]) -> None:
        self._scorer, self._conversation_of = scorer, conversation_of

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return {"reward", "truncated"} of each row."""
        found = [self._conversation_of(row) for row in rows]
        present = {n: messages for n, messages in enumerate(found) if messages is not None}
        outcomes = [Outcome({"error": "nothing to score"}, "empty") for _ in rows]
        for n, scored in zip(present, self._scorer.score([*present.values()]), strict=True):
            if scored.reward is None:
                outcomes[n] = Outcome({"error": scored.error}, "validation", scored.tokens)
                continue
            record: Record = {"reward": scored.reward}
            if scored.truncated:
                record["truncated"] = True
            outcomes[n] = Outcome(record, OK, scored.tokens)
        return outcomes

    def close(self) -> None:
        """Free the model."""
        self._scorer.close()


@dataclass(frozen=True)
class Reward(Rewarding):
    """Scores instruction and response with a sequence-classification reward model (FsfairX, ArmoRM, Skywork, …).

    - `over`: `pair` (instruction and response), or `messages` (the whole conversation, including a system message).
    - `model`: Hub id, directory or "demo". `revision`, `dtype`, `device`, `trust_remote_code`: how it is loaded.
    - `max_length`: longer conversations are truncated at the end; `reward_truncated` is then true.
    - `batch_tokens`: maximum number of tokens of one forward pass; rows are batched by length.
    - `endpoint`: URL of a server with vLLM's `/pooling`, instead of loading the model in this process. `api_key_env`: the
      environment variable with its key. `concurrency`: maximum number of requests in flight.
    """

    name: ClassVar[str] = "reward"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("instruction", "response")

    over: str = optional(PAIR)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_over(self.over)

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns of the texts to score."""
        return self.reads if self.over == PAIR else (self.over,)

    def conversation_of(self, row: Row) -> Messages | None:
        """Return the conversation of a row to score, None if a text is missing."""
        return super().conversation_of(row) if self.over == PAIR else read_conversation(row)

    def features(self) -> Values:
        """Return the reward, the reward model, and whether the conversation was truncated."""
        from datasets import Value

        return {
            "instruct_reward": Value("float64"),
            "reward_model": Value("string"),
            "reward_truncated": Value("bool"),
        }

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns; without a response, or with a score that is not finite, the reward is null."""
        reward = record.get("reward")
        return {
            "instruct_reward": reward,
            "reward_model": context.refs["reward"].name,
            "reward_truncated": None if reward is None else bool(record.get("truncated")),
        }


@dataclass(frozen=True)
class RewardDifference(Rewarding):
    """Scores the base model's response with the same reward model: `reward_difference` = r* - r_base.

    Without settings of its own, it uses those of the recipe's `reward` stage.
    """

    name: ClassVar[str] = "reward_difference"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("instruction", "base_response", "instruct_reward", "reward_model")
    after: ClassVar[tuple[str, ...]] = ("reward", "base_responses")

    def with_settings_of(self, others: Sequence[Stage]) -> RewardDifference:
        """Use the settings of the recipe's `reward` stage if this stage has none."""
        for other in others:
            if isinstance(other, Reward) and other.over != PAIR:
                raise ArgumentError(
                    "reward_difference compares two responses, but `reward` has `over: messages`.",
                    hint="Score instruction and response, or leave reward_difference out.",
                )
            if isinstance(other, Reward) and self == RewardDifference():
                return RewardDifference(**{f.name: getattr(other, f.name) for f in dataclasses.fields(self)})
        return self

    def check_columns(self, dataset: Dataset) -> None:
        """Raise DatasetError if a column is missing, or if the rewards are from another model."""
        super().check_columns(dataset)
        found = dataset.select_columns(["reward_model"]).with_format("arrow")[:]["reward_model"].unique().to_pylist()
        names = {name for name in found if name}
        if self.model and names and not any(self.model.rstrip("/").endswith(name) for name in names):
            raise DatasetError(
                f"The existing rewards are from {', '.join(sorted(names))}, but this stage uses {self.model}.",
                hint="Give `reward` and `reward_difference` the same model.",
                column="reward_model",
            )

    def features(self) -> Values:
        """Return r_base and the difference, float64."""
        from datasets import Value

        return {"base_reward": Value("float64"), "reward_difference": Value("float64")}

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns; null if one of the responses has no reward."""
        reward, base = row["instruct_reward"], record.get("reward")
        difference = None if reward is None or base is None else reward - base
        return {"base_reward": base, "reward_difference": difference}
