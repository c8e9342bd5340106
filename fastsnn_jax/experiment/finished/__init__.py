"""What is asked of trained networks: their faults, their cost, their files."""
