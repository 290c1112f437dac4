"""The commands: flags, a call, what is printed."""
