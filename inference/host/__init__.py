"""The process that runs a package's own program, apart from the worker that started it."""
