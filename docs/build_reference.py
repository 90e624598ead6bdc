"""Write the reference pages from the code: `python docs/build_reference.py`; `--check` fails if one is stale."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import sys
from pathlib import Path


REFERENCE = Path(__file__).parent / "reference"
GENERATED = "<!-- Written by docs/build_reference.py from the code: change the code, then run `make docs`. -->\n\n"


def main() -> int:
    os.environ["COLUMNS"] = "100"
    pages = {
        "cli.md": cli_page(),
        "recipe.md": recipe_page(),
        "stages.md": stages_page(),
        "columns.md": columns_page(),
        "engines.md": engines_page(),
        "errors.md": errors_page(),
        "../../recipes/README.md": releases_page(),
    }
    stale = [name for name, text in pages.items() if not is_fresh(name, text)]
    if "--check" in sys.argv[1:]:
        if stale:
            print(f"stale: {', '.join(stale)}; run `make docs`")
        return 1 if stale else 0
    REFERENCE.mkdir(exist_ok=True)
    for name in stale:
        (REFERENCE / name).write_text(GENERATED + pages[name], "utf-8")
        print(f"wrote {os.path.normpath(os.path.join('docs/reference', name))}")
    return 0


def is_fresh(name: str, text: str) -> bool:
    path = REFERENCE / name
    return path.is_file() and path.read_text("utf-8") == GENERATED + text


def doc(thing: object) -> str:
    """Return a docstring without the sections that are about Python only, as plain text."""
    return inspect.cleandoc(thing.__doc__ or "")


def cli_page() -> str:
    from magpie_hf.cli.main import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USAGE, build_parser

    parser = build_parser()
    parts = ["# Command line\n"]
    for name, command in commands(parser):
        usage = " ".join(command.format_usage().split()).removeprefix("usage: ")
        parts.append(f"## magpie-hf {name}\n\n{command.description}\n\n```text\n{usage}\n```\n")
        parts.append(options_table(command))
    parts.append("## Exit codes\n\n| code | meaning |\n|---|---|")
    meanings = {
        0: "done",
        EXIT_ERROR: "an error; the message says what, where and what to do",
        EXIT_USAGE: "the command line itself cannot be read",
        EXIT_STOPPED: "the run stopped and the same command goes on (budget, pending rows, too many failures)",
        EXIT_INTERRUPTED: "Ctrl-C or SIGTERM; everything finished is kept",
    }
    parts += [f"| {code} | {text} |" for code, text in meanings.items()]
    return "\n".join(parts) + "\n"


def commands(parser: argparse.ArgumentParser, prefix: str = "") -> list[tuple[str, argparse.ArgumentParser]]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                below = commands(inner, f"{prefix}{name} ")
                found += below or [(prefix + name, inner)]
    return found


def options_table(parser: argparse.ArgumentParser) -> str:
    lines = ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        flag = action.option_strings[0] if action.option_strings else (action.metavar or action.dest)
        value = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
        lines.append(f"| `{flag}{value}` | {action.help or ''} |")
    return "\n".join(lines) + "\n"


def recipe_page() -> str:
    from magpie_hf.execution.budget import Budget
    from magpie_hf.recipe import parts as _recipe_parts
    from magpie_hf.recipe import schema as recipe
    from magpie_hf.sampling import SamplingParams

    parts = ["# Recipe keys\n", "```yaml\n" + example_of(recipe) + "\n```\n", "| key | meaning |\n|---|---|"]
    parts += [f"| `{key}` | {text} |" for key, text in recipe.KEYS.items()]
    parts.append(f"\n## sampling\n\n{doc(SamplingParams)}\n")
    parts.append(
        "A grid point has `share` (of the accepted rows, relative to the others') and `system_prompt` beside.\n"
    )
    parts.append(f"## budget\n\n{doc(Budget)}\n")
    parts.append(f"## template\n\nKeys: {', '.join(f'`{key}`' for key in _recipe_parts.TEMPLATE_KEYS)}.\n")
    parts.append(f"## output\n\n`path`, and `format`: {', '.join(recipe.FORMATS)}.\n")
    parts.append(
        "## Setting keys\n\n`--set KEY=VALUE` and `overrides={KEY: VALUE}` take dotted keys: `num_rows`, "
        "`sampling.temperature` (every grid point), `sampling[1].top_p`, `stages.responses.sampling.max_tokens`, "
        "`template.kwargs.enable_thinking`.\n"
    )
    return "\n".join(parts)


def example_of(module: object) -> str:
    text = doc(module).split("\n\n", 1)[1]
    return "\n".join(line.removeprefix("    ") for line in text.splitlines())


def stages_page() -> str:
    from magpie_hf.stage import CODES
    from magpie_hf.stages import STAGES, stage_class

    parts = ["# Stages\n"]
    parts.append("Settings marked * can change no row: with another value of one, cached rows are used as they are.\n")
    for name in STAGES:
        kind = stage_class(name)
        needed = kind.reads or (kind().needs if name not in ("rubric", "select") else ("what its settings name",))
        reads = ", ".join(f"`{column}`" for column in needed)
        parts.append(f"## {name}\n\n{doc(inspect.getmodule(kind))}\n\n{doc(kind)}\n")
        parts.append(f"Kind: {kind.kind}. Version: {kind.version}. Reads: {reads}.\n")
        parts.append("| setting | default |\n|---|---|")
        fields = [field for field in dataclasses.fields(kind) if field.name not in ("grid", "is_early")]
        parts += [
            f"| `{field.name}`{' *' if is_silent(field) else ''} | {shown(default_of(field))} |" for field in fields
        ]
        parts.append("")
    parts.append(
        "## Codes\n\nHow a row ended, as `status` counts it; `magpie-hf retry --errors CODE` opens rows again.\n"
    )
    parts.append(", ".join(f"`{code}`" for code in CODES) + ".\n")
    return "\n".join(parts)


def is_silent(field: dataclasses.Field[object]) -> bool:
    """Tell whether another value of a stage's setting leaves cached rows as they are."""
    from magpie_hf.stage import IDENTITY, RESOLVED

    return not field.metadata.get(IDENTITY, True) and not field.metadata.get(RESOLVED, False)


def default_of(field: dataclasses.Field[object]) -> object:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def shown(value: object) -> str:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    text = str(value)
    return f"`{text[:90]}…`" if len(text) > 90 else f"`{text}`"


def columns_page() -> str:
    from magpie_hf.hub.schema import RELEASED
    from magpie_hf.stages import STAGES, stage_class

    parts = [
        "# Columns\n",
        "Names and order are those of the released Magpie datasets, then ours. Conversations are in `messages` "
        "(role/content), as TRL and chat templates read them; the releases' `conversations` (from/value) is read in "
        "existing datasets and not written, as trainers prefer it to `messages` and do not know its roles. "
        "[How to train on the rows, and the map to from/value](../how-to/train.md).\n",
        "| column | type | stage | released |\n|---|---|---|---|",
    ]
    for name in STAGES:
        kind = stage_class(name)
        if name in ("judge", "rubric"):
            continue  # the columns of their rubrics
        for column, feature in kind().features().items():
            parts.append(f"| `{column}` | {feature_text(feature)} | {name} | {'yes' if column in RELEASED else ''} |")
    parts.append("\n`instruction_3`, `response_3` and so on follow with more turns.\n")
    return "\n".join(parts)


def feature_text(feature: object) -> str:
    if isinstance(feature, dict):
        return "struct: " + ", ".join(f"`{key}` {feature_text(value)}" for key, value in feature.items())
    if isinstance(feature, list):
        return "list of " + feature_text(feature[0])
    return str(getattr(feature, "dtype", feature))


def engines_page() -> str:
    from magpie_hf.engines import ENGINES, engine_class

    parts = [
        "# Engines\n",
        "Settings go under `engine:` in a recipe, after `--set engine.` or as arguments of `synthesize`.\n",
    ]
    for name in ENGINES:
        kind = engine_class(name)
        text = doc(kind.__init__) if kind.__init__.__doc__ else ""
        parts.append(f"## {name}\n\n{doc(kind)}\n\n{text}\n")
        parts.append("| setting | default |\n|---|---|")
        for parameter in inspect.signature(kind).parameters.values():
            if parameter.name in ("ref", "token_texts", "model", "revision"):
                continue
            default = "required" if parameter.default is inspect.Parameter.empty else f"`{parameter.default}`"
            parts.append(f"| `{parameter.name}` | {default} |")
        parts.append("")
    return "\n".join(parts)


def errors_page() -> str:
    from magpie_hf import errors

    tree = doc(errors)
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.MagpieError)]
    parts = [
        "# Errors\n",
        "```text\n" + re.sub(r"\n\n(?=The message)", "\n```\n\n", tree),
        "",
        "| error | when |",
        "|---|---|",
    ]
    parts += [f"| `{kind.__name__}` | {doc(kind).splitlines()[0]} |" for kind in kinds]
    return "\n".join(parts) + "\n"


RELEASES_HEAD = """# Recipes

One file a release of the Magpie family, and a few of our own for newer models. Each value's source stands beside it in
the file: the paper, a card, a script, or "our choice" where they leave it open.

```console
$ magpie-hf recipes show magpie-air
$ magpie-hf run magpie-air --model demo --num-rows 40   # a rehearsal: every model is the demo one
$ magpie-hf run magpie-air --num-rows 10000 --endpoint http://localhost:8080 --push-to me/magpie-air-10k
$ magpie-hf run magpie-air-300k-filtered --output RUN                         # of a raw run: goes on from its rows
```
"""
RELEASES_TAIL = """
**GPU-hours** are of A100s with 80 GB, for instructions and answers; annotations are not in them. One rule gives all of
them: {constant:g} GPU-seconds a token and billion (active) parameters, fitted to the two figures that the paper has
(arXiv:2406.08464v2, section 3.4). It gives {air:.0f} where the paper says 206 (Air) and {pro:.0f} where it says 614 (Pro);
take 10 % either way for what it is. Tokens a row are the paper's (Table 4). **Price** at ${price} a GPU-hour, which the
paper's $0.12 and $1.10 per 1,000 rows come to.

**Lean saves at most**: the share of the first answers that `--set order=lean` would not generate if the conditions on
the instruction alone (quality, difficulty, duplicates, language) left no more rows than the selection keeps. How many they
leave depends on the model and is not published; a trial (`--num-rows 3000`) shows it in the card's funnel. On the demo
model, 400 rows at T = 1.2, lean came to 8,932 instead of 10,464 response tokens and the same 100 rows.

The recipes here that are set to `order: lean` already say so; with it, their GPU-hours are an upper bound.
"""


def releases_page() -> str:
    from magpie_hf.recipe.costs import (
        PRICE_PER_GPU_HOUR,
        SECONDS_PER_TOKEN_AND_BILLION,
        estimate,
        kept_at_most,
        lean_saving,
    )
    from magpie_hf.recipe.schema import bundled_recipes, load_recipe
    from magpie_hf.stages.select import Select

    lines = [
        "| recipe | makes | generator | samples | kept | GPU-hours | price | lean saves at most |",
        "|" + "---|" * 8,
    ]
    hours = {}
    for name, path in bundled_recipes().items():
        recipe = load_recipe(path)
        release = path.read_text("utf-8").splitlines()[0].removeprefix("# ").rstrip(".")
        cost, saving = estimate(recipe), lean_saving(recipe)
        kept = min((kept_at_most(stage) for stage in recipe.stages if isinstance(stage, Select)), default=None)
        shown = "all" if kept is None else "what passes" if kept == float("inf") else f"{kept:,.0f}"
        hours[name] = cost.gpu_hours if cost else 0.0
        made = f"`{release}`" if release.startswith("Magpie-Align/") else release
        lean = "" if saving is None else f"{saving:.0%}" + (" (is lean)" if recipe.order == "lean" else "")
        money = ["", ""] if cost is None else [f"{cost.gpu_hours:,.0f}", f"${cost.price:,.0f}"]
        lines.append(
            f"| [{name}]({path.name}) | {made} | {recipe.model} | {recipe.num_rows:,} | {shown} | {' | '.join(money)} | {lean} |"
        )
    tail = RELEASES_TAIL.format(
        constant=SECONDS_PER_TOKEN_AND_BILLION,
        air=hours["magpie-air"],
        pro=hours["magpie-pro"],
        price=PRICE_PER_GPU_HOUR,
    )
    return RELEASES_HEAD + "\n" + "\n".join(lines) + "\n" + tail


if __name__ == "__main__":
    sys.exit(main())
