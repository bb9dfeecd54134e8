"""A pytest plugin for an environment without torch, and the imports by which it chooses test modules.

With COBERTES_TORCH_FREE set, modules of tests that import torch, by themselves or through what they import, are not
collected, and tests marked ``torch`` (which import it inside) are deselected. Everything else must pass.
"""

import ast
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cobertes

TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "src" / "cobertes"
ABSENT = frozenset(
    {
        "huggingface_hub",
        "lightning_fabric",
        "safetensors",
        "segmentation_models_pytorch",
        "tensorboard",
        "timm",
        "torch",
        "torchmetrics",
        "torchvision",
    }
)
"""Packages of which the second environment has none: torch, and what is there for torch alone."""


@cache
def imports(path: Path, *, inside: bool = False) -> tuple[str, ...]:
    """Names that are imported when a file is; those that its functions import, too, if asked (``inside``)."""
    found: list[str] = []
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        match node := nodes.pop():
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not inside:
                continue
            case ast.Import():
                found += (alias.name for alias in node.names)
            case ast.ImportFrom():
                found += (f"{node.module}.{alias.name}" for alias in node.names)
            case _:
                nodes += ast.iter_child_nodes(node)
    return tuple(found)


def own_modules(name: str) -> Iterator[Path]:
    """Files of the package and of the tests that importing a dotted name executes."""
    parts = name.split(".")
    if parts[0] == "cobertes" and parts[-1] in cobertes.__all__ and len(parts) == 2:
        parts = ["cobertes", *cobertes._HOMES[parts[-1]].split("."), parts[-1]]
    base = SOURCE.parent if parts[0] == "cobertes" else TESTS
    for end in range(1, len(parts) + 1):
        for file in (base.joinpath(*parts[:end], "__init__.py"), base.joinpath(*parts[:end]).with_suffix(".py")):
            if file.is_file():
                yield file


@cache
def imported_files(path: Path, *, inside: bool = False) -> frozenset[Path]:
    """Files of the package and of the tests that a file imports itself."""
    return frozenset(file for name in imports(path, inside=inside) for file in own_modules(name))


@cache
def imports_torch(path: Path) -> bool:
    """True if importing a file imports a package of ABSENT, at whatever depth."""
    found, waiting = {path}, [path]
    while waiting:
        file = waiting.pop()
        if any(name.split(".")[0] in ABSENT for name in imports(file)):
            return True
        new = imported_files(file) - found
        found |= new
        waiting += new
    return False


def modules_of_tests() -> list[Path]:
    """All modules of tests."""
    return sorted(TESTS.rglob("test_*.py"))


def is_on() -> bool:
    """True in the environment without torch."""
    return bool(os.environ.get("COBERTES_TORCH_FREE"))


def pytest_ignore_collect(collection_path):
    """Leave out modules that could not even be imported."""
    chosen = is_on() and collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if chosen and imports_torch(collection_path) else None


def pytest_collection_modifyitems(config, items):
    """Deselect tests that import torch inside."""
    if is_on():
        torch = [item for item in items if item.get_closest_marker("torch")]
        items[:] = [item for item in items if item not in torch]
        config.hook.pytest_deselected(items=torch)


def pytest_report_header():
    """Say what is left out."""
    if is_on():
        left_out = [path.name for path in modules_of_tests() if imports_torch(path)]
        return f"without torch: {len(left_out)} of {len(modules_of_tests())} modules of tests are left out"
    return None
