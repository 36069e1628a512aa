"""What a node says of the fabrics it has, for its card, and the tag by which two nodes find that they share a host.

An advert is a claim like everything on a card: it only decides who tries what with whom. What is gained by a fabric is proved
when it is opened: whoever claims the host tag of another cannot be passed a descriptor by it.

The host tag is made for one network from a secret that every process of the host can read and nobody else, and that a restart of
the host changes (on Linux the boot id, with the network namespace). So it says within one network and until the next boot who
shares a host, which is what it is for, and it is no name of the machine: two networks see two tags.

Source: RFC 2104 (HMAC).
Spec: docs/spec/11-fabric.md, section "Adverts".
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.wire import PackingLimits, Plain, pack, unpack

HOST_TAG_BYTES = 16
"""Length of a host tag in bytes: no two hosts share one by chance."""

GID_BYTES = 16
"""Length of an RDMA address in bytes (InfiniBand specification; RoCE v2 uses the form of IPv6)."""

POOL_ID_BYTES = 16
"""Length of the id of a pool of CXL memory in bytes: a UUID."""

ADVERT_BYTES_MAX = 768
"""Longest advert in bytes: 8 ports of 26, 4 pools of 18, 32 GPUs of 6, 16 tags of 10, and what is round them."""

PORTS_MAX = 8
"""Most RDMA ports of one node: as many as the largest machines have GPUs."""

POOLS_MAX = 4
"""Most pools of one node."""

GPUS_MAX = 32
"""Most GPUs of one node, as on a card (chapter 3)."""

GPU_TAG_BYTES = 8
"""Length of a GPU's tag in bytes: it tells the GPUs of one host apart, and the memory of one is proved to be its own by opening
it."""

GPU_TAGS_MAX = 16
"""Most GPUs whose memory a node passes on: as many as the largest machines have."""

SPEED_MBPS_MAX = 2**32 - 1
"""Fastest port in Mbit/s that can be told; far beyond any."""

_HOST_DOMAIN = b"isochrone-host-v1:"
_GPU_DOMAIN = b"isochrone-gpu-v1:"
_LIMITS = PackingLimits(size_bytes_max=ADVERT_BYTES_MAX, depth_max=3, values_max=256)


class Closeness(IntEnum):
    """How near a GPU is to a port; the numbers stand on the wire, nearer ones are smaller."""

    SWITCH = 1  # below one PCIe switch
    ROOT = 2  # below one root complex
    NODE = 3  # of one NUMA node
    SYSTEM = 4  # across the sockets


@dataclass(frozen=True, slots=True)
class Port:
    """An RDMA port: its address, how many leading bits of it name the subnet, and its speed (0 when unknown)."""

    gid: bytes
    subnet_bits: int
    speed_mbps: int

    @property
    def subnet(self) -> tuple[int, int]:
        """The subnet as a number, with its length in bits."""
        return int.from_bytes(self.gid, "big") >> (8 * GID_BYTES - self.subnet_bits), self.subnet_bits


@dataclass(frozen=True, slots=True)
class GpuPath:
    """The way from a GPU (its place among those of the card) to a port (its place among those of the advert)."""

    gpu: int
    port: int
    closeness: Closeness


@dataclass(frozen=True, slots=True)
class Advert:
    """The fabrics of one node; the empty advert is that of a node that has none."""

    host: bytes = b""
    ports: tuple[Port, ...] = ()
    pools: tuple[bytes, ...] = ()
    gpu_paths: tuple[GpuPath, ...] = ()
    gpu_tags: tuple[bytes, ...] = ()


def host_tag(host_secret: bytes, network_id: str) -> bytes:
    """The tag that all nodes of one host and one network share.

    Args:
        host_secret: what processes of the host know and others do not; 16 bytes at least.
        network_id: of the network; another one makes another tag.

    Returns:
        `HOST_TAG_BYTES` bytes.
    """
    assert len(host_secret) >= HOST_TAG_BYTES
    return hmac.new(host_secret, _HOST_DOMAIN + network_id.encode(), hashlib.sha256).digest()[:HOST_TAG_BYTES]


def gpu_tag(host_secret: bytes, network_id: str, uuid: bytes) -> bytes:
    """The tag that all nodes of one host and one network that use a GPU share; its id cannot be told from it.

    Args:
        host_secret: as for the host tag.
        network_id: of the network.
        uuid: of the GPU, which it keeps for life; 16 bytes.

    Returns:
        `GPU_TAG_BYTES` bytes.
    """
    assert len(host_secret) >= HOST_TAG_BYTES
    return hmac.new(host_secret, _GPU_DOMAIN + network_id.encode() + uuid, hashlib.sha256).digest()[:GPU_TAG_BYTES]


def join_adverts(parts: Iterable[Advert]) -> Advert:
    """One advert of what each kind of fabric tells; at most one of them tells ports and the ways to them."""
    joined = Advert()
    for part in parts:
        joined = Advert(
            part.host or joined.host,
            part.ports or joined.ports,
            part.pools or joined.pools,
            part.gpu_paths or joined.gpu_paths,
            part.gpu_tags or joined.gpu_tags,
        )
    return joined


def encode_advert(advert: Advert) -> bytes:
    """An advert for a card; nothing for the empty one.

    Raises:
        LocalProtocolError: it is longer than a card may hold.
    """
    fields: dict[str, object] = {}
    if advert.host:
        fields["host"] = advert.host
    if advert.ports:
        fields["rdma"] = [[port.gid, port.subnet_bits, port.speed_mbps] for port in advert.ports]
    if advert.pools:
        fields["cxl"] = list(advert.pools)
    if advert.gpu_paths:
        fields["gpu"] = [[path.gpu, path.port, int(path.closeness)] for path in advert.gpu_paths]
    if advert.gpu_tags:
        fields["cuda"] = list(advert.gpu_tags)
    return pack(fields, _LIMITS) if fields else b""


def decode_advert(data: bytes | memoryview) -> Advert:
    """Read the advert of a card; fields and elements of later versions are passed over.

    Raises:
        RemoteProtocolError: TOO_LARGE past a bound, MALFORMED for everything else that is no advert.
    """
    if not data:
        return Advert()
    fields = unpack(data, _LIMITS)
    if not isinstance(fields, dict):
        raise _malformed("an advert that is no map")
    host = fields.get("host", b"")
    if not isinstance(host, bytes) or len(host) not in (0, HOST_TAG_BYTES):
        raise _malformed("a host tag of another length")
    ports = tuple(_port(item) for item in _array(fields, "rdma", PORTS_MAX))
    pools = tuple(_id(item, POOL_ID_BYTES) for item in _array(fields, "cxl", POOLS_MAX))
    tags = tuple(_id(item, GPU_TAG_BYTES) for item in _array(fields, "cuda", GPU_TAGS_MAX))
    paths = (_path(item, len(ports)) for item in _array(fields, "gpu", GPUS_MAX))
    return Advert(host, ports, pools, tuple(path for path in paths if path is not None), tags)


def _array(fields: dict[str, Plain], name: str, count_max: int) -> list[Plain]:
    items = fields.get(name, [])
    if not isinstance(items, list):
        raise _malformed(f"{name} is no array")
    if len(items) > count_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"{name} has {len(items)} elements, {count_max} are allowed")
    return items


def _port(item: Plain) -> Port:
    match item:
        case [bytes(gid), int(bits), int(speed), *_] if (
            len(gid) == GID_BYTES
            and 0 < bits <= 8 * GID_BYTES
            and 0 <= speed <= SPEED_MBPS_MAX
            and not isinstance(bits, bool)
            and not isinstance(speed, bool)
        ):
            return Port(gid, bits, speed)
        case _:
            raise _malformed("no RDMA port")


def _id(item: Plain, size: int) -> bytes:
    if not isinstance(item, bytes) or len(item) != size:
        raise _malformed(f"no id of {size} bytes")
    return item


def _path(item: Plain, ports: int) -> GpuPath | None:
    """A GPU's path, or None for a closeness of a later version."""
    match item:
        case [int(gpu), int(port), int(closeness), *_] if 0 <= gpu < GPUS_MAX and 0 <= port < ports:
            return GpuPath(int(gpu), int(port), Closeness(closeness)) if closeness in _CLOSENESSES else None
        case _:
            raise _malformed("no path of a GPU")


_CLOSENESSES = frozenset(int(closeness) for closeness in Closeness)


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)
