"""What verbs make, as objects that know how to undo themselves: devices, domains, regions, windows, queues and queue pairs.

Each method is one verb. Nothing waits here: requests are posted, and completions are polled. An object must be closed before what
it was made from; `close` may be called twice. Whatever a verb refuses is a `VerbsError`, with the system's words.

Source: ibv_*(3) of rdma-core; InfiniBand Architecture Specification 1.4, volume 1, chapter 11.
"""

import errno
import os
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

BATCH = 32
"""Completions polled at once, a count: as many as the shim takes from the library in one call."""

RNR_TIMER = 12
"""Code of 0.64 ms (InfiniBand specification, 9.7.5.2.8): when the other side may try again that finds nothing posted to receive.
More is posted within one turn of the event loop."""

RNR_RETRIES = 7
"""Code of "for ever" (likewise): a peer that posts nothing to receive is found by who waits for the end of a write, in 100 ms
(`mesh.fabric.rdma.wire.STALL_S`)."""

NAMES_BYTES_MAX = 16384
"""Room for the names of all devices in bytes: 256 of the longest."""


class VerbsError(OSError):
    """A verb was refused; `errno` says why in numbers, the text in words."""

    def __init__(self, number: int, what: str) -> None:
        """Takes the errno and what was tried."""
        super().__init__(number, f"{what}: {os.strerror(number)}")


class Access(IntFlag):
    """What may be done to memory (ibv_reg_mr(3), ibv_bind_mw(3)). The numbers are the library's."""

    LOCAL_READ = 0
    LOCAL_WRITE = 1
    REMOTE_WRITE = 2
    REMOTE_READ = 4
    BIND = 16


class Work(IntEnum):
    """Kinds of request (ibv_post_send(3)). The numbers are the library's."""

    WRITE = 0
    WRITE_IMMEDIATE = 1
    SEND = 2
    READ = 4


class Flag(IntFlag):
    """How a request is treated (ibv_post_send(3)). The numbers are the library's."""

    NONE = 0
    FENCE = 1
    SIGNALED = 2
    SOLICITED = 4
    INLINE = 8


class Did(IntEnum):
    """What has been completed (ibv_poll_cq(3)). The numbers are the library's."""

    SEND = 0
    WRITE = 1
    READ = 2
    BIND = 5
    INVALIDATE = 6
    RECEIVE = 128
    WRITTEN = 129  # IBV_WC_RECV_RDMA_WITH_IMM: the other side has written, and says so


class Status(IntEnum):
    """The ends of a request that are told apart here; there are others. The numbers are the library's."""

    SUCCESS = 0
    FLUSHED = 5
    REMOTE_ACCESS = 10
    RETRIES_EXCEEDED = 12


class Windows(IntEnum):
    """Which memory windows a device has."""

    NONE = 0
    TYPE_2A = 1
    TYPE_2B = 2
    TYPE_1 = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device has, in counts and bytes."""

    mr_bytes_max: int
    qps_max: int
    qp_requests_max: int
    cq_entries_max: int
    mrs_max: int
    mws_max: int
    pds_max: int
    windows: Windows
    ports: int


@dataclass(frozen=True, slots=True)
class PortState:
    """A port as its device tells it: `mtu` is the library's number, 1 for 256 bytes to 5 for 4096."""

    message_bytes_max: int
    is_active: bool
    mtu: int
    lid: int


@dataclass(frozen=True, slots=True)
class Path:
    """Where a queue pair sends to: the other side's, and the way out of here."""

    gid: bytes
    qpn: int
    psn: int
    mtu: int
    lid: int
    port: int
    gid_index: int
    traffic_class: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of one request."""

    id: int
    status: int
    did: int
    size_bytes: int
    immediate: int

    @property
    def is_good(self) -> bool:
        """Whether it was carried out."""
        return self.status == Status.SUCCESS


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something that happened to a device beside requests, by the library's number (ibv_get_async_event(3))."""

    type: int
    port: int
    qpn: int


class Device:
    """An RDMA device that is open."""

    def __init__(self, binding: Any, name: str) -> None:
        """Opens it.

        Raises:
            VerbsError: there is none of this name, or it may not be used.
        """
        self.binding, self.name = binding, name
        error = binding.ffi.new("int *")
        self._context = binding.lib.iso_open(name.encode(), error)
        if not self._context:
            raise VerbsError(error[0], f"RDMA device {name} cannot be opened")
        self.event_fd = int(binding.lib.iso_event_fd(self._context))
        os.set_blocking(self.event_fd, False)
        self.has_windows = self.limits().windows in (Windows.TYPE_2A, Windows.TYPE_2B)

    def limits(self) -> Limits:
        """What it has.

        Raises:
            VerbsError: it does not say.
        """
        found = self.binding.ffi.new("struct iso_limits *")
        _check(self.binding.lib.iso_query_device(self._context, found), f"{self.name} does not tell its limits")
        return Limits(
            int(found.mr_bytes_max), found.qps_max, found.qp_requests_max, found.cq_entries_max, found.mrs_max, found.mws_max,
            found.pds_max, Windows(found.window_type), found.ports,
        )  # fmt: skip

    def port(self, number: int) -> PortState:
        """How a port is.

        Raises:
            VerbsError: there is none, or it does not say.
        """
        found = self.binding.ffi.new("struct iso_port *")
        _check(self.binding.lib.iso_query_port(self._context, number, found), f"port {number} of {self.name}")
        return PortState(found.message_bytes_max, found.state == _PORT_ACTIVE, found.mtu, found.lid)

    def events(self) -> list[DeviceEvent]:
        """What has happened since the last call; does not wait."""
        found: list[DeviceEvent] = []
        event = self.binding.ffi.new("struct iso_event *")
        while len(found) < BATCH and self.binding.lib.iso_take_event(self._context, event) == 0:
            found.append(DeviceEvent(event.type, event.port, event.qpn))
        return found

    @property
    def context(self) -> Any:
        """The library's own object."""
        return _there(self._context)

    def close(self) -> None:
        """Lets go of it."""
        if self._context:
            self.binding.lib.iso_close(self._context)
            self._context = None


_PORT_ACTIVE = 4  # IBV_PORT_ACTIVE


def device_names(binding: Any) -> list[str]:
    """The devices that the library sees.

    Raises:
        VerbsError: it cannot look.
    """
    room = binding.ffi.new("char[]", NAMES_BYTES_MAX)
    _check(binding.lib.iso_device_names(room, NAMES_BYTES_MAX), "RDMA devices cannot be listed")
    return str(binding.ffi.string(room).decode("utf-8", "replace")).split()


class Domain:
    """A protection domain: keys of one are worth nothing in another."""

    def __init__(self, device: Device) -> None:
        """Makes one.

        Raises:
            VerbsError: the device has no more.
        """
        self.device, self.binding = device, device.binding
        error = self.binding.ffi.new("int *")
        self._pd = self.binding.lib.iso_alloc_pd(device.context, error)
        if not self._pd:
            raise VerbsError(error[0], f"{device.name} has no more protection domains")

    @property
    def pd(self) -> Any:
        """The library's own object."""
        return _there(self._pd)

    def close(self) -> None:
        """Gives it back."""
        if self._pd:
            _check(self.binding.lib.iso_free_pd(self._pd), "a protection domain is still in use")
            self._pd = None


class Region:
    """Memory that a device may use. Who owns the memory keeps it for as long as the region."""

    def __init__(self, domain: Domain, address: int, size_bytes: int, access: Access, *, dmabuf: int | None = None) -> None:
        """Registers it, which pins its pages; may take a while.

        Args:
            domain: in which its keys hold.
            address: where it begins in this process; of a dmabuf, how it is to be addressed.
            size_bytes: how much.
            access: what may be done to it.
            dmabuf: the descriptor of a GPU's or another device's memory, from its start on.

        Raises:
            VerbsError: the limit of locked memory, no more regions, or memory that the device does not reach.
        """
        lib, ffi = domain.binding.lib, domain.binding.ffi
        self._lib, self.address, self.size_bytes = lib, address, size_bytes
        error = ffi.new("int *")
        if dmabuf is None:
            self._mr = lib.iso_register(domain.pd, ffi.cast("void *", address), size_bytes, int(access), error)
        else:
            self._mr = lib.iso_register_dmabuf(domain.pd, 0, size_bytes, address, dmabuf, int(access), error)
        if not self._mr:
            raise VerbsError(error[0], f"{size_bytes} bytes cannot be registered with {domain.device.name}")
        self.local_key, self.remote_key = int(lib.iso_local_key(self._mr)), int(lib.iso_remote_key(self._mr))

    @property
    def mr(self) -> Any:
        """The library's own object."""
        return _there(self._mr)

    def close(self) -> None:
        """Deregisters it: the device does not touch the memory any more."""
        if self._mr:
            _check(self._lib.iso_deregister(self._mr), "a region is still in use")
            self._mr = None


class Window:
    """A memory window of type 2: bound to a part of a region and to a queue pair by a request, and invalidated by another."""

    def __init__(self, domain: Domain) -> None:
        """Makes one, bound to nothing.

        Raises:
            VerbsError: the device has none, or no more.
        """
        self._lib = domain.binding.lib
        error = domain.binding.ffi.new("int *")
        self._mw = self._lib.iso_alloc_window(domain.pd, error)
        if not self._mw:
            raise VerbsError(error[0], f"{domain.device.name} has no more memory windows")

    @property
    def mw(self) -> Any:
        """The library's own object."""
        return _there(self._mw)

    @property
    def key(self) -> int:
        """The remote key: the upper 24 bits are the device's, the lowest 8 are drawn anew for each binding."""
        return int(self._lib.iso_window_key(self.mw))

    def next_key(self, low: int) -> int:
        """The key for the next binding, with other lowest bits than the last one.

        Args:
            low: what is drawn for it, 0 to 255.
        """
        if low == self.key & 0xFF:
            low = (low + 1) & 0xFF
        return (self.key & ~0xFF) | low

    def bound(self, key: int) -> None:
        """A binding under this key has been posted: the library does not keep that by itself."""
        self._lib.iso_set_window_key(self.mw, key)

    def close(self) -> None:
        """Gives it back."""
        if self._mw:
            _check(self._lib.iso_free_window(self._mw), "a memory window is still in use")
            self._mw = None


class Completions:
    """A completion queue with a channel of its own, whose descriptor becomes readable once after each `arm`."""

    def __init__(self, device: Device, entries: int) -> None:
        """Makes both.

        Raises:
            VerbsError: the device has no more, or not so long ones.
        """
        self._lib, ffi = device.binding.lib, device.binding.ffi
        error = ffi.new("int *")
        self._channel = self._lib.iso_make_channel(device.context, error)
        if not self._channel:
            raise VerbsError(error[0], f"{device.name} has no more completion channels")
        self._cq = self._lib.iso_make_cq(device.context, entries, self._channel, error)
        if not self._cq:
            self._lib.iso_free_channel(self._channel)
            raise VerbsError(error[0], f"{device.name} has no completion queue of {entries} entries")
        self.fd = int(self._lib.iso_channel_fd(self._channel))
        os.set_blocking(self.fd, False)
        self._room = ffi.new("struct iso_completion[]", BATCH)

    def arm(self) -> None:
        """Have the descriptor become readable with the next completion; poll once more before you sleep."""
        _check(self._lib.iso_arm_cq(self.cq), "a completion queue cannot be armed")

    def take_events(self) -> int:
        """Take the signals that have come, so that the descriptor is quiet again; how many they were."""
        return int(self._lib.iso_take_channel_events(self._channel, self.cq))

    def poll(self) -> list[Completion]:
        """The completions that are there, `BATCH` at the most.

        Raises:
            VerbsError: the queue has overrun, or the device is gone.
        """
        count = self._lib.iso_poll(self.cq, self._room, BATCH)
        if count < 0:
            raise VerbsError(-count, "completions cannot be polled")
        return [
            Completion(found.id, found.status, found.opcode, found.size_bytes, found.immediate) for found in self._room[0:count]
        ]

    @property
    def cq(self) -> Any:
        """The library's own object."""
        return _there(self._cq)

    def close(self) -> None:
        """Gives both back."""
        if self._cq:
            self.take_events()
            _check(self._lib.iso_free_cq(self._cq), "a completion queue is still in use")
            self._cq = None
            self._lib.iso_free_channel(self._channel)


class QueuePair:
    """A reliable connection: requests are carried out in order, or the queue pair stops."""

    def __init__(self, domain: Domain, completions: Completions, sends: int, receives: int, inline_bytes: int) -> None:
        """Makes one, connected to nothing.

        Args:
            domain: whose regions it reaches.
            completions: where the ends of its requests come.
            sends: requests on their way at the most.
            receives: the same of those that wait for the other side.
            inline_bytes: wished for; `inline_bytes` is what was granted.

        Raises:
            VerbsError: the device has no more, or not so large ones.
        """
        self._lib, self._ffi = domain.binding.lib, domain.binding.ffi
        error, granted = self._ffi.new("int *"), self._ffi.new("int *")
        self._qp = self._lib.iso_make_qp(domain.pd, completions.cq, sends, receives, inline_bytes, granted, error)
        if not self._qp:
            raise VerbsError(error[0], f"{domain.device.name} has no more queue pairs")
        self.inline_bytes = int(granted[0])
        self.number = int(self._lib.iso_qp_number(self._qp))
        self._piece = self._ffi.new("struct iso_piece *")

    def connect(self, path: Path, own_psn: int, access: Access, *, timeout: int, retries: int) -> None:
        """Take it through its states until it can send: INIT, ready to receive, ready to send.

        Args:
            path: to the other side.
            own_psn: the first packet's number, 24 bits; drawn, so that nobody guesses it.
            access: what the other side may do through windows and regions at all.
            timeout: of one packet, as the exponent of 4.096 us (InfiniBand specification, 9.9.2.1.1).
            retries: of a packet, 0 to 7.

        Raises:
            VerbsError: a state is refused: an address that is not there, most often.
        """
        init = self._lib.iso_qp_to_init(self.qp, path.port, int(access))
        _check(init, "a queue pair cannot be begun")
        told = self._ffi.new("struct iso_path *")
        told.gid = path.gid
        told.qpn, told.remote_psn, told.mtu, told.lid = path.qpn, path.psn, path.mtu, path.lid
        told.gid_index, told.port, told.traffic_class = path.gid_index, path.port, path.traffic_class
        # No reads and no atomics are ever asked of the other side, nor granted to it.
        told.reads_in_flight, told.rnr_timer = 0, RNR_TIMER
        _check(self._lib.iso_qp_to_receive(self.qp, told), "the other side's RDMA address cannot be used")
        _check(self._lib.iso_qp_to_send(self.qp, own_psn, 0, timeout, retries, RNR_RETRIES), "a queue pair cannot be made ready")

    def post(
        self,
        number: int,
        work: Work,
        piece: tuple[int, int, int],
        remote: tuple[int, int] = (0, 0),
        *,
        flags: Flag = Flag.SIGNALED,
        immediate: int = 0,
    ) -> None:
        """Post a request.

        Args:
            number: comes back with the completion.
            work: what is to be done.
            piece: address, size in bytes and local key of what is sent; with `Flag.INLINE` it is copied at once.
            remote: address and remote key of where it goes.
            flags: how it is treated.
            immediate: of a write with one, 32 bits.

        Raises:
            VerbsError: the queue is full, or has stopped.
        """
        self._piece.address, self._piece.size_bytes, self._piece.local_key = piece
        count = 1 if piece[1] else 0
        _check(
            self._lib.iso_post(self.qp, number, int(work), int(flags), self._piece, count, remote[0], remote[1], immediate),
            "a request cannot be posted",
        )

    def bind(self, number: int, window: Window, key: int, region: Region, part: tuple[int, int], access: Access) -> None:
        """Post the binding of a window to a part of a region, by address and size in bytes, under a key from its `next_key`.

        Raises:
            VerbsError: the queue is full, or has stopped.
        """
        lib = self._lib
        refused = lib.iso_post_bind(self.qp, number, int(Flag.SIGNALED), window.mw, key, region.mr, *part, int(access))
        _check(refused, "a window cannot be bound")
        window.bound(key)

    def invalidate(self, number: int, key: int) -> None:
        """Post that a key is worth nothing any more; it is so when the completion comes.

        Raises:
            VerbsError: the queue is full, or has stopped.
        """
        _check(self._lib.iso_post_invalidate(self.qp, number, int(Flag.SIGNALED | Flag.FENCE), key), "a key cannot be taken back")

    def receive(self, number: int, count: int = 1) -> None:
        """Post that the other side may, so many times, write with an immediate.

        Raises:
            VerbsError: the queue is full.
        """
        _check(self._lib.iso_post_receives(self.qp, number, count), "a receive cannot be posted")

    def stop(self) -> None:
        """Have everything that is posted end, and nothing begin: of this queue pair no memory is touched any more."""
        if self._qp:
            self._lib.iso_qp_to_error(self._qp)

    @property
    def qp(self) -> Any:
        """The library's own object."""
        return _there(self._qp)

    def close(self) -> None:
        """Gives it back; what was posted and has not ended never tells."""
        if self._qp:
            _check(self._lib.iso_free_qp(self._qp), "a queue pair is still in use")
            self._qp = None


def status_words(binding: Any, status: int) -> str:
    """How the library calls an end of a request."""
    return str(binding.ffi.string(binding.lib.iso_status_words(status)).decode("utf-8", "replace"))


def _there(made: Any) -> Any:
    """The library's object, unless it has been given back."""
    if not made:
        raise VerbsError(errno.EBADF, "it has been closed")
    return made


def _check(refusal: int, what: str) -> None:
    if refusal:
        raise VerbsError(refusal, what)
