"""Trees of arrays and networks on disk."""
