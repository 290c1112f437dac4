"""Inference API of a trained run."""
