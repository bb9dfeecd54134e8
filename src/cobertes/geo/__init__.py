"""WHERE: grids, windows, scenes, and files that GIS programs open."""
