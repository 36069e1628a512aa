"""Opens GPU memory with nodes of this host that use the same GPU.

That a peer is on this host and of this user is proved by the local socket, as for shared memory, before any token is opened: a
token names memory of some process here, and whoever has us open one that is not its own would have us read it out.

Spec: docs/spec/11-fabric.md, section "GPU memory".
"""

import ctypes
from collections.abc import Callable

import trio

from mesh.fabric.base import Opening
from mesh.fabric.door import DOOR, Terms, enter, let_in, send_packet, tell_door
from mesh.fabric.gpu.driver import LIBRARY, Cuda, CudaError, Device, GpuAbsentError, driver
from mesh.fabric.gpu.pool import Pool
from mesh.fabric.gpu.session import GpuSession
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import GPU, Advert, Kind, Match, Way, gpu_tag
from protocol.fabric.adverts import GPU_TAGS_MAX
from protocol.fabric.messages import Door, Hello

SWEEP_S = 1.0
"""How often memory is given back to the driver, in seconds: doing so waits for the whole device."""

LINGER_S = 10.0
"""How long the memory of a session that has ended is kept, in seconds: the peer closes it at once, unless it is copying from
it."""


class GpuOpener:
    """The memory of the GPUs of this process."""

    kind = Kind.GPU
    keeps_stream = True

    def __init__(self, network_id: str, secret: bytes, path: str = LIBRARY) -> None:
        """Looks whether there is a driver; `run` wakes it.

        Args:
            network_id: of the network in which GPUs are told.
            secret: of the host; empty where it has none.
            path: the driver's library.
        """
        self._network_id = network_id
        self._secret = secret
        self._path = path
        self._devices: dict[bytes, tuple[Device, Pool]] = {}
        self._to_free: list[tuple[float, Device, int]] = []
        self.absent = self._cannot_be() or "the driver is still being asked"
        """Why there is none; empty where there is."""

    def _cannot_be(self) -> str:
        """Why there is none, as far as that can be said without waking the driver; empty where there may be."""
        if not self._secret:
            return "this system does not tell a boot id and a network namespace in /proc"
        try:
            ctypes.CDLL(self._path)
        except OSError:
            return f"no NVIDIA driver is installed here ({self._path})"
        return ""

    def advert(self) -> Advert:
        """The tags of the GPUs."""
        return Advert(gpu_tags=tuple(self._devices))

    def way(self, match: Match) -> Way:
        """The same for all peers."""
        del match
        return GPU

    def figures(self) -> dict[str, object]:
        """The GPUs, and what had to be copied to the host."""
        devices = [device for device, _ in self._devices.values()]
        return {
            "devices": [f"{device.name} at {device.bus_id}" for device in devices],
            "copied_to_host": sum(device.host_copies for device in devices),
            "copied_to_host_bytes": sum(device.host_copied_bytes for device in devices),
        }

    async def knock(self, opening: Opening, door: Door, own_nonce: bytes) -> GpuSession:
        """Prove at the local socket that this node is on the peer's host.

        Raises:
            RemoteProtocolError: who is there is not the peer.
            OSError: nobody is there.
        """
        terms = Terms(door.secret, opening.own, opening.peer, own_nonce, door.nonce)
        local, _ = await enter(door.place, terms, ())
        local.close()
        return self._session(opening)

    async def admit(self, opening: Opening, hello: Hello) -> GpuSession:
        """Bind a local socket, tell the peer its name, and have it prove itself.

        Raises:
            RemoteProtocolError: nobody comes who is the peer.
            OSError: the system refuses.
        """
        listener, terms = await tell_door(opening, hello, Kind.GPU, end=False)
        local, _ = await let_in(listener, terms, 0)
        try:
            session = self._session(opening)
            send_packet(local, terms.proof(DOOR))
        finally:
            local.close()
        return session

    def _session(self, opening: Opening) -> GpuSession:
        found = self._devices.get(opening.match.gpu)
        if found is None:
            raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "this GPU is gone")
        device, pool = found

        def free(of: Device, address: int, is_open: bool) -> None:
            self._to_free.append((trio.current_time() + (LINGER_S if is_open else 0.0), of, address))

        return GpuSession(
            opening.peer, opening.config, opening.control, device, pool, free, opening.on_closed,
            self._devices, frozenset(opening.match.gpus),
        )  # fmt: skip

    async def run(self, changed: Callable[[], None]) -> None:
        """Wakes the driver, tells what it finds, and then gives memory back that nobody uses, until cancelled."""
        if self._cannot_be():
            return
        try:
            cuda = await trio.to_thread.run_sync(driver, self._path)
        except GpuAbsentError as error:
            self.absent = str(error)
            return
        self._find(cuda)
        changed()
        while self._devices:
            await trio.sleep(SWEEP_S)
            await trio.to_thread.run_sync(self._sweep, trio.current_time())

    def _find(self, cuda: Cuda) -> None:
        for device in cuda.devices[:GPU_TAGS_MAX]:
            if device.passes_tokens:
                self._devices[gpu_tag(self._secret, self._network_id, device.uuid)] = device, Pool(device)
        self.absent = "" if self._devices else "no GPU here passes its memory on (unified addressing is needed)"

    def _sweep(self, now: float) -> None:
        """Give back what nobody uses; a device that fails keeps it."""
        due = [item for item in self._to_free if item[0] <= now]
        for item in due:
            self._to_free.remove(item)
            try:
                item[1].free(item[2])
            except CudaError:
                continue
        for _, pool in self._devices.values():
            try:
                pool.trim()
            except CudaError:
                continue
