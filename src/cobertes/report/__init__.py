"""TELL: the report, comparisons of runs and of label methods, thumbnails and charts."""
