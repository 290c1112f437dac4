"""From a name such as `digits` or `folder:PATH` to batches of uint8 images."""
