"""Ablation sweeps: what a file of experiments/sweeps/ is written with."""

from flaxcls.sweeping.definition import Sweep, values, zipped

__all__ = ['Sweep', 'values', 'zipped']
