"""Artifacts: the file store and the checkpoints in it."""
