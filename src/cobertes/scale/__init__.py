"""Beyond one machine, on Ray: cluster <-- actors, prediction, tuning. Ray is an extra, imported where used."""
