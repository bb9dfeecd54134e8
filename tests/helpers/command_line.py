"""The command line, called in this process."""

from typer.testing import CliRunner

from cobertes.cli.main import app


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
