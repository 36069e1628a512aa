"""The simulator: whole cores on virtual time, from one seed."""
