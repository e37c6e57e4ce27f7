"""The model: one config-driven decoder, its weights, and where they come from."""
