"""Networks out of JAX: files that other runtimes read."""
