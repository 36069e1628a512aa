"""The figures of the mesh at scale, on virtual time: `make bench-sim`, or `python -m benchmarks.simulation NAME`."""
