"""Whether the network cards of this machine take memory of its GPUs: tried with as little as can be, which is given back.

Spec: docs/spec/11-fabric.md, section "RDMA".
"""

from dataclasses import dataclass
from pathlib import Path

from mesh.fabric.gpu.driver import LIBRARY
from mesh.fabric.gpu.driver import Device as Gpu
from mesh.fabric.rdma.direct import Direct
from mesh.fabric.rdma.memory import Registered, device_class
from mesh.fabric.rdma.ports import has_devices
from mesh.fabric.rdma.session import TARGET_ON_DEVICE
from mesh.fabric.verbs.binding import BindingAbsentError, load
from mesh.fabric.verbs.objects import Device, Domain, VerbsError, device_names
from protocol.errors import RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Tried:
    """One card and one GPU, by its place on the bus; `why` it does not work, empty where it does."""

    card: str
    gpu: str
    why: str


def try_cards(root: Path = Path("/"), cache: Path | None = None, library: str = LIBRARY) -> tuple[str, tuple[Tried, ...]]:
    """Try each card with each GPU; blocks, for seconds where the binding to libibverbs has to be built first.

    Args:
        root: where `sys` is.
        cache: where the compiled binding is kept; None for the user's cache directory.
        library: of NVIDIA's driver.

    Returns:
        Why nothing can be tried, empty where something was; and what was found.
    """
    if not has_devices(root):
        return "this host has no RDMA device", ()
    direct = Direct(library)
    direct.find()
    if direct.absent:
        return direct.absent, ()
    try:
        binding = load(cache)
        names = device_names(binding)
    except BindingAbsentError as error:
        return str(error), ()
    except VerbsError as error:
        return str(error.strerror), ()
    found = []
    for name in names:
        try:
            card = Device(binding, name)
        except VerbsError as error:
            found += [Tried(name, gpu.bus_id, str(error.strerror)) for gpu in direct.devices]
            continue
        found += [Tried(name, gpu.bus_id, _why_not(card, gpu, direct)) for gpu in direct.devices]
        card.close()
    direct.sweep()
    return "" if found else "libibverbs sees no RDMA device", tuple(found)


def _why_not(card: Device, gpu: Gpu, direct: Direct) -> str:
    """Why a card does not take a GPU's memory; empty where it does."""
    try:
        domain = Domain(card)
    except VerbsError as error:
        return str(error.strerror)
    try:
        own = Registered(0, None, None, None, None, direct.make(gpu, device_class(1)))
        own.open(domain, TARGET_ON_DEVICE)
        own.close()
    except OSError as error:
        return str(error.strerror)
    except RemoteProtocolError as error:
        return error.detail
    finally:
        domain.close()
    return ""
