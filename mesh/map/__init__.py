"""The map: who is how far from whom, as one file that needs nothing else."""
