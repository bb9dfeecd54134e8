"""README, CONTRIBUTING, LOG, CHANGELOG and docs/: code blocks run or give a reason, links lead somewhere, names exist."""

import ast
import re
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from cobertes.cli.main import app
from cobertes.labels.crosswalk import load_crosswalk
from cobertes.labels.legend import Legend
from cobertes.settings import Settings
from cobertes.synthetic.demo import write_demo

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cobertes"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

CHECKED = {"console", "python", "toml"}
"""Languages of blocks that are tested here; ``text`` is output, a listing or generated from docstrings."""
REASON = re.compile(r"<!-- not run: (\S.*) -->")
OTHER_PROGRAMS = {"git", "ruff", "mypy", "pytest", "tensorboard"}

COMMANDS = typer.main.get_command(app).commands
PROJECT = {"name": "fragment", "area": [{"scenes": "scene.tif", "reference": "map.tif"}]}
"""Keys that a part of a project file leaves out."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks_of(page):
    lines, found, line = page.read_text(encoding="utf-8").splitlines(), [], 0
    while line < len(lines):
        if lines[line].startswith("```"):
            end = lines.index("```", line + 1)
            reason = REASON.fullmatch(lines[line - 1])
            text = "\n".join(lines[line + 1 : end])
            found.append(Block(page, line + 1, lines[line][3:], text, reason and reason[1]))
            line = end
        line += 1
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(language):
    return [block for block in BLOCKS if block.language == language and block.reason is None]


# --- code blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_is_checked_or_has_a_reason_above_it(page):
    blocks = blocks_of(page)
    assert [str(b) for b in blocks if b.language not in {*CHECKED, "text"} and b.reason is None] == []
    reasons = page.read_text(encoding="utf-8").count("<!-- not run")
    assert reasons == sum(block.reason is not None for block in blocks), "a reason without a block below it"


def command_lines(block):
    """The commands of a console block, continued lines joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield from (part.strip() for part in line[2:].split("#")[0].split(" && "))


LINES = [
    pytest.param(line, id=f"{block}: {line[:60]}") for block in of("console") for line in command_lines(block)
]


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_parses(line):
    program, *words = shlex.split(line)
    if program in ("torchrun", "srun"):
        assert "-m cobertes -- " in line
        program, words = "cobertes", words[words.index("--") + 1 :]
    if program == "cobertes" and words != ["--help"]:
        COMMANDS[words[0]].make_context(words[0], words[1:])  # raises for what does not exist or is missing
        for file in (word for word in words if word.startswith("examples/") and word.endswith(".toml")):
            assert (ROOT / file).exists()
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install"
        assert set(re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", words[-1])))) <= set(extras)
    elif Path(program).name in ("python", "python3"):
        files = [word for word in words if word.endswith(".py")]
        assert files or words[0] == "-m"
        assert [file for file in files if not (ROOT / file).exists()] == []
    else:
        assert program in {*OTHER_PROGRAMS, "cobertes"}


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_a_toml_block_is_a_legend_a_crosswalk_or_part_of_a_project(block, tmp_path):
    data = tomllib.loads(block.text)
    if "class" in data:
        assert len(Legend.from_dict(data)) == len(data["class"])
    elif "codes" in data:
        file = tmp_path / "crosswalk.toml"
        file.write_text(block.text, encoding="utf-8")
        assert len(load_crosswalk(str(file)).codes) == len(data["codes"])
    else:
        assert Settings.model_validate(PROJECT | data).name


def run_python(page, folder, monkeypatch):
    """Execute the Python blocks of a page in order, as one program in a folder."""
    monkeypatch.chdir(folder)
    names = {}
    for block in (block for block in of("python") if block.page == page):
        # blank lines before the code: a traceback names the line of the page
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory):
    """A folder with a tiny demo in demo/, run by the example of the README."""
    folder = tmp_path_factory.mktemp("readme")
    project = write_demo(folder / "demo", size=192)
    text, found = re.subn(r"^minutes = \S+", "minutes = 0.05", project.read_text(), flags=re.MULTILINE)
    assert found == 1
    project.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        run_python(ROOT / "README.md", folder, patch)
    return folder


@pytest.mark.torch
def test_the_example_of_the_readme_runs_all_stages(finished_demo):
    run = finished_demo / "demo" / "runs" / "demo"
    for name in ("model.safetensors", "assessment.json", "maps/mini-catalonia.tif", "report.html"):
        assert (run / name).exists()


@pytest.mark.torch
@pytest.mark.parametrize("page", sorted({block.page for block in of("python")}), ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_in_order(page, finished_demo, tmp_path, monkeypatch):
    shutil.copytree(finished_demo / "demo", tmp_path / "demo")
    run_python(page, tmp_path, monkeypatch)


# --- links and names


def anchor(heading):
    """The anchor of a heading, as GitHub and MkDocs make it."""
    text = re.sub(r"[`*]|\]\(.*?\)|\[", "", heading).strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", text))


def anchors_of(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_anchors_that_exist(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for file, name in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if file.startswith("https://"):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} -> {file}"
        if name:
            assert name in anchors_of(target), f"{page.name} -> {file}#{name}"


def test_the_index_of_the_log_names_every_section():
    text = (ROOT / "LOG.md").read_text(encoding="utf-8")
    index, rest = re.split(r"^## 20", text, maxsplit=1, flags=re.MULTILINE)
    sections = [anchor(heading) for heading in re.findall(r"^## (20.+)$", f"## 20{rest}", re.MULTILINE)]
    named = re.findall(r"\]\(#([^)]+)\)", index)
    assert len(sections) == len(set(sections))
    assert set(sections) == set(named)


def test_targets_of_make_that_pages_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in set(PAGES) - {ROOT / "LOG.md"}:
        named = set(re.findall(r"`make ([\w-]+)`", page.read_text(encoding="utf-8")))
        assert named <= targets, page.name


def test_files_that_pages_name_exist():
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if page.name in ("cli.md", "project.md", "api.md"):
            continue
        for name in re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|toml))`", page.read_text(encoding="utf-8")):
            if not name.startswith(("runs/", "demo/")):
                assert (SOURCE / name).exists() or (ROOT / name).exists(), f"{page.name}: {name}"


# --- the table of layers


def layers():
    """Folder -> (folders that it may import, whether torch) of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|[^|]*\|[^|]*\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)
    return {folder: (set(re.findall(r"\w+", allowed)), torch.strip()) for folder, allowed, torch in rows}


def imports_of(folder):
    """Top-level names of all that the modules of a folder import, folders of cobertes by their own name."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name.removeprefix("cobertes.").split(".")[0] for name in names}
    return found


def test_the_table_of_layers_lists_every_folder():
    assert set(layers()) == {path.parent.name for path in SOURCE.glob("*/__init__.py")}


@pytest.mark.parametrize("folder", sorted(layers()))
def test_the_table_of_layers_is_what_a_folder_imports(folder):
    allowed, torch = layers()[folder]
    imported = imports_of(SOURCE / folder)
    if folder != "cli":  # which may import everything
        assert imported & set(layers()) - {folder} == allowed
    assert ("yes" if imported & {"torch", "timm", "lightning_fabric"} else "no") == torch
