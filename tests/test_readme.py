"""The README: its first screen, its tree of the code, and its pictures. `test_docs` runs its code blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_screen_has_a_picture_five_lines_two_commands_and_an_example_of_three_lines():
    first = README.split("\n## ")[0]
    picture, console, python = (first.index(what) for what in ("![", "```console", "```python"))
    assert picture < console < python
    lines = first[first.index("\n", picture) : console].strip().splitlines()
    assert len(lines) == 5
    blocks = re.findall(r"```\w+\n(.*?)```", first, re.DOTALL)
    commands, example = ([line for line in block.splitlines() if line] for block in blocks)
    assert [line.split()[1:3] for line in commands] == [["make", "demo"], ["make", "test"]]
    assert len(example) == 3


def test_the_tree_names_what_is_there():
    (tree,) = re.findall(r"```text\n(src/cobertes/.*?)```", README, re.DOTALL)
    names = re.findall(r"^  ([\w/.]+)", tree, re.MULTILINE)
    for name in names:
        assert (ROOT / "src" / "cobertes" / name).exists(), name
    folders = {path.parent.name for path in (ROOT / "src" / "cobertes").glob("*/__init__.py")}
    assert folders == {name.rstrip("/") for name in names if name.endswith("/")}


def test_pictures_are_there():
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert pictures
    assert [file for file in pictures if not (ROOT / file).exists()] == []
