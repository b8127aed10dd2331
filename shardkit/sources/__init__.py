"""Text to read: a name becomes an ordered list of files, and those an ordered stream of chunks. Knows no tokens."""
