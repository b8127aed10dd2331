"""trainer: GPT-2 from shardkit's shards, one GPU to eight, never losing a run. Knows only `shardkit`'s public names."""
