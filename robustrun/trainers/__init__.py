"""How a model is fitted, or where a finished one comes from."""
