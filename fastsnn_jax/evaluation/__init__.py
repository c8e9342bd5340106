"""How good a network is, what it costs, how near two networks are."""
