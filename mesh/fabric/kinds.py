"""The fabrics that a node may use, by their names in its configuration, and what is needed for each.

Spec: docs/spec/11-fabric.md, section "Matching".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.fabric.base import Opener
from mesh.fabric.cxl_opener import CxlOpener
from mesh.fabric.gpu.opener import GpuOpener
from mesh.fabric.rdma.opener import RdmaOpener
from mesh.fabric.rdma.ports import has_devices
from mesh.fabric.shm import ShmOpener, host_secret
from protocol.encoding import Luck
from protocol.fabric import Kind

AUTO, NONE = "auto", "none"
"""All kinds that are there but RDMA, and none."""

UNNAMED = "its packets are not encrypted, so it has to be named: fabric = shm,rdma"
"""Why a node does not use RDMA by itself."""


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
    """The kinds that a configuration names, which has been checked: `auto`, `none`, or names with commas between them.

    RDMA has to be named: what goes by it is not encrypted.
    """
    if text in (AUTO, NONE):
        return tuple(kind for kind in Kind if kind is not Kind.RDMA) if text == AUTO else ()
    return tuple(kind for kind in Kind if kind.name.lower() in text.split(","))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node is told of its fabrics.

    Attributes:
        kinds: those that may be used.
        network_id: of the network.
        name: what the node calls itself where others see it who share a fabric.
        entropy: draws so many bytes.
        luck: for places where nodes should not all begin alike.
        pools: those that it is to be a member of.
        rdma_devices: the RDMA devices that may be used; empty for all.
        memory_node: the NUMA node from which regions of shared memory are to be.
    """

    kinds: Sequence[Kind]
    network_id: str
    name: str
    entropy: Callable[[int], bytes]
    luck: Luck
    pools: Sequence[Path] = ()
    rdma_devices: Sequence[str] = ()
    memory_node: int | None = None


def find_kinds(wanted: Wanted) -> Kinds:
    """What there is of the kinds that may be used."""
    openers: list[Opener] = []
    absent: list[tuple[Kind, str]] = []
    for kind in wanted.kinds:
        match kind:
            case Kind.SHM:
                openers.append(ShmOpener(wanted.network_id, host_secret(), wanted.memory_node))
            case Kind.CXL if wanted.pools:
                openers.append(CxlOpener(wanted.pools, wanted.name, wanted.entropy, wanted.luck))
            case Kind.CXL:
                absent.append((kind, "no pool is named; see isochrone pool create --help, and start with --cxl-pool PATH"))
            case Kind.RDMA:
                openers.append(RdmaOpener(host_secret(), wanted.rdma_devices, memory_node=wanted.memory_node))
            case Kind.GPU:
                openers.append(GpuOpener(wanted.network_id, host_secret()))
    if wanted.kinds and Kind.RDMA not in wanted.kinds and has_devices():
        absent.append((Kind.RDMA, UNNAMED))
    return Kinds(tuple(openers), tuple(absent))
