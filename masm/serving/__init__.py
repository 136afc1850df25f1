"""Serving: the model that the registry holds."""
