"""Workers: the pool of one machine, its worker processes, and the trials that they run."""
