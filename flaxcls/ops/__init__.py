"""Convolution, pooling, batch statistics: each with its reference form and its fast ones."""
