"""Command line: the only layer that combines stages."""
