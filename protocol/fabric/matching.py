"""Which fabrics two nodes share, by their adverts, and whose GPU is near which port.

Spec: docs/spec/11-fabric.md, section "Matching".
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from protocol.fabric.adverts import Advert, Closeness, Port
from protocol.fabric.values import Kind


@dataclass(frozen=True, slots=True)
class Match:
    """A fabric that two nodes share.

    Attributes:
        kind: which.
        pool: of CXL memory, its id.
        own_port: of RDMA, the place of this node's port in its advert.
        their_port: and of the other's.
        speed_mbps: of RDMA, the speed of the slower port, 0 where neither says.
        gpu: of GPU memory, the tag of the GPU that is meant where none is named.
        gpus: and those of all that both use.
    """

    kind: Kind
    pool: bytes = b""
    own_port: int = 0
    their_port: int = 0
    speed_mbps: int = 0
    gpu: bytes = b""
    gpus: tuple[bytes, ...] = field(default=(), compare=False)


def matches(own: Advert, other: Advert) -> tuple[Match, ...]:
    """The fabrics that two nodes share, the preferred first; of RDMA the fastest pair of ports comes first.

    Both nodes find the same ones, with ports and order turned round.
    """
    found: list[Match] = []
    if own.host and own.host == other.host:
        found.append(Match(Kind.SHM))
    found += [Match(Kind.CXL, pool=pool) for pool in sorted(set(own.pools) & set(other.pools))]
    pairs = [
        Match(Kind.RDMA, own_port=here, their_port=there, speed_mbps=_slower(port, far))
        for here, port in enumerate(own.ports)
        for there, far in enumerate(other.ports)
        if port.subnet == far.subnet and port.gid != far.gid
    ]
    found += sorted(pairs, key=lambda match: (-match.speed_mbps, match.own_port + match.their_port, match.own_port))
    tags = tuple(sorted(set(own.gpu_tags) & set(other.gpu_tags)))
    found += [Match(Kind.GPU, gpu=tag, gpus=tags) for tag in tags]
    return tuple(found)


FAR = max(Closeness) + 1
"""Counts for a port of which nobody says how near it is to a GPU, unitless: it comes behind those of which that is said."""


def order_pairs(
    found: Iterable[Match], own: Advert, other: Advert, gpu: int | None = None, local_ports: Collection[int] = ()
) -> tuple[Match, ...]:
    """Pairs of RDMA ports for some tensors, the preferred first; pairs that are as good stay in their order, the fastest first.

    Tensors that lie on a GPU take the port that is nearest to it, and of the other side one that is near to any GPU there. Those
    on the host take a port on the NUMA node of their memory. Other kinds stay where they are, before the pairs or behind.

    Args:
        found: as `matches` gives them.
        own: of this node.
        other: of the other.
        gpu: on which the tensors lie, by its place on the card; None for the host.
        local_ports: on the NUMA node of the host's tensors, by their places in the advert.
    """
    own_near = {path.port: path.closeness for path in own.gpu_paths if path.gpu == gpu}
    their_near = {port: min(path.closeness for path in other.gpu_paths if path.port == port) for port in _near_any(other)}

    def cost(match: Match) -> tuple[int, int]:
        if gpu is None:
            return int(bool(local_ports) and match.own_port not in local_ports), 0
        return own_near.get(match.own_port, FAR), their_near.get(match.their_port, FAR)

    listed = list(found)
    pairs = iter(sorted((match for match in listed if match.kind is Kind.RDMA), key=cost))
    return tuple(next(pairs) if match.kind is Kind.RDMA else match for match in listed)


def _near_any(advert: Advert) -> set[int]:
    """The ports that are the nearest to some GPU."""
    return {path.port for path in advert.gpu_paths}


def port_for(advert: Advert, gpu: int, match_ports: tuple[int, ...]) -> int | None:
    """Of the ports at hand the one nearest to a GPU, None where nothing is said of any."""
    near = [(path.closeness, path.port) for path in advert.gpu_paths if path.gpu == gpu and path.port in match_ports]
    return min(near)[1] if near else None


def _slower(one: Port, other: Port) -> int:
    """The speed of the slower of two ports; one that does not say is taken for no slower."""
    return min((port.speed_mbps for port in (one, other) if port.speed_mbps > 0), default=0)
