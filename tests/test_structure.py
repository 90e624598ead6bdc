"""The structure of the package and the rules for its code, checked on the code itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pickle
import pkgutil
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import magpie_hf
from magpie_hf import errors


REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "magpie_hf"
LONG_LINES, MAX_LINES, LONG_SHARE = 400, 700, 0.1
IMPORT_LIMIT_S = 0.3
HEAVY = ("torch", "transformers", "datasets", "numpy", "aiohttp", "huggingface_hub", "sentence_transformers", "faiss")
# Modules and folders from the lowest layer to the highest: each may import from lower layers only, also for type checking.
# What belongs to a folder but stands lower has a line of its own.
LAYERS = (
    ("errors", "version", "backoff", "messages", "nearest"),
    ("columns", "demo", "models", "plugins", "sampling", "storage"),
    ("mixing",),
    ("engines.base", "judging", "reports", "selection"),
    ("hub", "templates"),
    ("engines", "stage"),
    ("exports", "scoring"),
    ("stages",),
    ("execution",),
    ("recipe",),
    ("session",),
    ("api",),
    ("", "cli"),
    ("__main__",),
)
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cfg", ".json", ".jinja", ".sh", ""}
# Put together here so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile("|".join(["/ro" + "ot/", "/ho" + r"me/\w+/", "/wo" + "rk/", "/op" + "t/", "file:" + "///"]))
REGISTRY_HOSTS = re.compile(r"https?://[\w.-]*(?:py" + r"pi|python" + r"hosted|artifactory|nexus|jfrog)[\w.-]*", re.I)


def package_files():
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def tool_files():
    return sorted(path for path in (REPOSITORY / "tools").rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def submodules():
    return {info.name for info in pkgutil.iter_modules(magpie_hf.__path__)}


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_exported_name_is_there_and_mirrored_for_type_checkers():
    exports = magpie_hf._EXPORTS
    assert set(magpie_hf.__all__) == set(exports) | {"__version__"}
    for name in magpie_hf.__all__:
        getattr(magpie_hf, name)
    typed = [
        node for node in ast.walk(tree_of(PACKAGE / "__init__.py")) if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert {alias.asname or alias.name for node in typed for alias in node.names} == set(exports) | {"__version__"}


def test_no_exported_name_is_a_module():
    assert not set(magpie_hf.__all__) & submodules()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = magpie_hf.no_such_name


def test_import_is_quick_and_loads_nothing_heavy():
    script = (
        "import sys, time, json; start = time.perf_counter(); import magpie_hf; took = time.perf_counter() - start; "
        f"print(json.dumps([took, sorted(set({HEAVY!r}) & set(sys.modules))]))"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(took for took, _ in runs) < IMPORT_LIMIT_S
    assert runs[0][1] == []


def imports_of(path):
    """Return the modules that this file imports, also for type checking, relative to the package ("" is the package)."""
    found: set[str] = set()
    here = module_name(path)
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(
                a.name.removeprefix("magpie_hf").strip(".") for a in node.names if a.name.startswith("magpie_hf")
            )
        if isinstance(node, ast.ImportFrom):
            add_from(node)
        for child in ast.iter_child_nodes(node):
            visit(child)

    def add_from(node):
        if node.level:
            above = package.split(".") if package else []
            base = ".".join([*above[: len(above) - node.level + 1], *(node.module or "").split(".")]).strip(".")
        elif (node.module or "").split(".")[0] == "magpie_hf":
            base = (node.module or "").removeprefix("magpie_hf").strip(".")
        else:
            return
        for alias in node.names:
            inner = f"{base}.{alias.name}".strip(".")
            found.add(inner if inner in names() else base)

    visit(tree_of(path))
    return found - {here}


@cache
def names():
    return frozenset(module_name(path) for path in package_files())


@cache
def graph():
    return {module_name(path): imports_of(path) & names() for path in package_files()}


def reachable(start):
    seen: set[str] = set()
    todo = [start]
    while todo:
        for target in graph()[todo.pop()] - seen:
            seen.add(target)
            todo.append(target)
    return seen


def unit_of(module):
    """Return the entry of LAYERS that a module belongs to: the longest name that it begins with."""
    parts = module.split(".")
    units = {unit for layer in LAYERS for unit in layer}
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in units:
            return ".".join(parts[:end])
    raise AssertionError(f"{module} is in no layer: add its folder to LAYERS and to docs/architecture.md")


def layer_of(unit):
    return next(number for number, layer in enumerate(LAYERS) if unit in layer)


@pytest.mark.parametrize("unit", [unit for layer in LAYERS for unit in layer], ids=lambda unit: unit or "magpie_hf")
def test_folders_import_from_lower_layers_only(unit):
    wrong = [
        f"{module} imports {target}"
        for module in sorted(names())
        if unit_of(module) == unit
        for target in sorted(graph()[module])
        if unit_of(target) != unit and layer_of(unit_of(target)) >= layer_of(unit)
    ]
    assert not wrong


def test_every_layer_entry_exists_and_is_in_the_architecture_page():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for unit in filter(None, (unit for layer in LAYERS for unit in layer)):
        assert any(module == unit or module.startswith(unit + ".") for module in names()), unit
        assert unit.rpartition(".")[2] in page, f"docs/architecture.md does not name {unit}"


@pytest.mark.parametrize(("importer", "imported"), [("local", "remote"), ("remote", "local"), ("workers", "local")])
def test_kinds_of_engines_do_not_know_each_other(importer, imported):
    wrong = [
        f"{module} imports {target}"
        for module in sorted(names())
        if module.startswith(f"engines.{importer}.")
        for target in sorted(graph()[module])
        if target.startswith(f"engines.{imported}.")
    ]
    assert not wrong


def test_no_module_imports_itself_in_a_circle():
    circles = sorted(module for module in names() if module in reachable(module))
    assert not circles


def all_errors(kind=errors.MagpieError):
    return [kind, *(error for child in kind.__subclasses__() for error in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_pickles_with_all_it_holds(kind):
    error = kind("rows = -1 cannot be used.", where="mine.yaml, line 3", hint="Give 1 or more.", key="rows", value=-1)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "mine.yaml, line 3: rows = -1 cannot be used.\n  Give 1 or more."
    assert (again.message, again.where, again.hint, again.data) == (error.message, error.where, error.hint, error.data)


def test_every_error_of_ours_is_defined_in_errors():
    for path in package_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                assert not bases & {kind.__name__ for kind in all_errors()}, f"{node.name} in {path.name}"


def dangers(tree):
    """Yield (line, what) for what lets text from outside run as code."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "pickle.load", "pickle.loads", "os.system"):
            yield node.lineno, called
        for keyword in node.keywords:
            if keyword.arg in ("trust_remote_code", "shell") and getattr(keyword.value, "value", None) is True:
                yield node.lineno, f"{keyword.arg}=True"


def test_the_danger_search_finds_dangers():
    source = "eval(x)\nyaml.load(f)\nfrom_pretrained(m, trust_remote_code=True)\npickle.load(f)\nyaml.safe_load(f)"
    assert [line for line, _ in dangers(ast.parse(source))] == [1, 2, 3, 4]


def test_the_package_does_not_need_the_tools():
    for path in package_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom | ast.Import):
                assert "tools" not in ast.unparse(node).replace(".", " ").split(), path


@pytest.mark.parametrize(
    "path", [*package_files(), *tool_files()], ids=lambda path: path.relative_to(REPOSITORY).as_posix()
)
def test_a_package_file_is_documented_and_runs_no_text(path):
    assert not list(dangers(tree_of(path)))
    assert ast.get_docstring(tree_of(path)) or not tree_of(path).body


def test_files_are_short():
    lengths = {module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in package_files()}
    long = {name: length for name, length in lengths.items() if length > LONG_LINES}
    assert len(long) <= LONG_SHARE * len(lengths), long
    assert not [name for name, length in long.items() if length > MAX_LINES], long


def test_no_module_is_called_utils():
    assert not [name for name in names() if "utils" in name.split(".")]


def tracked_files():
    if not (REPOSITORY / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    paths = [REPOSITORY / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_tracked_files_hold_no_path_of_a_machine_and_no_registry():
    found = []
    for path in tracked_files():
        if path.suffix in TEXT_SUFFIXES and path.stat().st_size < 1_000_000:
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
                if MACHINE_PATHS.search(line) or REGISTRY_HOSTS.search(line):
                    found.append(f"{path.relative_to(REPOSITORY)}:{number}")
    assert not found


def test_tracked_files_are_small_yaml_loads_and_no_private_key_is_among_them():
    import yaml

    for path in tracked_files():
        assert path.stat().st_size <= 12_000_000, path
        if path.suffix in (".yaml", ".yml"):
            yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stat().st_size < 1_000_000:
            assert b"PRIVATE" + b" KEY-----" not in path.read_bytes(), path


def test_constraints_pin_versions_and_name_no_host():
    for name in ("constraints.txt", "constraints-text-generation.txt"):
        for line in (REPOSITORY / name).read_text().splitlines():
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
            assert not line.startswith(("nvidia-", "triton"))


def test_registries_name_classes_that_exist():
    for module in ("engines", "stages"):
        registry = getattr(importlib.import_module(f"magpie_hf.{module}"), module.upper())
        for address in registry.values():
            path, _, name = address.partition(":")
            if importlib.util.find_spec(path) is None:
                raise AssertionError(f"{address} is registered but does not exist")
            assert inspect.isclass(getattr(importlib.import_module(path), name)), address
