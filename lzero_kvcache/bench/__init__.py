"""What a search costs with the cache, measured beside the release: 'lzero-kvcache bench'."""
