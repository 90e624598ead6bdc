"""Exports for axolotl and LLaMA-Factory, and recordings of what their converters read from them.

`make test-trainers` downloads the wheels and runs `python -m tests.exports.trainers WHEELS`, which records again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import magpie_hf
from magpie_hf.models import resolve_model
from tests.exports.shapes import REASONING, SEVERAL, SINGLE, WITH_SYSTEM, WORSE, chats, pairs, tool_rows, turn


HERE = Path(__file__).parent
RECORDINGS = HERE / "recordings"
THINKING = HERE / "thinking.jinja"
TRAINERS = ("axolotl", "llamafactory")
OTHER = [*SEVERAL[:3], turn("assistant", "7")]
SHAPES = {
    "one-turn": chats(SINGLE, SINGLE),
    "several-turns": chats(SEVERAL, SINGLE),
    "system-prompt": chats(WITH_SYSTEM, SINGLE),
    "reasoning": chats(SINGLE, SINGLE, reasoning=[REASONING, None]),
    "tools": tool_rows(),
    "preference": pairs((SINGLE, WORSE), (SEVERAL, OTHER), (WITH_SYSTEM, [WITH_SYSTEM[0], *WORSE])),
}
"""Rows by shape: each has a second row of another shape where the trainer could confuse them."""
CASES = [(trainer, shape) for trainer in TRAINERS for shape in SHAPES]


def template_of(trainer, shape):
    """Return the chat template of the tokenizer that reads a case; None: that of the demo model."""
    return THINKING if trainer == "axolotl" and shape in ("reasoning", "tools") else None


def make(trainer, shape, place):
    """Export a case and return its files as text, without the path of the directory."""
    template = template_of(trainer, shape)
    more = {"model": "demo", "chat_template": str(template)} if template else {}
    made = magpie_hf.export(SHAPES[shape], trainer, output_dir=place, **more)
    files = {path.name: path.read_text("utf-8") for path in sorted(place.iterdir()) if path.name != "export.yaml"}
    texts = {name: text.replace(str(place.resolve()), "PLACE") for name, text in files.items()}
    # Comments and values of the paper can change; what the converters read cannot.
    import yaml

    return made, {name: yaml.safe_load(text) if name.endswith(".yaml") else text for name, text in texts.items()}


def record(wheels):
    """Run the converters on all cases and write the recordings."""
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "wheels"
        versions = {}
        for wheel in sorted(Path(wheels).glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(unpacked)
            versions[wheel.name.split("-")[0]] = wheel.name.split("-")[1]
        jobs, files = [], []
        for trainer, shape in CASES:
            place = Path(scratch) / trainer / shape
            place.parent.mkdir(exist_ok=True)
            files.append(make(trainer, shape, place)[1])
            template = template_of(trainer, shape)
            jobs.append({
                "trainer": trainer, "place": str(place), "tokenizer": resolve_model("demo").source,
                "template": template.read_text("utf-8") if template else None,
            })  # fmt: skip
        listed = Path(scratch) / "jobs.json"
        listed.write_text(json.dumps(jobs), "utf-8")
        command = [sys.executable, "-m", "tests.exports.converters", str(unpacked), str(listed)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    RECORDINGS.mkdir(exist_ok=True)
    for trainer in TRAINERS:
        cases = {
            shape: {"files": made, "read": read}
            for (name, shape), made, read in zip(CASES, files, found, strict=True)
            if name == trainer
        }
        if trainer == "llamafactory":
            cases["tools"]["read"] = [{"labels": row["labels"]} for row in cases["tools"]["read"]]
        text = json.dumps({"version": versions[trainer], "cases": cases}, indent=1, ensure_ascii=False)
        (RECORDINGS / f"{trainer}.json").write_text(_short(text) + "\n", "utf-8")


def _short(text):
    """Put lists of token ids on one line."""
    import re

    return re.sub(r"\[\s+((?:-?\d+,\s+)*-?\d+)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text)


if __name__ == "__main__":
    record(sys.argv[1])
