"""A thin reference trainer: how a training loop is fed from shards. It imports only shardkit's public names."""
