"""Write the README's picture from a finished run: scene, labels and predicted map side by side, with the legend.

.venv/bin/python docs/make_picture.py examples/zion.toml examples/runs/zion docs/zion.png
"""

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from cobertes.report import thumbnails
from cobertes.workflow.project import load_project
from cobertes.workflow.run_folder import RunFolder

LONGEST = 560


def main(project_file: str, run: str, out: str) -> None:
    """Draw the first area of a run."""
    project, files = load_project(Path(project_file)), RunFolder(Path(run))
    area, legend = project.areas[0], project.legend
    cell = thumbnails.cell_size(area.shape, LONGEST)
    shown = [
        ("scene", thumbnails.scene_pictures([*area.scenes.values()], project.rgb, cell)[0]),
        ("labels", thumbnails.codes_picture(thumbnails.read_codes(files.labels(area.name), cell), legend)),
        ("predicted map", thumbnails.codes_picture(thumbnails.read_codes(files.map(area.name), cell), legend)),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(12, 5.6), layout="constrained")
    for axis, (title, picture) in zip(axes, shown, strict=True):
        axis.imshow(plt.imread(io.BytesIO(picture.png)), interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    handles = [plt.Rectangle((0, 0), 1, 1, color=land.colour) for land in legend.classes]
    names = [land.name for land in legend.classes]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
