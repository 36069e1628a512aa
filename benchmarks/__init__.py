"""Benchmarks: each prints a table and writes build/bench/NAME.json; every row is a ratio inside one run."""
