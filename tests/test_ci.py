"""What continuous integration promises: no test is skipped in silence, and the layers without torch run without it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from helpers import torch_free
from helpers.skips import in_ci
from helpers.torch_free import SOURCE, TESTS, imported_files, imports_torch, modules_of_tests

ROOT = TESTS.parent
LAYERS = ("geo", "labels", "tiles", "accuracy", "survey")
"""What the environment without torch is there for."""


def run_pytest(folder, *options, **environment):
    """Exit code and output of pytest with this project's plugins over a folder of tests."""
    found = {
        name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST_", "COBERTES_"))
    }
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "helpers.skips"]
    command += ["-p", "helpers.torch_free", "-o", "markers=torch", f"--rootdir={folder}", str(folder), *options]
    paths = os.pathsep.join([str(TESTS), found.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=found | {"PYTHONPATH": paths} | environment
    )
    return done.returncode, done.stdout


def write_tests(folder, texts):
    for name, text in texts.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n{text}\n", encoding="utf-8")


AVOIDABLE = {
    "inside": "def test_it():\n    pytest.importorskip('not_there')",
    "reason": "def test_it():\n    pytest.importorskip('not_there', reason='Ray is not installed')",
    "module": "pytest.importorskip('not_there')\ndef test_it(): ...",
    "skipif": "@pytest.mark.skipif(True, reason='no onnx here')\ndef test_it(): ...",
    "fixture": "@pytest.fixture\ndef it():\n    pytest.skip('no onnx')\ndef test_it(it): ...",
}
ALLOWED = {
    "data": "@pytest.mark.skipif(True, reason='needs the data')\ndef test_it(): ...",
    "device": "def test_it():\n    pytest.skip('needs CUDA')",
    "expected": "@pytest.mark.xfail(strict=True)\ndef test_it():\n    assert False",
}


def test_a_skip_for_a_missing_package_fails_in_ci(tmp_path):
    write_tests(tmp_path, AVOIDABLE)
    code, output = run_pytest(tmp_path, "--continue-on-collection-errors", CI="true")
    assert code == 1
    for name in AVOIDABLE:
        said = rf"test_{name}.py:\d+: skipped in CI: .*(not_there|Ray is not|no onnx)"
        assert re.search(said, output), f"{name}: {output}"
    assert "skipped" not in output.splitlines()[-1]


def test_elsewhere_every_skip_is_told_with_its_reason(tmp_path):
    write_tests(tmp_path, AVOIDABLE | ALLOWED)
    code, output = run_pytest(tmp_path)
    assert (code, "7 skipped, 1 xfailed" in output) == (0, True), output
    for name in (AVOIDABLE | ALLOWED).keys() - {"expected"}:
        assert re.search(rf"SKIPPED \[1\] .*test_{name}.py:\d+: \w+", output), f"{name}: {output}"


def test_absent_data_programs_and_devices_may_skip_in_ci(tmp_path):
    write_tests(tmp_path, ALLOWED)
    code, output = run_pytest(tmp_path, CI="true")
    assert (code, "2 skipped, 1 xfailed" in output) == (0, True), output
    assert "needs the data" in output
    assert "needs CUDA" in output


@pytest.mark.parametrize(
    ("value", "is_ci"), [("true", True), ("1", True), ("", False), ("false", False), ("0", False)]
)
def test_ci_is_an_environment_variable_that_is_set_and_not_false(monkeypatch, value, is_ci):
    monkeypatch.setenv("CI", value)
    assert in_ci() is is_ci


def test_without_torch_only_what_imports_it_is_left_out(tmp_path):
    texts = {
        "here": "def test_one(): ...\n@pytest.mark.torch\ndef test_two(): ...",
        "skip": "def test_one():\n    pytest.importorskip('not_there')",
        "direct": "if True:\n    import torch.nn\ndef test_one(): ...",
    }
    write_tests(tmp_path, texts)
    code, output = run_pytest(tmp_path, COBERTES_TORCH_FREE="1", CI="true")
    assert (code, "1 failed, 1 passed, 1 deselected" in output) == (1, True), output
    (tmp_path / "torch" / "nn").mkdir(parents=True)  # there is none, or one that takes seconds to import
    code, output = run_pytest(tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(TESTS)]))
    assert (code, "3 passed, 1 skipped" in output) == (0, True), output


IMPORTS = {
    "import torch": True,
    "from torch import nn": True,
    "def f():\n    import torch": False,
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch": False,
    "try:\n    import timm\nexcept ImportError:\n    pass": True,
    "from cobertes import predict_map": True,
    "from cobertes import open_scene": False,
    "from helpers import torch_free": False,
    "import numpy": False,
}


@pytest.mark.parametrize(("text", "needed"), IMPORTS.items())
def test_torch_is_found_at_any_depth_of_imports(tmp_path, text, needed):
    path = tmp_path / "test_it.py"
    path.write_text(text, encoding="utf-8")
    assert imports_torch(path) is needed


def layer_modules():
    found = [path for layer in LAYERS for path in sorted((SOURCE / layer).rglob("*.py"))]
    return [path for path in found if path.name != "__init__.py"]


def test_every_module_of_the_layers_is_reached_by_tests_that_run_without_torch():
    """Were a helper to import torch, the second environment would lose tests without a word."""
    reached = {path for path in modules_of_tests() if not imports_torch(path)}
    waiting = list(reached)
    while waiting:
        path = waiting.pop()
        commands = path.parent == SOURCE / "cli"  # they import inside
        new = {file for file in imported_files(path, inside=commands) if not imports_torch(file)} - reached
        reached |= new
        waiting += new
    assert [str(path) for path in layer_modules() if path not in reached] == []


def test_the_layers_import_without_torch():
    names = [".".join(("cobertes", *path.relative_to(SOURCE).with_suffix("").parts)) for path in layer_modules()]
    code = f"""
        import importlib, sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name in {sorted(torch_free.ABSENT)}:
                    raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
        sys.meta_path.insert(0, Absent())
        for name in {names}:
            importlib.import_module(name)
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], check=True)


@pytest.fixture(scope="module")
def core():
    spec = importlib.util.spec_from_file_location("core_requirements", ROOT / ".ci" / "core_requirements.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_second_environment_has_all_but_torch(core, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=1.26", "torch>=2.4", "segmentation-models-pytorch", "new"]\n'
        '[project.optional-dependencies]\ndev = ["pytest>=8", "mypy"]\n',
        encoding="utf-8",
    )
    assert core.requirements(tmp_path / "pyproject.toml") == ["numpy>=1.26", "new", "pytest>=8", "rasterio>=1.5"]
    kept = {core.name_of(one).replace("-", "_") for one in core.requirements(ROOT / "pyproject.toml")}
    assert not kept & torch_free.ABSENT
    assert {name.replace("-", "_") for name in core.TORCH_ONLY} | {"torchmetrics"} == torch_free.ABSENT


@pytest.mark.parametrize(
    ("opted_out", "code", "said"),
    [
        ({}, 1, r"error: no Python 3\.13 here.*\n.*PYTHON_CORE.*COBERTES_SKIP_CORE=1"),
        ({"COBERTES_SKIP_CORE": "1"}, 0, r"NOT tested on it"),
    ],
)
def test_where_python_3_13_is_missing_that_is_said(tmp_path, opted_out, code, said):
    for name in ("bash", "dirname", "ls"):
        (tmp_path / name).symlink_to(shutil.which(name))
    shim = tmp_path / "python3.13"  # pyenv's, of a version that is not chosen
    shim.write_text("#!/bin/bash\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n", encoding="utf-8")
    shim.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "test-core"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)} | opted_out,
    )
    assert done.returncode == code, done.stderr
    assert re.search(said, done.stdout + done.stderr)


def test_nothing_of_the_repository_depends_on_a_place_of_one_machine():
    files = [ROOT / "Makefile", ROOT / ".pre-commit-config.yaml", *(ROOT / ".ci").iterdir()]
    for path in files:
        if path.is_file():
            assert not re.search(r"(?<![\w.])/(home|root|work|Users)/", path.read_text(encoding="utf-8")), path
