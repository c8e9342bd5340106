"""What a network costs: operations, memory, energy."""
