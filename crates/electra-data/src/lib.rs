//! Text to packed batches: readers, tokenizer, shards, examples and masking.
