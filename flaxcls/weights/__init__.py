"""Names and files of PyTorch weights."""
