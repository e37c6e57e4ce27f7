"""The bytes of blocks, tier by tier."""
