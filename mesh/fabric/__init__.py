"""Fabrics in the shell: memory that nodes share, in its kinds, and the lanes by which requests use it."""

from mesh.fabric.fabrics import Fabrics
from mesh.fabric.kinds import Kinds, Wanted, find_kinds, parse_kinds
from mesh.fabric.shm import host_secret

__all__ = ["Fabrics", "Kinds", "Wanted", "find_kinds", "host_secret", "parse_kinds"]
