"""A remote dataset read while its shards arrive. `ShardCache` is its face; the other files speak only to each other."""
