"""`reward` and `reward_difference`: what a reward model gives a response, and how much more than a base model's.

Source: Magpie, arXiv:2406.08464, section 3.2: FsfairX-LLaMA3-RM scores the single turn; reward difference = r* - r_base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import DatasetError
from ..stage import OK, Context, ModelChoice, ModelStage, Outcome, Scorer, Stage, resolved, silent


if TYPE_CHECKING:
    from datasets import Dataset

MODEL = "sfairXC/FsfairX-LLaMA3-RM-v0.1"
"""The releases' reward model."""
MAX_LENGTH = 4096
"""Most tokens of a conversation: the reference's limit for its reward models."""


@dataclass(frozen=True)
class Rewarding(ModelStage):
    """What stages share that load a reward model or ask an endpoint for its scores."""

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

    def models(self, generator: str) -> dict[str, ModelChoice]:
        """Return the reward model: the demo's beside the demo model, else the releases'."""
        return {
            "reward": ModelChoice(
                self.model or ("demo" if generator == "demo" else self.default_model), self.revision, "reward"
            )
        }

    def check_ready(self) -> None:
        """Raise ArgumentError if the endpoint's key is not set."""
        if self.endpoint is not None:
            from ..engines.remote.servers import read_key

            read_key(self.api_key_env)

    def open(self, context: Context) -> Scorer:
        """Load the reward model, or name the endpoint that serves it."""
        ref = context.refs["reward"]
        if self.endpoint is not None:
            from ..scoring.reward_endpoint import EndpointScorer

            return self.answers(
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
        return self.answers(scorer)

    def answers(self, scorer: Any) -> Scorer:
        """Return what scores a row: its one answer."""
        return _Answers(scorer, self.needs)


class _Answers(Scorer):
    """Scores the two texts of each row as a conversation; rows without one of them have no score."""

    def __init__(self, scorer: Any, needs: Sequence[str]) -> None:
        self._scorer = scorer
        self._question, self._answer = needs[0], needs[1]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Return {"reward", "truncated"} of each row."""
        there = [n for n, row in enumerate(rows) if row[self._question] is not None and row[self._answer] is not None]
        pairs = [(rows[n][self._question], rows[n][self._answer]) for n in there]
        outcomes = [Outcome({"error": "nothing to score"}, "empty") for _ in rows]
        for n, scored in zip(there, self._scorer.score(pairs), strict=True):
            if scored.reward is None:
                outcomes[n] = Outcome({"error": scored.error}, "validation", scored.tokens)
                continue
            record: dict[str, Any] = {"reward": scored.reward}
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

    - `model`: Hub id, directory or "demo"; `revision`, `dtype`, `device`, `trust_remote_code` as elsewhere.
    - `max_length`: longer conversations are cut at the end, and `reward_truncated` says so.
    - `batch_tokens`: most tokens of one forward; rows are batched by length.
    - `endpoint`: address of a server with vLLM's `/pooling`, instead of loading the model here; `api_key_env` names
      the variable with its key, `concurrency` is the number of requests at once.
    """

    name: ClassVar[str] = "reward"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("instruction", "response")

    def features(self) -> dict[str, Any]:
        """Return the reward, whose it is, and whether the conversation was cut for it."""
        from datasets import Value

        return {
            "instruct_reward": Value("float64"),
            "reward_model": Value("string"),
            "reward_truncated": Value("bool"),
        }

    def columns(
        self, context: Context, row: Mapping[str, Any], record: Mapping[str, Any], code: str
    ) -> dict[str, Any]:
        """Return the columns; without a response, or with a score that is no number, the reward is null."""
        reward = record.get("reward")
        return {
            "instruct_reward": reward,
            "reward_model": context.refs["reward"].name,
            "reward_truncated": None if reward is None else bool(record.get("truncated")),
        }


@dataclass(frozen=True)
class RewardDifference(Rewarding):
    """Scores the base model's answer with the same reward model: `reward_difference` = r* - r_base.

    Takes its settings from the recipe's `reward` stage where it has none itself.
    """

    name: ClassVar[str] = "reward_difference"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("instruction", "base_response", "instruct_reward", "reward_model")
    after: ClassVar[tuple[str, ...]] = ("reward", "base_responses")

    def beside(self, others: Sequence[Stage]) -> RewardDifference:
        """Take the settings of the recipe's `reward`, where this has none."""
        for other in others:
            if isinstance(other, Reward) and self == RewardDifference():
                return RewardDifference(**{f.name: getattr(other, f.name) for f in dataclasses.fields(other)})
        return self

    def check_columns(self, dataset: Dataset) -> None:
        """Raise DatasetError if a column is missing, or if the rewards are another model's."""
        super().check_columns(dataset)
        found = dataset.select_columns(["reward_model"]).with_format("arrow")[:]["reward_model"].unique().to_pylist()
        names = {name for name in found if name}
        if self.model and names and not any(self.model.rstrip("/").endswith(name) for name in names):
            raise DatasetError(
                f"The rewards are from {', '.join(sorted(names))}, and the difference is asked from {self.model}.",
                hint="Give `reward` and `reward_difference` the same model.",
                column="reward_model",
            )

    def features(self) -> dict[str, Any]:
        """Return r_base and the difference, float64."""
        from datasets import Value

        return {"base_reward": Value("float64"), "reward_difference": Value("float64")}

    def columns(
        self, context: Context, row: Mapping[str, Any], record: Mapping[str, Any], code: str
    ) -> dict[str, Any]:
        """Return the columns; null where either answer has no reward."""
        reward, base = row["instruct_reward"], record.get("reward")
        difference = None if reward is None or base is None else reward - base
        return {"base_reward": base, "reward_difference": difference}
