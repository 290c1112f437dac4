"""From a config to a trained run in its workdir."""
