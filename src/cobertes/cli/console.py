"""Console output of a command: progress bars, log and tables on standard error, results on standard output."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cobertes.atomic_io import without_nan
from cobertes.progress import SILENT, Advance
from cobertes.progress import Progress as ProgressProtocol

if TYPE_CHECKING:
    from cobertes.labels.legend import Legend

PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "emoji": False, "markup": False}
"""Texts are printed as they are: names of files and classes may hold brackets and colons."""


class _Rate(ProgressColumn):
    """Amount done, and per second."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        done = f"{_short(task.completed)}/{_short(task.total or 0)} {unit}"
        return Text(f"{done}  {_short(task.speed)}/s" if task.speed else done, style="dim")


def _short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


class _Log(logging.Handler):
    """Log records as plain lines above the bars; only what is more than information names its level."""

    def __init__(self, console: RichConsole) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        style = "yellow" if level else "dim"
        self.console.print(f"{level}{record.getMessage()}", style=style)


class Console:
    """Output of a command. ``quiet``: errors and results only; ``as_json``: the result as JSON."""

    def __init__(self, *, quiet: bool = False, debug: bool = False, as_json: bool = False) -> None:
        self.quiet, self.debug, self.as_json = quiet, debug, as_json
        self.error = RichConsole(stderr=True, **PLAIN)
        self.out = RichConsole(**PLAIN)
        self.result: dict[str, Any] = {}
        log = logging.getLogger("cobertes")
        log.handlers = [_Log(self.error)]
        log.setLevel(logging.DEBUG if debug else logging.ERROR if quiet else logging.INFO)

    @property
    def progress(self) -> ProgressProtocol:
        """Bars for the stages; none where nobody watches."""
        return SILENT if self.quiet or not self.error.is_terminal else _Bars(self.error)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line."""
        if not self.quiet:
            self.error.print(text, style=style)

    def fail(self, message: str) -> None:
        """Print the error line."""
        message = " ".join(message.split())  # some libraries' messages are whole paragraphs
        self.error.print(f"error: {message}", style="bold red")
        if self.as_json:
            self.result = {"error": message}
            self.finish()

    def answer(self, text: str | Table, **result: Any) -> None:
        """Print the result of a command: text or a table, or ``result`` with ``--json``."""
        self.result |= result
        if not self.as_json:
            self.out.print(text)

    def finish(self) -> None:
        """Write the one JSON object, where it was asked for."""
        if self.as_json:
            json.dump(without_nan(self.result), sys.stdout, ensure_ascii=False, allow_nan=False, default=str)
            sys.stdout.write("\n")


class _Noted(Progress):
    """Bars, and under each what it is told beside the amount: 80 columns hold no more on one line."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(f"  {task.fields['note']}", style="dim") for task in self.tasks if task.fields["note"])


class _Bars:
    """Bars with rate and time left."""

    def __init__(self, console: RichConsole) -> None:
        self.console = console

    @contextmanager
    def bar(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        # 80 columns hold a line, also of ten thousands of tiles
        columns = TextColumn("{task.description:<16}"), BarColumn(20), _Rate(), TimeRemainingColumn()
        with _Noted(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(name, total=total, unit=unit, note="")

            def advance(amount: float, note: str = "", /) -> None:
                progress.advance(task, amount)
                if note:
                    progress.update(task, note=note)

            yield advance


def class_table(legend: "Legend", counts: dict[int, int], hectares: dict[int, float] | None = None) -> str:
    """Pixels, hectares where they are known, and share of each class, nodata last."""
    names = {c.code: c.name for c in legend.classes} | {legend.nodata: "nodata"}
    total = max(sum(counts.values()), 1)
    head, rows = f"{'code':>4}  {'pixels':>14}  {'share':>7}  class", []
    for code, name in names.items():
        rows.append(f"{code:>4}  {counts[code]:>14,}  {counts[code] / total:>7.2%}  {name}")
    if hectares:
        head = f"{'hectares':>14}  {head}"
        rows = [f"{hectares[code]:>14,.2f}  {row}" for code, row in zip(names, rows, strict=True)]
    return "\n".join([head, *rows])
