"""The wheel, installed where the checkout is not, runs the quickstart."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Give the bin directory of a new environment that has the wheel, and the other packages by a path file."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, capture_output=True
    )
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    # addsitedir would run the path files there, and with them the editable install of this checkout; a plain path does not.
    Path(purelib, "packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def run(arguments, cwd, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, env=clean | environment)


def test_the_wheel_holds_recipes_the_demo_model_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "magpie_hf/_data/recipes/quickstart.yaml" in names
    assert "magpie_hf/demo/model/config.json" in names
    assert "magpie_hf/py.typed" in names
    assert "magpie_hf/judging/rubrics/quality.yaml" in names
    assert "magpie_hf/recipe/presets/math.yaml" in names
    assert "magpie_hf/reports/page.html.jinja" in names
    assert "magpie_hf/_data/dataset_cards/template.md.jinja" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/")) or "__pycache__" in name]
    assert wheel.stat().st_size < 40_000_000


@pytest.mark.slow
def test_the_installed_wheel_runs_the_quickstart(installed, tmp_path):
    where = run([installed / "python", "-c", "import magpie_hf; print(magpie_hf.__file__)"], tmp_path)
    assert str(installed.parent) in where.stdout, where.stderr
    command = [installed / "magpie-hf", "run", "quickstart", "--set", "num_rows=20", "--output", str(tmp_path / "q")]
    ended = run(command, tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    count = (
        "import datasets, sys; d = datasets.load_dataset(sys.argv[1], split='train'); "
        "print(len(d), all(d['instruction']), 'messages' in d.column_names)"
    )
    read = run([installed / "python", "-c", count, str(tmp_path / "q")], tmp_path)
    assert read.stdout.split() == ["20", "True", "True"], read.stderr[-2000:]


@pytest.mark.slow
def test_the_installed_wheel_annotates_selects_reports_and_writes_the_card(installed, tmp_path):
    command = [installed / "magpie-hf", "run", "showcase", "--set", "num_rows=12", "--output", str(tmp_path / "s")]
    ended = run(command, tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert (tmp_path / "s" / "report.html").stat().st_size > 10_000
    ended = run([installed / "magpie-hf", "card", str(tmp_path / "s")], tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "## How it was made" in (tmp_path / "s" / "README.md").read_text("utf-8")
