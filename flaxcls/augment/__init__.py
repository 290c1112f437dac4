"""Augmentation on the device: pure functions of (key, image)."""
