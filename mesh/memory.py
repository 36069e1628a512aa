"""How a node's process keeps the memory it has freed.

The C library gives large blocks back to the kernel as soon as they are free, and takes them anew for the next message: each copy
of a tensor of a megabyte costs some 250 page faults, in all a quarter of the node's time. Told to keep so much, it does not.

Source: mallopt(3) of the GNU C library.
"""

import ctypes

KEPT_BYTES = 16 * 1024 * 1024
"""Freed memory that is kept, in bytes, and the size from which a block is mapped on its own: the longest message and a copy."""

M_TRIM_THRESHOLD = -1
"""Option: how much may be free at the top of the heap (malloc.h)."""

M_MMAP_THRESHOLD = -3
"""Option: from which size on a block is mapped on its own (malloc.h)."""


def keep_freed_memory() -> bool:
    """Have this process keep `KEPT_BYTES` of what it frees; returns whether the C library can be told so."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return all(mallopt(option, KEPT_BYTES) == 1 for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))
