"""What Kestrel does over the network: one client for every request, in QGIS's process and in the worker."""
