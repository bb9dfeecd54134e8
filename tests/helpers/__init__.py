"""Shared by test modules: rasters, projects, models made by hand, and two pytest plugins."""
