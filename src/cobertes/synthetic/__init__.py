"""Synthetic landscape of 1 m pixels: relief, then vegetation, then settlements.

nature --> settlement --> landscape --> demo

relief -> sea, rock, farmland, forest, scrub (thresholds at shares of the land)
       -> rivers, reservoirs, quarries, towns, estates, houses -> roads and railway on top
"""
