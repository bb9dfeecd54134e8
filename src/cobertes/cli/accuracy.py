"""Commands on accuracy: compare-runs."""

from pathlib import Path
from typing import Annotated

import typer

from cobertes.cli.app import app
from cobertes.cli.console import Console
from cobertes.cli.options import Overwrite, command


@command(app, "compare-runs", "Several runs in one table: better, worse, or cannot tell.")
def compare_runs(
    console: Console,
    *,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs, after their evaluate stage; the first is "
                                   "what the others are compared with.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("-o", metavar="FILE.html", help="Also write the comparison as a page.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Compare runs on the blocks of ground that all of them held out, each with its 95 % interval.

    Differences have intervals of their own, from whole blocks drawn again for both runs alike: one that leaves out
    0 is called better or worse, any other says nothing.

    cobertes compare-runs runs/plain runs/weighted -o comparison.html
    """
    from cobertes.accuracy.runs import compare_runs, describe_comparison, read_settings, run_names
    from cobertes.geo.raster import check_writable
    from cobertes.stages import RunFolder

    if out is not None:
        check_writable(out, overwrite=overwrite)
    names = run_names(runs)
    found = compare_runs({name: RunFolder(run).blocks for name, run in names.items()})
    text = describe_comparison(found)
    if out is not None:
        from cobertes.apply.comparison_page import write_comparison_page

        settings = {name: read_settings(RunFolder(run).project) for name, run in names.items()}
        write_comparison_page(out, found, settings)
        text += f"\npage: {out}"
    console.answer(text, **found.to_dict(), page=out and str(out))
