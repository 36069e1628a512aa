"""NIXL, NVIDIA's library of transfers, as a way between the memories of hosts and GPUs where its own fabrics are.

An agent registers memory, of the host (DRAM) or of a GPU (VRAM), and tells a peer its metadata, by which the peer reaches it;
each side then writes to and reads from what the other has registered, and a notice tells when. The library's progress thread is
off: what is under way gets on while somebody looks, first without a pause and then with short ones. One thread may use an agent.

NIXL is an extra, `pip install 'isochrone[nixl]'`; where PyTorch, which it asks for, is not wanted:
`pip install --no-deps nixl-cu12`, which needs NumPy alone. Which transports it takes it finds out by itself, or from the
environment (UCX_TLS, UCX_NET_DEVICES). The metadata of a peer is read by NIXL itself, in C++, which checks little of it: bytes
that no agent has made end the process (docs/fabric.md). Take it only from peers of the same owner, inside the session with them.

Source: NIXL 1.5, "Python API" (nixl/src/api/python/_api.py); its example basic_two_peers.py.
"""

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Self

import trio

METADATA_BYTES_MAX = 64 * 1024
"""Longest metadata of a peer that NIXL is handed, in bytes; that of an agent with one backend and some regions has a few
hundred."""

NOTICE_BYTES_MAX = 1024
"""Longest notice in bytes."""

NOTICES_MAX = 4096
"""Notices that are kept until somebody reads them, a count; what comes past that is dropped, the newest first, and counted."""

SPINS_MAX = 50
"""Looks without a pause, a count: what is small is over by then."""

PAUSE_S = 200e-6
"""Pause between looks after that, in seconds: one write of a MiB over shared memory takes about as long."""

PACKAGES = ("nixl_cu12", "nixl_cu13", "nixl")
"""Under which names the library is installed, for one version of CUDA or for any."""

_DONE, _UNDER_WAY = "DONE", "PROC"


class NixlAbsentError(Exception):
    """NIXL is not installed, or has no backend; the message says what to do."""


class NixlError(OSError):
    """NIXL refuses something, or a transfer has failed."""


class Segment(StrEnum):
    """Of which kind memory is."""

    DRAM = "DRAM"
    VRAM = "VRAM"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of memory: where it begins, its length in bytes, its kind, and of VRAM on which GPU."""

    address: int
    size_bytes: int
    segment: Segment = Segment.DRAM
    device: int = 0

    def part(self, offset: int, size_bytes: int) -> "Span":
        """A piece of it.

        Raises:
            ValueError: it reaches out of it.
        """
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise ValueError(f"{size_bytes} bytes at {offset} of {self.size_bytes}")
        return Span(self.address + offset, size_bytes, self.segment, self.device)

    def lies_in(self, other: "Span") -> bool:
        """Whether all of it lies in another piece."""
        begins, ends = other.address, other.address + other.size_bytes
        same = (self.segment, self.device) == (other.segment, other.device)
        return same and begins <= self.address and self.address + self.size_bytes <= ends


def load_nixl() -> tuple[Any, tuple[type[Exception], ...]]:
    """The library, and what it raises.

    Raises:
        NixlAbsentError: it is not installed.
    """
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")  # it logs to the terminal otherwise
    for package in PACKAGES:
        try:
            api, bindings = import_module(f"{package}._api"), import_module(f"{package}._bindings")
        except ImportError:
            continue
        told = [getattr(bindings, name) for name in dir(bindings) if name.startswith("nixl") and name.endswith("Error")]
        return api, (*told, RuntimeError, ValueError)
    raise NixlAbsentError("NIXL is not installed: pip install 'isochrone[nixl]'")


class NixlAgent:
    """One end of transfers."""

    def __init__(self, name: str, backend: str = "UCX") -> None:
        """Begins, without a progress thread and without a listener.

        Args:
            name: told to peers; another one for each agent.
            backend: which of NIXL's is used.

        Raises:
            NixlAbsentError: NIXL is not installed, or has no such backend.
        """
        api, self._errors = load_nixl()
        try:
            self._agent = api.nixl_agent(name, api.nixl_agent_config(False, False, backends=[backend]))
        except self._errors as error:
            raise NixlAbsentError(f"NIXL cannot begin: {error}") from error
        if backend not in self._agent.backends:
            raise NixlAbsentError(f"NIXL has no backend {backend} here; it has {', '.join(self._agent.plugin_list)}")
        self.name = name
        self.n_dropped = 0
        """Notices that nobody read in time."""
        self._spans: dict[Span, Any] = {}
        self._peers: set[str] = set()
        self._notices: deque[tuple[str, bytes]] = deque()
        self._abandoned: list[Any] = []

    # Memory and peers

    def register(self, span: Span) -> None:
        """Register memory; it stays where it is until `deregister`.

        Raises:
            NixlError: NIXL does not take it.
        """
        with self._translated(f"memory of {span.size_bytes} bytes"):
            told = [(span.address, span.size_bytes, span.device, "")]
            self._spans[span] = self._agent.register_memory(told, span.segment.value)

    def deregister(self, span: Span) -> None:
        """Let go of memory.

        Raises:
            NixlError: a transfer that was given up still uses some of an agent's memory, or NIXL fails.
        """
        self._sweep()
        if self._abandoned:
            raise NixlError(f"{len(self._abandoned)} transfers that were given up are still under way")
        registered = self._spans.pop(span, None)
        if registered is not None:
            with self._translated("memory that is let go of"):
                self._agent.deregister_memory(registered)

    @property
    def metadata(self) -> bytes:
        """What a peer needs to reach this agent and what it has registered by now.

        Raises:
            NixlError: NIXL fails.
        """
        with self._translated("the metadata"):
            return bytes(self._agent.get_agent_metadata())

    def add_peer(self, metadata: bytes) -> str:
        """Make a peer known, or what it has registered since; return its name.

        Raises:
            NixlError: that is no metadata.
        """
        if not 0 < len(metadata) <= METADATA_BYTES_MAX:
            raise NixlError(f"metadata of {len(metadata)} bytes; {METADATA_BYTES_MAX} are allowed")
        with self._translated("a peer"):
            told = self._agent.add_remote_agent(metadata)
        name = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
        self._peers.add(name)
        return name

    def remove_peer(self, name: str) -> None:
        """Forget a peer.

        Raises:
            NixlError: it is not known.
        """
        with self._translated(f"the peer {name!r}"):
            self._agent.remove_remote_agent(name)
        self._peers.discard(name)

    # Transfers

    async def write(self, own: Span, peer: str, theirs: Span, notice: bytes = b"") -> None:
        """Write memory of this agent into that of a peer; with a notice it is told when all is there.

        Raises:
            NixlError: the transfer fails, or either end is not registered.
        """
        await self._transfer("WRITE", own, peer, theirs, notice)

    async def read(self, own: Span, peer: str, theirs: Span, notice: bytes = b"") -> None:
        """Read memory of a peer into that of this agent; with a notice the peer is told when it is read.

        Raises:
            NixlError: the transfer fails, or either end is not registered.
        """
        await self._transfer("READ", own, peer, theirs, notice)

    async def _transfer(self, operation: str, own: Span, peer: str, theirs: Span, notice: bytes) -> None:
        if own.size_bytes != theirs.size_bytes or len(notice) > NOTICE_BYTES_MAX:
            raise NixlError(f"{own.size_bytes} bytes to {theirs.size_bytes}, with a notice of {len(notice)}")
        if not any(own.lies_in(span) for span in self._spans):
            raise NixlError("memory of this agent that is not registered")
        with self._translated(f"{operation.lower()} with {peer!r}"):
            here, there = (
                self._agent.get_xfer_descs([(span.address, span.size_bytes, span.device)], span.segment.value)
                for span in (own, theirs)
            )
            handle = self._agent.initialize_xfer(operation, here, there, peer, notice)
        self._abandoned.append(handle)  # until it is known to be over
        with self._translated(f"{operation.lower()} with {peer!r}"):
            state, n_looks = self._agent.transfer(handle), 0
            while state == _UNDER_WAY:
                n_looks += 1
                await trio.sleep(0.0 if n_looks < SPINS_MAX else PAUSE_S)
                state = self._agent.check_xfer_state(handle)
            self._abandoned.remove(handle)
            self._agent.release_xfer_handle(handle)
        if state != _DONE:
            raise NixlError(f"the {operation.lower()} with {peer!r} has failed")

    def _sweep(self) -> None:
        """Let go of transfers that were given up and are over."""
        for handle in list(self._abandoned):
            try:
                is_over = self._agent.check_xfer_state(handle) != _UNDER_WAY
            except self._errors:
                is_over = True
            if is_over:
                self._abandoned.remove(handle)
                with contextlib.suppress(*self._errors):
                    self._agent.release_xfer_handle(handle)

    # Notices

    def notify(self, peer: str, notice: bytes) -> None:
        """Send a notice of its own.

        Raises:
            NixlError: the peer is not known, or the notice too long.
        """
        if len(notice) > NOTICE_BYTES_MAX:
            raise NixlError(f"a notice of {len(notice)} bytes; {NOTICE_BYTES_MAX} are allowed")
        with self._translated(f"a notice to {peer!r}"):
            self._agent.send_notif(peer, notice)

    async def notice(self) -> tuple[str, bytes]:
        """Wait for the next notice: who sends it, and what it says. Writes and reads of peers get on meanwhile, too.

        Raises:
            NixlError: NIXL fails.
        """
        n_looks = 0
        while not self._look():
            n_looks += 1
            await trio.sleep(0.0 if n_looks < SPINS_MAX else PAUSE_S)
        return self._notices.popleft()

    def _look(self) -> bool:
        """Take in what has come; whether there is any."""
        with self._translated("notices"):
            come = self._agent.get_new_notifs()
        for peer, notices in come.items():
            name = peer.decode(errors="replace") if isinstance(peer, bytes) else str(peer)
            for notice in notices:
                told = notice.encode() if isinstance(notice, str) else bytes(notice)
                if len(self._notices) < NOTICES_MAX and len(told) <= NOTICE_BYTES_MAX and name in self._peers:
                    self._notices.append((name, told))
                else:
                    self.n_dropped += 1
        return bool(self._notices)

    # The end

    def close(self) -> None:
        """Forget every peer and let go of all memory; what cannot be let go of stays until the process ends."""
        for peer in list(self._peers):
            with contextlib.suppress(NixlError):
                self.remove_peer(peer)
        self._peers.clear()
        for span in list(self._spans):
            with contextlib.suppress(NixlError):
                self.deregister(span)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except NixlError:
            raise
        except self._errors as error:
            raise NixlError(f"NIXL: {what}: {error}") from error
