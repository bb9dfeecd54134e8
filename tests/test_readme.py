"""The README: what it shows can be typed."""

import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from cobertes.cli.main import app
from cobertes.settings import Settings
from cobertes.synthetic.demo import write_demo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def test_every_block_is_of_a_kind_that_is_checked_here():
    assert {kind for kind, _ in BLOCKS} == {"console", "toml", "python", "text"}


@pytest.mark.parametrize("line", [line for text in blocks("console") for line in text.splitlines()])
def test_commands_and_their_options_exist(line):
    words = line.split("#")[0].removeprefix("$ ").split()
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[0] == "cobertes" and words[1] != "--help":
        command = typer.main.get_command(app).commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known
        for file in (word for word in words if word.startswith("examples/")):
            assert (ROOT / file).exists()
    else:
        assert words[:2] == ["pip", "install"] or words[0] == "cobertes"


@pytest.mark.parametrize("text", blocks("toml"))
def test_project_files_are_valid(text):
    Settings.model_validate(tomllib.loads(text))


def test_the_tree_names_what_is_there():
    (tree,) = blocks("text")
    names = re.findall(r"^  ([\w/.]+)(?: ([\w.]+\.py))?", tree, re.MULTILINE)
    for name in (name for pair in names for name in pair if name):
        assert (ROOT / "src" / "cobertes" / name).exists(), name
    parts = {path.name for path in (ROOT / "src" / "cobertes").iterdir() if (path / "__init__.py").exists()}
    assert parts == {name.rstrip("/") for name, _ in names if name.endswith("/")}


def test_pictures_and_pages_are_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    project = write_demo(tmp_path / "demo", size=192)
    text = project.read_text()
    for key, value in {"minutes": 0.05}.items():
        text, found = re.subn(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert found == 1, key
    project.write_text(text)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "map.tif").exists()
    assert (tmp_path / "demo" / "runs" / "demo" / "report.html").exists()
    assert "'Watercourses and water bodies':" in capsys.readouterr().out
