"""Rasters: where pixels come from."""
