"""The fabrics that a node may use, by their names in its configuration, and what is needed for each.

Spec: docs/spec/11-fabric.md, section "Matching".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.fabric.base import Opener
from mesh.fabric.shm import ShmOpener, host_secret
from protocol.fabric import Kind

AUTO, NONE = "auto", "none"
"""All kinds that are there, and none."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """The fabrics of a node.

    Attributes:
        openers: of those that are there, or may come to be.
        absent: why others are not, by kind.
    """

    openers: tuple[Opener, ...] = ()
    absent: tuple[tuple[Kind, str], ...] = ()


def parse_kinds(text: str) -> tuple[Kind, ...]:
    """The kinds that a configuration names, which has been checked: `auto`, `none`, or names with commas between them."""
    if text in (AUTO, NONE):
        return tuple(Kind) if text == AUTO else ()
    return tuple(kind for kind in Kind if kind.name.lower() in text.split(","))


def find_kinds(kinds: Sequence[Kind], network_id: str) -> Kinds:
    """What there is of the kinds that may be used.

    Args:
        kinds: those that the configuration allows.
        network_id: of the network.
    """
    openers: list[Opener] = []
    absent: list[tuple[Kind, str]] = []
    for kind in kinds:
        match kind:
            case Kind.SHM:
                openers.append(ShmOpener(network_id, host_secret()))
            case Kind.CXL | Kind.RDMA:
                absent.append((kind, "not in this version"))
    return Kinds(tuple(openers), tuple(absent))
