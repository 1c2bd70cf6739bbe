"""The Processing provider: Kestrel's algorithms as QGIS sees them."""
