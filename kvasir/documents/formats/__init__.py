"""One module for each format: bytes or text in, a ``Builder`` filled, in a limited process.

Invariant: readers fetch nothing, follow nothing outside their file, and say what they leave out.
"""
