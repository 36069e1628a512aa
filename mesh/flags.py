"""Flags of `isochrone up` that belong together: of the gateway, of the door for programs, of where the machine stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class GatewayFlags:
    """The flags of the gateway; each is a setting of the same name."""

    gateway: Annotated[
        str | None,
        Parameter(
            help="HOST:PORT of the HTTP gateway; port 0 lets the system choose. Any but loopback wants a key file and TLS."
        ),
    ] = None
    gateway_key_file: Annotated[
        Path | None, Parameter(help="Only who has a key in this file may call the gateway; made with one if absent.")
    ] = None
    gateway_tls_cert: Annotated[Path | None, Parameter(help="Certificate in PEM: the gateway speaks HTTPS.")] = None
    gateway_tls_key: Annotated[Path | None, Parameter(help="The certificate's key in PEM, mode 0600.")] = None
    gateway_hosts: Annotated[
        list[str] | None, Parameter(help="NAME by which clients call the gateway (Host header), repeatable.", negative="")
    ] = None
    gateway_insecure_remote: Annotated[
        bool | None,
        Parameter(
            help="Let other machines call the gateway without a key or without TLS: whoever reaches it uses it and reads along.",
            negative="",
        ),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ClientFlags:
    """What is offered to programs of this machine; each is a setting of the same name."""

    client_socket: Annotated[
        str | None,
        Parameter(help="PATH of the unix socket for your own programs, or none (default: client.sock in the state directory)."),
    ] = None
    fabric: Annotated[
        str | None,
        Parameter(
            help="By which fabrics large tensors go: auto, none, or some of shm,cxl,rdma,gpu with commas (docs/fabric.md)."
        ),
    ] = None
    cxl_pool: Annotated[
        list[str] | None,
        Parameter(
            help="PATH of a pool of memory to share with other nodes, a device or a file (isochrone pool create), repeatable.",
            negative="",
        ),
    ] = None
    rdma_device: Annotated[
        list[str] | None,
        Parameter(help="NAME of an RDMA device to use with --fabric shm,rdma, repeatable (default: all).", negative=""),
    ] = None
    busy_poll_us: Annotated[
        int | None,
        Parameter(
            help="Microseconds that the node may look for the next message before it sleeps, while they come at short intervals: "
            "answers come sooner, a processor does more (default: 2000; 0: never)."
        ),
    ] = None
    memory_node: Annotated[
        int | None,
        Parameter(help="NUMA node for the memory of large tensors, such as CXL memory without processors (default: any)."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class PlaceFlags:
    """Where the machine stands; each is a setting of the same name."""

    latitude: Annotated[
        float | None,
        Parameter(help="Degrees north, for maps: told to every node, to a tenth of a degree (default: told to nobody)."),
    ] = None
    longitude: Annotated[float | None, Parameter(help="Degrees east; with --latitude.")] = None
