"""Where a spiking network leaves its quantised twin, and why."""
