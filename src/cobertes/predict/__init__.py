"""MAP: full-scene prediction and the layers of a map."""
