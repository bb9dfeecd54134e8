"""The command line: the only place that strings stages together."""
