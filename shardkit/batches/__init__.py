"""Which rows a batch holds and what is in them. No torch."""
