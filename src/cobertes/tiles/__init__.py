"""WHICH: the tile index, the block split, statistics."""
