"""Convolution, pooling, batch statistics, LRN: each with its reference form and its fast ones."""

from flaxcls.ops.forms import reference

__all__ = ['reference']
