"""Places that datasets are pushed to and pulled from; `streaming/` is the wing for shards that arrive while read."""
