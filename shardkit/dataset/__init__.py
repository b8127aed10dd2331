"""The format: shards, the manifest, the journal of a run in the making. Knows no text, no network, no batches."""
