"""What Kestrel adds to QGIS's window. Never imported by qgis_process."""
