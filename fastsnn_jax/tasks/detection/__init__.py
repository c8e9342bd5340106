"""Object detection: boxes."""
