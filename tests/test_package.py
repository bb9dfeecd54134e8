"""The package as a whole: its layers, its public names, its command line, its documentation."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cobertes
from cobertes.cli.main import app
from cobertes.settings import Settings

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cobertes"

# what each part may import beside the base and itself; a part that stands here in no row may not be there at all
BASE = {
    "errors": set(),
    "extras": {"errors"},
    "html_repr": set(),
    "numba_cache": set(),
    "progress": set(),
    "toml_io": set(),
    "settings": set(),
    "fingerprints": {"errors"},
    "atomic_io": {"errors"},
}
LAYERS = {
    "geo": set(),
    "labels": {"geo"},
    "tiles": {"geo", "labels"},
    "accuracy": {"geo", "labels", "tiles"},
    "survey": {"geo", "labels", "accuracy"},
    "learn": {"geo", "labels", "tiles", "accuracy"},
    "engines": {"geo", "tiles", "accuracy", "learn"},
    "predict": {"", "geo", "labels", "learn", "engines"},
    "evaluation": {"geo", "labels", "tiles", "accuracy", "learn", "engines", "predict"},
    "report": {"", "geo", "labels", "tiles", "accuracy"},
    "synthetic": {"labels"},
    "workflow": {"accuracy", "engines", "evaluation", "geo", "labels", "learn", "predict", "report", "tiles"},
    "scale": {"", "geo", "learn", "engines", "predict", "report", "workflow"},
}
ALLOWED = BASE | {part: others | set(BASE) for part, others in LAYERS.items()}
ALLOWED["cli"] = ALLOWED[""] = {*ALLOWED, ""}
ALLOWED["__main__"] = {"cli"}
WITHOUT_TORCH = {*BASE, "geo", "labels", "tiles", "accuracy", "survey", "report", "synthetic", "cli", "workflow"}


def modules():
    return [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]


def part_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path, *, everywhere=True):
    """Full names of the modules that a file imports; at its top level only, if asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_layer_imports_only_what_stands_below_it(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} has no row in the table of layers"
    allowed = ALLOWED[part] | {part}
    for name in imported(path):
        if not name.startswith("cobertes"):
            continue
        other = "" if name == "cobertes" else name.split(".")[1]
        assert other in allowed, f"{part} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_torch_stays_in_learn_and_what_runs_it(path):
    if part_of(path) in WITHOUT_TORCH:
        heavy = [name for name in imported(path) if name.split(".")[0] in ("torch", "timm", "lightning_fabric")]
        assert heavy == []


def test_modules_do_not_import_each_other_in_a_circle():
    names = {path: ".".join(("cobertes", *path.relative_to(SOURCE).with_suffix("").parts)) for path in modules()}
    graph = {}
    for path, name in names.items():
        found = [f"{one}." for one in imported(path)]
        graph[name] = {other for other in names.values() if any(one.startswith(f"{other}.") for one in found)}
    done: set[str] = set()

    def visit(name, above):
        assert name not in above, f"{' -> '.join([*above, name])}"
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, [*above, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.torch
def test_public_names_are_sorted_and_there():
    assert cobertes.__all__ == sorted(cobertes.__all__)
    assert set(cobertes.__all__) == set(cobertes._HOMES)
    for name in cobertes.__all__:
        assert getattr(cobertes, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'predict_mpa'"):
        cobertes.predict_mpa  # noqa: B018


def test_importing_the_package_and_its_help_load_nothing_heavy():
    code = (
        "import sys, cobertes, cobertes.cli.main\n"
        "heavy = {'torch', 'rasterio', 'numba', 'sklearn', 'matplotlib', 'numpy', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


COMMANDS = sorted(command.name for command in app.registered_commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_a_line_to_paste_and_the_shared_options(command):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"^ *cobertes {command}\b", shown.output.split("Options:")[0], re.MULTILINE)
    for option in ("--quiet", "--debug", "--json"):
        assert option in shown.output


@pytest.mark.torch
def test_the_command_line_reference_is_up_to_date():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_reference
    finally:
        sys.path.pop(0)
    for name, text in make_reference.pages().items():
        written = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert written == text, f"docs/{name} is stale: run `.venv/bin/python docs/make_reference.py`"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_example_projects_have_valid_settings(path):
    Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
