"""Memory of a chosen NUMA node: such as CXL memory that the system has taken in as a node without processors.

Where such memory is at hand, large tensors that wait to be read need not take the memory next to the processors. A region is
bound to the node before anything is put into it, so that its pages come from there or not at all.

Source: mbind(2); Linux Documentation/admin-guide/mm/numa_memory_policy.rst.
"""

import ctypes
import errno
import os
import platform
from dataclasses import dataclass
from pathlib import Path

NODES_MAX = 1024
"""Most nodes of one machine, a count: MAX_NUMNODES of the largest kernels."""

_MBIND = {"x86_64": 237, "aarch64": 235}
"""The number of mbind(2), by machine (asm/unistd.h)."""

# Modes and flags of linux/mempolicy.h: MPOL_BIND takes pages from the nodes given and no others.
_MPOL_BIND = 2


class NumaError(Exception):
    """Memory of a node cannot be had, and what to do about it."""


@dataclass(frozen=True, slots=True)
class NumaNode:
    """One node of the machine.

    Attributes:
        number: as the system counts them.
        size_bytes: its memory.
        has_processors: whether it has any; one without is memory behind a bus, such as CXL.
    """

    number: int
    size_bytes: int
    has_processors: bool


def find_nodes(root: Path = Path("/sys/devices/system/node")) -> tuple[NumaNode, ...]:
    """The nodes of this machine that have memory, in order; none where the system does not tell."""
    nodes = []
    for number in _numbers(_text(root / "has_memory")):
        folder = root / f"node{number}"
        processors = _text(folder / "cpulist")
        nodes.append(NumaNode(number, _size_bytes(_text(folder / "meminfo")), bool(processors)))
    return tuple(nodes)


def check_node(number: int, root: Path = Path("/sys/devices/system/node")) -> NumaNode:
    """See that there is memory of a node.

    Raises:
        NumaError: there is none.
    """
    nodes = find_nodes(root)
    for node in nodes:
        if node.number == number:
            return node
    there = ", ".join(_describe(node) for node in nodes) or "the system tells of none"
    raise NumaError(f"there is no memory of NUMA node {number}; there is: {there}")


def bind(address: int, size_bytes: int, node: int) -> None:
    """Have the pages of some memory, which nobody has touched yet, come from one node alone.

    Args:
        address: of its first byte, at the beginning of a page.
        size_bytes: its length.
        node: which.

    Raises:
        NumaError: the system refuses.
    """
    number = _MBIND.get(platform.machine())
    if number is None:
        raise NumaError(f"how memory is bound to a NUMA node is not known for {platform.machine()}; leave memory_node out")
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (NODES_MAX // bits))()
    if not 0 <= node < NODES_MAX:
        raise NumaError(f"NUMA nodes have numbers from 0 to {NODES_MAX - 1}, not {node}")
    mask[node // bits] = 1 << (node % bits)
    call = ctypes.CDLL(None, use_errno=True).syscall
    length, most = ctypes.c_ulong(size_bytes), ctypes.c_ulong(NODES_MAX + 1)  # one more, as the kernel counts
    if call(number, ctypes.c_void_p(address), length, _MPOL_BIND, mask, most, 0) != 0:
        code = ctypes.get_errno()
        hint = {
            errno.EINVAL: "there is no such node, or it has no memory",
            errno.EPERM: "this process may not use it: see cpuset.mems of its control group",
            errno.ENOSYS: "this kernel knows no NUMA nodes",
        }.get(code, os.strerror(code))
        raise NumaError(f"memory cannot be had of NUMA node {node}: {hint}; leave memory_node out")


def _describe(node: NumaNode) -> str:
    kind = "" if node.has_processors else " without processors"
    return f"node {node.number}{kind} with {node.size_bytes / 2**30:.1f} GiB"


def _numbers(text: str) -> list[int]:
    """The numbers of a list such as `0-1,4`, as the kernel writes them."""
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            numbers += range(int(first), min(int(last or first), NODES_MAX - 1) + 1)
    return numbers


def _size_bytes(meminfo: str) -> int:
    """What a line `Node 0 MemTotal:  1234 kB` says."""
    for line in meminfo.splitlines():
        words = line.split()
        if "MemTotal:" in words and words[-1] == "kB" and words[-2].isdigit():
            return int(words[-2]) * 1024
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
