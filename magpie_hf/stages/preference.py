"""`preference_responses` and `preference`: several responses to an instruction, the best and the worst by a reward model.

Source: Magpie, arXiv:2406.08464, section 4.1: five responses at temperature 0.8, scored by ArmoRM; the one with the
highest score is chosen, that with the lowest is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..columns import OF_PAIRS
from ..errors import ArgumentError, TemplateError
from ..messages import conversation, messages_feature, user
from ..sampling import SamplingParams, sample_seed, seed_base
from ..stage import (
    OK,
    ROW_INDEX,
    Ask,
    Context,
    Outcome,
    Record,
    Row,
    RowFunction,
    Scorer,
    Steps,
    Values,
    failed,
)
from ..templates.template import ChatTemplate
from .provenance import Provenance
from .responses import MAX_TOKENS, check_special_tokens, read_response, with_stops
from .reward import ConversationScorer, Rewarding
from .system_prompts import UnderSystemPrompt, unusable


if TYPE_CHECKING:
    from ..scoring.reward_model import Messages


NUM_SAMPLES = 5
"""Responses to each instruction: Magpie, section 4.1."""
SAMPLING = SamplingParams(temperature=0.8, max_tokens=MAX_TOKENS)
"""Temperature: Magpie, section 4.1."""
MODEL = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
"""The reward model of the releases' preference sets. It contains custom code, which requires `trust_remote_code: true`."""

PROVENANCE = Provenance(
    "temperature top_p max_tokens output_generator revision seeds system_prompt template_hash stage_version"
)


@dataclass(frozen=True)
class PreferenceResponses(UnderSystemPrompt):
    """Settings of the responses to choose from.

    - `num_samples`: responses to each instruction, 2 or more; each has its own seed.
    - `sampling`: of the responses; not greedy, as all of them would be equal.
    - `system_prompt`: a text, for the responses only. `row`: the column `system_prompt`.
    - The rewards and the pair of earlier responses are dropped.
    """

    name: ClassVar[str] = "preference_responses"
    is_costly: ClassVar[bool] = True
    version: ClassVar[int] = 2
    role: ClassVar[str] = "responder"
    reads: ClassVar[tuple[str, ...]] = ("instruction",)
    replaces: ClassVar[tuple[str, ...]] = OF_PAIRS

    num_samples: int = NUM_SAMPLES
    sampling: SamplingParams = SAMPLING
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise ArgumentError(f"num_samples = {self.num_samples} is invalid.", hint="Give 2 or more.")
        if self.sampling.is_greedy:
            raise ArgumentError(
                "temperature = 0 generates the same response each time, so no preference is possible.",
                hint="Give a temperature above 0, e.g., 0.8.",
            )

    def features(self) -> Values:
        """Return the responses (without those that failed or were rejected), their finish reasons and provenance."""
        from datasets import Value

        return {
            "responses": [Value("string")],
            "responses_finish_reason": [Value("string")],
            "gen_responses_configs": PROVENANCE.feature(),
        }

    def check_template(self, template: ChatTemplate) -> None:
        """Raise TemplateError if the template rejects the system prompt."""
        template.response([user("Hello")], self.example_prompt)

    def bind(self, context: Context) -> RowFunction:
        """Return the function for a row: one request per response."""
        template = context.template
        check_special_tokens(context)
        sampling = with_stops(self.sampling, template)
        bases = [seed_base(context.seed, self.name, number) for number in range(self.num_samples)]

        def steps(row: Row) -> Steps:
            if row["instruction"] is None:
                return Outcome({"error": "no instruction"}, "empty")
            try:
                prompt = template.response([user(row["instruction"])], self.prompt_of(row))
            except TemplateError as error:
                return unusable(error)
            record: Record = {"texts": [], "finish": [], "seeds": []}
            problem: Outcome | None = None
            for base in bases:
                seed = sample_seed(base, row[ROW_INDEX])
                generation = yield Ask(prompt, sampling.with_seed(seed))
                if generation.failure is not None:
                    problem = failed(generation)
                    continue
                read = read_response(template, generation, seed)
                if read.code != OK:
                    problem = Outcome({key: read.record[key] for key in ("error", "why", "raw")}, read.code)
                    record.setdefault("rejected", []).append(read.record["error"])
                    continue
                record["texts"].append(read.record["text"])
                record["finish"].append(generation.finish_reason)
                record["seeds"].append(seed)
            if problem is not None and len(record["texts"]) < 2:
                return problem
            return Outcome(record, OK)

        return steps

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns; the responses of a failed row are null."""
        return {
            "responses": record.get("texts"),
            "responses_finish_reason": record.get("finish"),
            "gen_responses_configs": PROVENANCE.values(
                self, context, self.sampling, record, seeds=record.get("seeds"), system_prompt=self.prompt_of(row)
            ),
        }


@dataclass(frozen=True)
class Preference(Rewarding):
    """Scores each response with a reward model; the best is chosen, the worst rejected.

    The settings are those of `reward`. If all scores are equal, or fewer than two responses differ, there is no
    preference: `chosen` and `rejected` are null. Among equal scores, the first one is used, as in the reference.
    """

    name: ClassVar[str] = "preference"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("instruction", "responses")
    after: ClassVar[tuple[str, ...]] = ("preference_responses",)
    default_model: ClassVar[str] = MODEL

    def features(self) -> Values:
        """Return all scores, both conversations (as DPO trainers read them), their scores and the difference."""
        from datasets import Value

        return {
            "preference_rewards": [Value("float64")],
            "preference_model": Value("string"),
            "chosen": messages_feature(),
            "rejected": messages_feature(),
            "chosen_reward": Value("float64"),
            "rejected_reward": Value("float64"),
            "reward_margin": Value("float64"),
        }

    def row_scorer(self, scorer: ConversationScorer) -> Scorer:
        """Return the scorer of a row: it scores all responses."""
        return _AllResponses(scorer)

    def columns(self, context: Context, row: Row, record: Record, code: str) -> Values:
        """Return the columns; null without a preference."""
        rewards = record.get("rewards")
        best, worst = best_and_worst(row["responses"] or [], rewards or [])
        score = dict(enumerate(rewards or []))
        has_both = best is not None and worst is not None
        return {
            "preference_rewards": rewards,
            "preference_model": context.refs["reward"].name,
            "chosen": _conversation(row, best),
            "rejected": _conversation(row, worst),
            "chosen_reward": score.get(best) if best is not None else None,
            "rejected_reward": score.get(worst) if worst is not None else None,
            "reward_margin": score[best] - score[worst] if has_both else None,  # type: ignore[index]
        }


def best_and_worst(responses: Sequence[str], rewards: Sequence[float | None]) -> tuple[int | None, int | None]:
    """Return the positions of the highest and the lowest score, the first of equal ones; (None, None) if all are equal.

    Responses without a finite score are ignored.
    """
    scored = [(reward, n) for n, reward in enumerate(rewards) if reward is not None and math.isfinite(reward)]
    if len(scored) < 2:
        return None, None
    best = max(scored, key=lambda pair: (pair[0], -pair[1]))
    worst = min(scored)
    if best[0] == worst[0] or responses[best[1]] == responses[worst[1]]:
        return None, None
    return best[1], worst[1]


def _conversation(row: Row, which: int | None) -> list[dict[str, str]] | None:
    return None if which is None else conversation((row["instruction"], row["responses"][which]))


class _AllResponses(Scorer):
    """Scores all responses of each row."""

    def __init__(self, scorer: ConversationScorer) -> None:
        self._scorer = scorer

    def __call__(self, rows: Sequence[Row]) -> list[Outcome]:
        """Return {"rewards"} of each row; a response without a score has null."""
        conversations: list[Messages] = []
        spans: list[tuple[int, int]] = []
        for row in rows:
            responses = row["responses"] or [] if row["instruction"] is not None else []
            spans.append((len(conversations), len(conversations) + len(responses)))
            conversations += [conversation((row["instruction"], response)) for response in responses]
        scored = self._scorer.score(conversations) if conversations else []
        outcomes = []
        for start, end in spans:
            part = scored[start:end]
            if not part:
                outcomes.append(Outcome({"error": "nothing to score"}, "empty"))
                continue
            record: Record = {"rewards": [one.reward for one in part]}
            if any(one.truncated for one in part):
                record["truncated"] = True
            outcomes.append(Outcome(record, OK, sum(one.tokens for one in part)))
        return outcomes

    def close(self) -> None:
        """Free the model."""
        self._scorer.close()
