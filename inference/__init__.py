"""Kestrel's detection core: it knows rasters, models and tiles, and nothing of QGIS or Qt.

`inference.detect.detect` runs one `inference.job.DetectionJob`. QGIS never calls it in its own process: it starts the
worker (`inference.worker`) in the inference environment and talks to it through `inference.worker.client`.

This file imports nothing, so that QGIS can import the light modules (errors, job, models, worker.client) without
torch or rasterio.
"""
