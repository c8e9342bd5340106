"""From a quantised network to a spiking one, and its repair."""
