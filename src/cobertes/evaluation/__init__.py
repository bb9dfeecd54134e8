"""EVALUATE: the model and its baselines on held-out blocks, pixel for pixel as the map has them."""
