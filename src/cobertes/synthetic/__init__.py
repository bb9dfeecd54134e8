"""A made-up landscape of 1 m pixels: relief first, then what grows on it, then what people built.

nature --> settlement --> landscape --> demo

relief -> sea, rock, farmland, forest, scrub (thresholds at shares of the land)
       -> rivers, reservoirs, quarries, towns, estates, houses -> roads and railway on top
"""
