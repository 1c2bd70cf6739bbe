"""The worker process and the way to it."""
