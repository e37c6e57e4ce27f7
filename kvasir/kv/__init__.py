"""WHERE each block is: pool, keys, prefix tree, tails, eviction, the cache facade. Pure Python."""
