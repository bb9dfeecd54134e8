"""USE: full-scene prediction, evaluation, the report."""
