"""A function over time: each operation on spikes, and until none is fired."""
