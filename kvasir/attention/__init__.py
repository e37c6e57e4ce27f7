"""How layers read KV: one description of a step's rows, and which kernel attends them."""
