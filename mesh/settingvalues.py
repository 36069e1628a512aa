"""How the values of settings are read that are words, numbers and switches; the others stand with the settings.

Each takes the text that somebody has written, and raises `ValueError` with what to write instead.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Final

BUSY_POLL_US = 2000
"""How long a node may look before it sleeps unless told otherwise, in microseconds: it looks where waits of up to half as much
are usual, as among near nodes that answer one another."""

BUSY_POLL_US_MAX = 10_000
"""Longest look before sleeping in microseconds: ten times the promise of the mesh; more is not hastened by looking."""

GRACE_S_MAX = 3600.0
"""Seconds; longer than any single answer is allowed to take, shorter than a forgotten process."""
FABRIC_KINDS: Final = ("shm", "cxl", "rdma", "gpu")
"""The kinds of fabric by the names of `protocol.fabric.Kind`, which the command line does not wait for."""
NUMA_NODES_MAX = 1024
"""NUMA nodes of one machine, a count: as many as Linux knows (MAX_NUMNODES)."""
FABRIC_WORDS: Final = ("auto", "none")
"""All kinds that are there but RDMA, and none."""

_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean "…"?)` for the known word nearest to `word`, or an empty string."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f' (did you mean "{near[0]}"?)' if near else ""


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    """One of some words."""

    def _parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"choose one of {', '.join(choices)}{suggestion(text, choices)}")
        return text

    return _parse


def switch(text: str) -> bool:
    """True or false, by any of the words for them."""
    if text.lower() not in _FLAGS:
        raise ValueError("write true or false")
    return _FLAGS[text.lower()]


def seconds(text: str) -> float:
    """Seconds, up to an hour."""
    try:
        found_s = float(text)
    except ValueError:
        found_s = -1.0
    if not 0.0 <= found_s <= GRACE_S_MAX:
        raise ValueError(f"give seconds from 0 to {GRACE_S_MAX:g}")
    return found_s


def busy_poll(text: str) -> int:
    """Microseconds of looking before the node sleeps."""
    if not text.isascii() or not text.isdigit() or int(text) > BUSY_POLL_US_MAX:
        raise ValueError(f"give microseconds from 0, for not at all, to {BUSY_POLL_US_MAX}")
    return int(text)


def degrees(limit: float) -> Callable[[str], float]:
    """Degrees from a number below zero to the same above."""

    def _parse(text: str) -> float:
        try:
            angle = float(text)
        except ValueError:
            angle = float("nan")
        if not -limit <= angle <= limit:  # NaN compares false
            raise ValueError(f"give degrees from {-limit:g} to {limit:g}, south and west negative, such as 48.1")
        return angle

    return _parse


def node_number(text: str) -> int:
    """The number of a NUMA node."""
    if not text.isascii() or not text.isdigit() or int(text) >= NUMA_NODES_MAX:
        raise ValueError(f"give the number of a NUMA node, from 0 to {NUMA_NODES_MAX - 1}")
    return int(text)


def rdma_device(text: str) -> str:
    """The name of an RDMA device."""
    if not re.fullmatch(r"[\w.:-]{1,63}", text):
        raise ValueError(f"give the name of an RDMA device, such as mlx5_0 (`rdma link` shows them), not {text!r}")
    return text


def fabrics(text: str) -> str:
    """`auto`, `none`, or kinds of fabric with commas between them."""
    if text not in FABRIC_WORDS and (unknown := [name for name in text.split(",") if name not in FABRIC_KINDS]):
        raise ValueError(f"write auto, none, or some of {','.join(FABRIC_KINDS)} with commas; {unknown[0]!r} is none of them")
    return text
