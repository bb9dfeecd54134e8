"""Print the requirements of the environment without torch: pyproject.toml's, less what is for torch."""

import re
import tomllib
from pathlib import Path

TORCH_ONLY = {
    "huggingface-hub",
    "lightning-fabric",
    "safetensors",
    "segmentation-models-pytorch",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
}
TOOLS = {"hypothesis", "pytest", "pytest-xdist"}


def name_of(requirement: str) -> str:
    """Distribution name of a requirement."""
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower()


def requirements(pyproject: Path) -> list[str]:
    """Requirements, one a line of pip's format."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    needed = [one for one in project["dependencies"] if name_of(one) not in TORCH_ONLY]
    tools = [one for one in project["optional-dependencies"]["dev"] if name_of(one) in TOOLS]
    return [*needed, *tools, "rasterio>=1.5"]  # GDAL 3.12: not what Python 3.11 gets


if __name__ == "__main__":
    print("\n".join(requirements(Path(__file__).parents[1] / "pyproject.toml")))
