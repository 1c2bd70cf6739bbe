"""Where a run's objects go besides a new layer: existing layers, feature services, and the summary."""
