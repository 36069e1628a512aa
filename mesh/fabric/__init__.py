"""Fabrics in the shell: shared memory between nodes of one host, and the lanes by which requests use it."""

from mesh.fabric.fabrics import Fabrics, host_secret

__all__ = ["Fabrics", "host_secret"]
