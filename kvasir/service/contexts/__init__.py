"""The routes under /v1/contexts: what a document is to clients."""
