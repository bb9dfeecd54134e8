"""Options that every command has, and what happens to errors: in one place."""

import inspect
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cobertes.cli.console import Console
from cobertes.errors import CobertesError

if TYPE_CHECKING:
    from cobertes.predict.prediction_job import Executor

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]

Ray = Annotated[
    str | None,
    typer.Option(metavar="local|auto|HOST:PORT", help="Share the work on Ray: on this machine, or a cluster's."),
]

SHARED = {
    "quiet": Annotated[bool, typer.Option("--quiet", help="No progress, no log; errors and the result only.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Log every step, and show tracebacks.")],
    "as_json": Annotated[bool, typer.Option("--json", help="The result as one JSON object on standard output.")],
}


@contextmanager
def open_executor(ray: str | None, threads: int | None = None) -> Iterator["Executor | None"]:
    """What computes a map: the cluster at Ray's address; None without one."""
    if ray is None:
        yield None
        return
    from cobertes.scale.ray_executor import ray_executor

    with ray_executor(ray, threads) as executor:
        yield executor


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, a batch system's way to say stop, is an interrupt meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


USER_CAN_MEND, UNEXPECTED, INTERRUPTED = 2, 1, 130


def command(app: typer.Typer, name: str, short: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function of (console, ...) as a command with the shared options; ``short`` is for the overview.

    A `CobertesError` becomes one line and exit code 2, an interrupt 130, anything else one line and 1;
    with ``--debug`` the traceback stands before the line.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function)

        @wraps(function)
        def run(*, quiet: bool, debug: bool, as_json: bool, **values: Any) -> None:
            follows = os.environ.get("RANK", "0") != "0"  # of several processes by torchrun, the first one tells
            console = Console(quiet=quiet or follows, debug=debug, as_json=as_json)

            def stop(message: str, code: int) -> None:
                if debug:
                    traceback.print_exc()
                console.fail(message)
                raise typer.Exit(code)

            try:
                with _terminable():
                    function(console, **values)
            except CobertesError as error:
                stop(str(error), USER_CAN_MEND)
            except KeyboardInterrupt:
                stop(
                    "interrupted; nothing is half-written. `cobertes run` and --resume go on from there.",
                    INTERRUPTED,
                )
            except Exception as error:  # the last resort: what it is, and where to learn more
                what = f"unexpected {type(error).__name__}: {error}"
                stop(f"{what}. Run it again with --debug and report that.", UNEXPECTED)
            console.finish()

        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter(key, keyword, default=False, annotation=option) for key, option in SHARED.items()
        ]
        parameters = [p.replace(kind=keyword) for p in list(own.parameters.values())[1:]]
        run.__signature__ = own.replace(parameters=[*parameters, *shared])  # type: ignore[attr-defined]
        app.command(name, short_help=short)(run)
        return function

    return register
