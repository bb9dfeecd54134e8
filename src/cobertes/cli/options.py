"""Shared options, and the exit codes of errors, for all commands."""

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
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted call.")]
Memory = Annotated[int, typer.Option(metavar="MB", help="Peak memory of the process.")]

Ray = Annotated[
    str | None,
    typer.Option(metavar="local|auto|HOST:PORT", help="Run on Ray: on this machine, or on a cluster."),
]

SHARED = {
    "quiet": Annotated[bool, typer.Option("--quiet", help="No progress, no log; errors and the result only.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Log every step, and show tracebacks.")],
    "as_json": Annotated[bool, typer.Option("--json", help="The result as one JSON object on standard output.")],
}


@contextmanager
def open_executor(ray: str | None, threads: int | None = None) -> Iterator["Executor | None"]:
    """Executor on the cluster at Ray's address; None without an address."""
    if ray is None:
        yield None
        return
    from cobertes.scale.ray_executor import ray_executor

    with ray_executor(ray, threads) as executor:
        yield executor


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM, which batch systems send, into an interrupt meanwhile."""
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
    with ``--debug`` the traceback comes first.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function)

        @wraps(function)
        def run(*, quiet: bool, debug: bool, as_json: bool, **values: Any) -> None:
            silent = os.environ.get("RANK", "0") != "0"  # under torchrun, only rank zero prints
            console = Console(quiet=quiet or silent, debug=debug, as_json=as_json)

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
            except Exception as error:  # last resort: name it, and point to --debug
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
