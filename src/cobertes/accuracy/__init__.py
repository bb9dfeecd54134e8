"""HOW GOOD: the confusion matrix, what derives from it, and the baselines beside it."""
