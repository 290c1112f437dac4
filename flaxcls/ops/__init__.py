"""Convolution, pooling, batch statistics, LRN: each with its reference form and its fast ones."""
