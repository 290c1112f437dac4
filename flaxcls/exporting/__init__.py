"""Networks as files for programs that need neither flaxcls nor JAX."""
