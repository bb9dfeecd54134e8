"""Beyond one machine, on Ray: cluster <-- prediction, tuning. Ray is an extra, imported where it is used."""
