"""Print rows, the status of a run, prompts, and the results of a probe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..columns import SHAREGPT
from ..errors import ArgumentError, MagpieError
from ..hub.names import REJECTED
from ..storage.conversations import read_turns


if TYPE_CHECKING:
    from datasets import Dataset

    from ..api.synthesis import RunOptions
    from ..recipe.schema import Recipe
    from ..session.probe import Setting
    from ..session.status import RunReport, StageReport


def carry_out(recipe: Recipe, rows: int, **options: Unpack[RunOptions]) -> int:
    """Run a recipe, then print its first rows, its stages, and the path of its dataset."""
    from ..api.synthesis import output_path, run
    from ..session.shape import splits_of

    place = output_path(recipe, options.get("output"))
    # Progress is a bar in a terminal, and a log line from time to time elsewhere.
    options.setdefault("show_progress", sys.stderr.isatty())
    splits = splits_of(run(recipe, **options))
    dataset = splits["train"]
    show_rows(dataset, rows)
    show_status(place)
    if recipe.push is not None:
        show_published(place)
    how = (
        "split='train'" if len(dataset) else "split='train', streaming=True"
    )  # a dataset without rows can only be loaded as a stream
    counts = ", ".join(f"{name}: {len(found)} rows" for name, found in splits.items())
    size = counts if len(splits) > 1 else f"{len(dataset)} rows"
    print(f"\nThe dataset: {place}  ({size}; load_dataset({str(place)!r}, {how}))")
    rejected = place / REJECTED
    if recipe.output.get("rejected") and rejected.is_dir():
        print(f"The rejected samples: {rejected}  (load_dataset({str(rejected)!r}, split='train'))")
    return 0


def show_rows(dataset: Dataset, count: int) -> None:
    """Print the first conversations."""
    for row in dataset.select(range(min(max(count, 0), len(dataset)))):
        print("─" * 80)
        for role, text in _said(row):
            print(f"{role.upper()}: {cut(text)}")
    if count and len(dataset):
        print("─" * 80)


def _said(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the (role, text) pairs of a row: from its conversation, else from instruction and response."""
    turns = row.get("messages") or row.get(SHAREGPT)
    if turns:
        try:
            return [(str(turn["role"]), turn["content"] or "") for turn in read_turns(turns, "messages")]
        except MagpieError:  # the column has another format; instruction and response are shown instead
            pass
    pairs = (("user", row.get("instruction")), ("assistant", row.get("response")))
    return [(role, text) for role, text in pairs if text is not None]


def cut(text: str, limit: int = 600) -> str:
    """Shorten generated text, and escape control characters that could move the cursor or change colors."""
    visible = harmless(text[: limit + 1])
    return visible if len(visible) <= limit else visible[:limit] + " …"


def harmless(text: str) -> str:
    """Return a text with control characters replaced."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def show_status(path: Path) -> None:
    """Print the stages of a run with their rejected rows and reasons, and what the run cost."""
    from ..session.status import run_status

    report = run_status(path)
    width = max([14, *(len(stage.name) + 2 for stage in report.stages)])
    print(f"\n{'stage':<{width}}{'status':<10}{'rows':>16}{'tokens':>14}{'rows/s':>9}  rejected")
    _show_stages([stage for stage in report.stages if stage.is_current], width)
    earlier = [stage for stage in report.stages if not stage.is_current]
    if earlier:
        print("stages of earlier settings:")
        _show_stages(earlier, width)
    _show_totals(report)
    for limit in report.limits:
        print(f"budget: {limit.setting}, {limit.shown(limit.spent)} used ({limit.spent / limit.value:.0%})")
    if report.owner is not None:
        _show_progress(report, report.owner)
        return
    last = report.sessions[-1] if report.sessions else None
    if last is not None and last.outcome != "done":
        print(harmless(f"last session: started {last.started}, outcome: {last.outcome}"))
    if last is not None and last.stopped_by is not None:
        print(harmless(f"stopped by budget.{last.stopped_by.limit} in the stage {last.stopped_by.stage}"))


def _show_stages(stages: Sequence[StageReport], width: int) -> None:
    from ..execution.driver import rejected_by_code

    for stage in stages:
        accepted = stage.by_code.get("ok", 0) if stage.by_code else stage.done
        if stage.status == "done" and stage.total:  # merged shards have a few more samples than the run needs
            accepted = min(accepted, stage.total)
        shown = f"{accepted:,}" + (f" / {stage.total:,}" if stage.total else "")
        tokens = stage.prompt_tokens + stage.completion_tokens
        rate = f"{stage.rows_per_s:.1f}" if stage.rows_per_s else "-"
        reasons = harmless(rejected_by_code(stage.by_code, stage.special_tokens)) or "-"
        print(f"{stage.name:<{width}}{stage.status:<10}{shown:>16}{tokens:>14,}{rate:>9}  {reasons}")


def _show_totals(report: RunReport) -> None:
    totals, rows = report.totals, report.output.rows if report.output else 0
    line = f"in total: {totals.tokens:,} tokens, {totals.engine_seconds:.1f} s with an engine open"
    line += f", {totals.tokens / rows:,.0f} tokens per kept row" if rows else ""
    if totals.cost is not None:
        line += f", cost {totals.cost:.4f}"
    if totals.cost_per_1000_rows is not None:
        line += f", {totals.cost_per_1000_rows:.4f} per 1,000 kept rows"
    print(line)


def _show_progress(report: RunReport, owner: Mapping[str, object]) -> None:
    print(f"running: process {owner.get('pid')} on {harmless(str(owner.get('host')))[:100]}")
    for stage in report.stages:
        if stage.status == "running" and stage.left is not None:
            eta = (
                "estimating the time" if stage.eta_s is None else f"about {duration(stage.eta_s)} at the current rate"
            )
            print(f"{stage.name}: {stage.left:,} rows remaining, {eta}")


def duration(seconds: float) -> str:
    """Return a time as "3 h 20 min", "12 min" or "40 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def show_template(described: dict[str, Any]) -> None:
    """Print the description of a chat template."""
    date = f", date {described['date']}" if described["date"] else ""
    print(f"model {described['model']}, template hash {described['hash']}{date}")
    for name, prompt in described["prompts"].items():
        print(f"\n{name.replace('_', ' ')}")
        if "refused" in prompt:
            print(f"  error: {prompt['refused']}")
            continue
        print(f"  text   {prompt['text']!r}")
        print(f"  tokens {prompt['token_ids']}")
    print()
    for name in ("instruction_stops", "response_stops"):
        stops = described[name]
        print(f"{name.replace('_', ' ')}: {' '.join(map(repr, stops['texts']))}, token ids {stops['token_ids']}")
    for note in described["notes"]:
        print(f"note: {note}")


def show_presets() -> None:
    """Print the presets with what `probe --preset` checks."""
    from ..recipe.preset import all_presets

    for preset in all_presets():
        print(f"{preset.name:<22}{preset.description}")
        print(f"{'':<22}check: {preset.stage} is {preset.label.replace('{code}', 'CODE')}")
    print("\nUse one: `magpie-hf synthesize --preset NAME`. Check it: `magpie-hf probe MODEL --preset NAME`.")


def show_probe(results: Sequence[Setting]) -> None:
    """Print the settings of a probe, best first, with examples of the best one."""
    print(f"{'temperature':>11}{'top_p':>7}  {'system prompt':<14}{'accepted':>9}{'distinct':>9}{'tokens':>8}  grade")
    for result in results:
        system = "yes" if result.system_prompt else "no"
        print(
            f"{result.temperature:>11g}{result.top_p:>7g}  {system:<14}{result.accepted:>9.0%}{result.distinct:>9.0%}"
            f"{result.mean_tokens:>8.0f}  {result.grade}"
        )
        if result.in_preset:
            share, low, high = result.in_preset
            print(f"{'':>20}meets the check of the preset: {share:.0%} (95 % interval: {low:.0%} to {high:.0%})")
        if result.reasons:
            print(f"{'':>20}rejected: " + ", ".join(f"{code} {n}" for code, n in result.reasons.items()))
    best = results[0]
    print(f"\nBest setting: temperature {best.temperature:g}, top_p {best.top_p:g}" + _with_prompt(best.system_prompt))
    for text in best.examples:
        print(f"  - {cut(text, 160)!r}")


def _with_prompt(system_prompt: str | None) -> str:
    return f", system prompt {cut(system_prompt, 80)!r}." if system_prompt else ", no system prompt."


def show_published(place: Path) -> None:
    """Print the URL of the repository that a run was published to."""
    from huggingface_hub import constants

    from ..storage.rundir import RunDir

    published = RunDir.read(place).state.published
    if published is not None:
        revision = f"  (revision {published.revision})" if published.revision else ""
        print(f"\nPublished: {constants.ENDPOINT}/datasets/{published.repo}{revision}")


def show_recipes() -> None:
    """Print the bundled recipes with their size and the estimated cost of synthesis."""
    from ..recipe.costs import estimate, rounded
    from ..recipe.schema import bundled_recipes, load_recipe

    print(f"{'recipe':<40}{'rows':>10}{'GPU-hours':>11}{'price':>9}  model")
    for name, path in bundled_recipes().items():
        recipe = load_recipe(path)
        cost = estimate(recipe)
        hours = "-" if cost is None else rounded(cost.gpu_hours)
        price = "-" if cost is None else rounded(cost.price, "$")
        print(f"{name:<40}{recipe.num_rows:>10,}{hours:>11}{price:>9}  {writer_of(recipe) or '- (existing rows)'}")
        print(f"  {recipe.description}")
    print(
        "GPU-hours: estimate for A100 GPUs, without annotations (see recipes/README.md). "
        "Show a recipe: `magpie-hf recipes show NAME`."
    )


def writer_of(recipe: Recipe) -> str:
    """Return the model that writes instructions or, for existing ones, responses; "" if the recipe generates neither."""
    responder = recipe.roles.get("responder")
    return recipe.model or (f"{responder.model} (responses)" if responder else "")


def show_sources(name: str) -> None:
    """Print each value of a recipe with its source, and what a rehearsal on the demo model changes."""
    from ..recipe.schema import load_recipe

    recipe = load_recipe(name)
    for entry in recipe.sources:
        print(f"{entry.key}: {in_line(entry.value)}\n    {entry.source or 'no source given'}")
    for key, value in (recipe.raw.get("rehearsal") or {}).items():
        print(f"{key}: {in_line(value)}\n    only with --model demo")


def in_line(value: object) -> str:
    """Return a value of a recipe as YAML in one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return harmless(text.removesuffix("...\n").strip())


def confirmed(lines: Sequence[str], yes: bool) -> bool:
    """Print what will cost money, and ask for confirmation.

    Raises:
        ArgumentError: stdin is not a terminal.
    """
    for line in lines:
        print(line)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ArgumentError(
            "This costs money and needs your confirmation, but stdin is not a terminal.", hint="Add --yes."
        )
    answer = input("Start it? [y/N] ")
    return answer.strip().lower() in ("y", "yes")
