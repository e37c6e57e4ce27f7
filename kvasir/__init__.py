"""Kvasir: a long-context inference server that reads a document once and answers many questions."""

__version__ = "0.1.0"
