"""HOW GOOD: confusion matrix, metrics, bootstrap intervals, calibration and baselines."""
