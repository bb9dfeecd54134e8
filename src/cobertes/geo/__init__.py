"""WHERE: grids, windows, scenes, and files that GIS programs open.

windows <-- grid <-- io <-- nodata, mmap_tiff <-- band_selection <-- scene <-- area, clip
windows <-- qgis_style, overviews <-- cog_writer <-- ledger
"""
