"""Any JAX function as a network: a walk over its jaxpr."""
