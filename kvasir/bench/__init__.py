"""Speed and cost, side by side with peers on the same machine and the same weights.

Importing this package, its ``candidate`` and its ``worker`` needs nothing but the standard library,
because a worker may run in another interpreter, one that has a peer and not Kvasir's dependencies.
"""
