"""Contexts: what a document is to the model, read once, kept, asked, forked, moved."""
