"""WHICH: tile index, block split, band statistics, tile store."""
