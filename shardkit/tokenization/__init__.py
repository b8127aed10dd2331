"""Text to shards: the tokenizer, the workers, the ordered writer, and `tokenize()`."""
