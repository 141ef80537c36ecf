"""Studies: the Python shell's objects, and what a study is made of."""
