"""Model packages: what a file says about a model, read without running or loading the model. Standard library only."""
