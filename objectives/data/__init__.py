"""Data sets: where they come from, their split, their cache."""
