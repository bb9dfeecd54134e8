"""``python -m cobertes``: the command line where its script is not on the path."""

from cobertes.cli.main import main

if __name__ == "__main__":
    main()
