"""The tour: every cell runs, from generated data to a map, and its pictures are in the file."""

from pathlib import Path

import pytest

TOUR = Path(__file__).parents[1] / "examples" / "tour.ipynb"


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.torch  # the kernel trains
@pytest.mark.filterwarnings("default")  # of Jupyter's own libraries
def test_the_tour_runs_and_shows_what_it_makes(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(TOUR, as_version=4)
    assert pictures(notebook) == 3
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type == "markdown" else cell.update(outputs=[])
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # raises for a cell that fails
    assert pictures(notebook) == 3
    assert (tmp_path / "tour" / "run" / "maps").is_dir()
