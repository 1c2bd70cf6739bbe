"""The REST operation's own request: read, translated into parameters of `kestrel:detectobjects`, answered. No QGIS."""
