"""Beyond one machine, on Ray: cluster <-- ray_executor, tuning. Ray is an extra, imported only when used."""
