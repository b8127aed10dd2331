"""`ShardLoader`: rows become tensors. The one room that imports torch (on first use, not here)."""
