"""Tensor functions over the paged pool: attention (an oracle and two fast paths), projections,
and the arithmetic of sampling. Values in, tensors out; nothing here knows of requests."""
