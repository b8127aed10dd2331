"""Datasets in the formats of other trainers: a file each, with what it recognizes, reads and writes."""
