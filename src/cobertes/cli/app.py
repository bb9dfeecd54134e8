"""Typer application with which the command modules register."""

from typing import Annotated

import typer

app = typer.Typer(
    name="cobertes",
    help="Satellite mosaics and a reference land-cover map in; a U-Net, an accuracy report and a map out.\n\n"
    "Start with: cobertes demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        import cobertes

        typer.echo(f"cobertes {cobertes.__version__}")
        raise typer.Exit
