"""Tables of layers, and what a row may be."""
