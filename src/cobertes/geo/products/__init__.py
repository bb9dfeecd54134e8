"""Products as downloaded: which file holds which band, what its numbers mean, where clouds are.

    band_vocabulary, record <-- archive <-- safe, landsat, hls, maja, eopf, cube, band_folder <-- detect

Each module of the second row knows the layout of one kind of product and gives a `record.Product`; `detect` finds
out which kind a path is. No pixel is read here.
"""
