"""What there is and whose it is: tenants, keys, files, contexts, as rows of a database."""
