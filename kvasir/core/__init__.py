"""Values and protocols that every layer shares. Imports nothing of ours."""
