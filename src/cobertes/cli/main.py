"""Entry point of the command line. Commands import heavy modules themselves, so that ``--help`` is quick."""

from cobertes.cli import projects  # isort: skip  (the order of the commands in the overview)
from cobertes.cli import labels  # isort: skip
from cobertes.cli import tiles  # isort: skip
from cobertes.cli import maps  # isort: skip
from cobertes.cli import accuracy  # isort: skip
from cobertes.cli.app import app

__all__ = ["accuracy", "app", "labels", "main", "maps", "projects", "tiles"]


def main() -> None:
    """Run the ``cobertes`` command."""
    app()
