"""Compiled training: an epoch as one program."""
