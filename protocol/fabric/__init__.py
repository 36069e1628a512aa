"""Fabrics: tensors move without being copied where two nodes share memory or a network that reads and writes it.

Nothing of hardware is here: adverts and their matching, the cost model, leases, transfers and what peers may use. Whoever moves
the bytes stands in `mesh.fabric`, and in the simulator where a fabric is tried that fails.

Spec: docs/spec/11-fabric.md.
"""

from protocol.fabric.adverts import (
    Advert,
    Closeness,
    GpuPath,
    Port,
    decode_advert,
    encode_advert,
    gpu_tag,
    host_tag,
    join_adverts,
)
from protocol.fabric.cost import CXL, GPU, HERE, SHM, STREAM, WORTH_BYTES_MIN, Link, Way, crossover_bytes
from protocol.fabric.leases import LeaseBook, RegionTable
from protocol.fabric.matching import FAR, Match, matches, order_pairs, port_for
from protocol.fabric.messages import FABRIC_PROTOCOL, INFER_FABRIC_PROTOCOL
from protocol.fabric.peers import FabricPeers
from protocol.fabric.transfer import Action, Giver, Gives, Giving, Receiver, Takes, Taking
from protocol.fabric.values import FabricConfig, Kind, Lease, Place, Rights, reaches_devices

__all__ = [
    "CXL",
    "FABRIC_PROTOCOL",
    "FAR",
    "GPU",
    "HERE",
    "INFER_FABRIC_PROTOCOL",
    "SHM",
    "STREAM",
    "WORTH_BYTES_MIN",
    "Action",
    "Advert",
    "Closeness",
    "FabricConfig",
    "FabricPeers",
    "Giver",
    "Gives",
    "Giving",
    "GpuPath",
    "Kind",
    "Lease",
    "LeaseBook",
    "Link",
    "Match",
    "Place",
    "Port",
    "Receiver",
    "RegionTable",
    "Rights",
    "Takes",
    "Taking",
    "Way",
    "crossover_bytes",
    "decode_advert",
    "encode_advert",
    "gpu_tag",
    "host_tag",
    "join_adverts",
    "matches",
    "order_pairs",
    "port_for",
    "reaches_devices",
]
