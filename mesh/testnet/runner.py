"""A test mesh of real processes: one `isochrone up` per node, and the link emulator between them.

    async with testnet(preset("metro")) as net:
        net.nodes[0].gateway, net.nodes[1].peer_id
        await net.nodes[1].kill()

Every node gets a state directory and a log of its own under one folder, listens on an address of 127.0.0.0/8 that belongs to
this mesh alone, and announces the emulator's address instead. Their keys are made before they start, so that all can start at
once with the first node as bootstrap. Nothing is left behind: nodes are asked to stop and killed if they do not, the emulator
ends with its stdin, and the kernel ends both should this process die without a word.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import trio
from rich.console import Console

from mesh.config import StartError
from mesh.store import PEERS_FILE, Store
from mesh.testnet import leash, link
from mesh.testnet.link import Address, LinkSpec
from mesh.testnet.topology import NodeSpec, Topology
from protocol.identity import peer_id_text

READY_S_MAX = 90.0
"""Seconds until every node is ready: five nodes that load models on two busy cores need twenty."""
CONVERGE_S_MAX = 60.0
"""Seconds until every node knows every other; a second or two is usual, thirty nodes on two cores need ten."""
STOP_S_MAX = 10.0
"""Seconds for a node to drain before it is killed."""
POLL_S = 0.05
"""Seconds between two looks at a file or a gateway while waiting."""
REQUEST_TIMEOUT_S = 10.0
"""Seconds for an answer of a gateway to a question about itself."""
ADDRESS_ATTEMPTS_MAX = 8
"""Random address blocks tried before giving up; a clash with another mesh is one in a million each."""
PORT_MIN = 20000
"""Lowest port used, below the range from which Linux gives out ports by itself (32768 to 60999)."""
PORT_COUNT = 10000
"""How many ports from `PORT_MIN` are used."""
LOG_TAIL_LINES = 15
"""Lines of a node's log in an error message."""
READY_LINE_BYTES_MAX = 64 * 1024
"""Bytes of a node's ready line."""


class TestnetError(StartError):
    """The mesh could not be built; the text ends with the log of the node that failed."""

    __test__ = False  # the name begins with "Test", but pytest has nothing to collect here


@dataclass(slots=True)
class RunningNode:
    """One node of the mesh.

    Attributes:
        spec: what the topology says of it.
        peer_id: its peer id as text.
        folder: its state directory and logs.
        announced: the emulator's address for it.
        real: where it listens.
        gateway: base URL, once it is ready.
        addresses: multiaddrs it tells others, once it is ready.
        ready_s: seconds from its start to ready.
        process: the process of the last start.
    """

    spec: NodeSpec
    peer_id: str
    folder: Path
    announced: Address
    real: Address
    gateway: str = ""
    addresses: tuple[str, ...] = ()
    ready_s: float = 0.0
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The node's name in the topology."""
        return self.spec.name

    @property
    def log(self) -> Path:
        """The file with everything the node wrote."""
        return self.folder / "node.log"

    @property
    def pid(self) -> int:
        """The process id of the last start."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def multiaddr(self) -> str:
        """The address at which others reach the node, through the emulator."""
        return f"{_multiaddr(self.announced)}/p2p/{self.peer_id}"

    async def kill(self) -> None:
        """End the node as a power cut would (SIGKILL), and wait until it has gone."""
        await self._signal(signal.SIGKILL)

    async def terminate(self, grace_s: float = STOP_S_MAX) -> int:
        """Ask the node to drain (SIGTERM), kill it after `grace_s`, and return its exit code."""
        with trio.move_on_after(grace_s):
            await self._signal(signal.SIGTERM)
        if self.alive:
            await self.kill()
        assert self.process is not None
        return self.process.returncode

    async def _signal(self, number: int) -> None:
        process = self.process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        await _wait_exit(process)

    def tail(self) -> str:
        """Return the last lines of the log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        except OSError:
            return ""


@dataclass(slots=True)
class Testnet:
    """A running mesh; made by `testnet`.

    Attributes:
        topology: what was asked for.
        nodes: in the order of the topology.
        folder: where states and logs are.
        flags: further flags of `isochrone up` for every node.
        program: the command that runs a node.
        converged_s: seconds from the last node's readiness until every node knew every other; None when that was not waited for.
        links: what the emulator reports, once the mesh has stopped.
        emulator: the emulator's process.
    """

    __test__ = False  # the name begins with "Test", but pytest has nothing to collect here

    topology: Topology
    nodes: tuple[RunningNode, ...]
    folder: Path
    flags: tuple[str, ...]
    program: tuple[str, ...]
    converged_s: float | None = None
    links: dict[str, float] = field(default_factory=dict)
    emulator: subprocess.Popen[bytes] | None = None

    def node(self, name: str) -> RunningNode:
        """Return a node by its name; raises KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    async def kill(self, name: str) -> None:
        """End a node by its name, as a power cut would."""
        await self.node(name).kill()

    async def start(self, node: RunningNode) -> None:
        """Start a node, for the first time or again from the same state directory, and wait until it is ready.

        Raises:
            TestnetError: if it ends or is not ready in time.
        """
        assert node.process is None or node.process.poll() is not None, f"{node.name} runs already"
        started = time.monotonic()
        self._launch(node)
        with trio.move_on_after(READY_S_MAX):
            while not self._read_ready(node):
                if not node.alive:
                    assert node.process is not None
                    raise TestnetError(
                        f"node {node.name} ended with {node.process.returncode} before it was ready:\n{node.tail()}"
                    )
                await trio.sleep(POLL_S)
            node.ready_s = time.monotonic() - started
            return
        raise TestnetError(f"node {node.name} was not ready after {READY_S_MAX:g} s:\n{node.tail()}")

    async def peers(self, node: RunningNode) -> list[dict[str, Any]]:
        """Return a node's view of its peers, as its gateway tells it; empty while the node does not answer."""
        try:
            async with httpx.AsyncClient(timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
                answer = (await client.get(f"{node.gateway}/mesh/peers")).raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return []
        rows = answer.get("peers", []) if isinstance(answer, dict) else []
        return [row for row in rows if isinstance(row, dict)]

    async def converge(self, within_s: float = CONVERGE_S_MAX) -> float:
        """Wait until every living node knows every other as alive, and return the seconds that took.

        Raises:
            TestnetError: if it takes longer than `within_s`; the text says who misses whom.
        """
        started = time.monotonic()
        living = [node for node in self.nodes if node.alive]
        missing: dict[str, list[str]] = {node.name: ["everyone"] for node in living}
        with trio.move_on_after(within_s):
            while True:
                async with trio.open_nursery() as nursery:
                    for node in living:
                        nursery.start_soon(self._look, node, living, missing)
                if not any(missing.values()):
                    return time.monotonic() - started
                await trio.sleep(POLL_S)
        text = "; ".join(f"{name} misses {', '.join(names)}" for name, names in missing.items() if names)
        raise TestnetError(f"the mesh did not come together in {within_s:g} s: {text}\nLogs are in {self.folder}")

    async def _look(self, node: RunningNode, living: Sequence[RunningNode], missing: dict[str, list[str]]) -> None:
        known = {row.get("peer_id") for row in await self.peers(node) if row.get("standing", "alive") == "alive"}
        missing[node.name] = [other.name for other in living if other is not node and other.peer_id not in known]

    def _launch(self, node: RunningNode) -> None:
        first = self.nodes[0]
        command = [
            sys.executable, str(leash.__file__), str(os.getpid()), *self.program, "up", "--json",
            "--state-dir", str(node.folder / "state"),
            "--listen", _multiaddr(node.real),
            "--announce", _multiaddr(node.announced),
            "--gateway", "127.0.0.1:0",
            *(part for engine in node.spec.engines for part in ("--engine", engine)),
            *(() if node is first else ("--bootstrap", first.multiaddr)),
            *self.flags,
        ]  # fmt: skip
        # The user's own settings must not reach the nodes of a test mesh.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ISOCHRONE_")}
        environment["XDG_CONFIG_HOME"] = str(node.folder / "no-config")
        # Popen and not trio's: that one starts processes from a worker thread, whose end the leash would take for ours.
        with (node.folder / "ready.json").open("wb") as output, node.log.open("ab") as log:
            node.process = subprocess.Popen(  # noqa: S603  # our own program
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=environment, process_group=0
            )

    def _read_ready(self, node: RunningNode) -> bool:
        with (node.folder / "ready.json").open("rb") as file:
            line = file.readline(READY_LINE_BYTES_MAX)
        if not line.endswith(b"\n"):
            return False
        try:
            told = json.loads(line)
            if told["peer_id"] != node.peer_id:
                raise TestnetError(f"node {node.name} calls itself {told['peer_id']}, its key says {node.peer_id}")
            node.gateway, node.addresses = str(told["gateway"]), tuple(str(address) for address in told["addresses"])
        except (ValueError, LookupError, TypeError) as error:
            raise TestnetError(f"node {node.name} printed {line[:200]!r} when it was ready, not its JSON line") from error
        return True

    async def stop(self) -> None:
        """Stop every node and then the emulator; what does not stop is killed."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                if node.alive:
                    nursery.start_soon(node.terminate)
        emulator = self.emulator
        if emulator is not None:
            assert emulator.stdin is not None
            emulator.stdin.close()
            with trio.move_on_after(STOP_S_MAX):
                await _wait_exit(emulator)
            if emulator.poll() is None:
                emulator.kill()
                await _wait_exit(emulator)
            with suppress(OSError, ValueError, IndexError):
                self.links = json.loads((self.folder / "links.json").read_text().splitlines()[1])


@asynccontextmanager
async def testnet(
    topology: Topology,
    *,
    folder: Path | None = None,
    console: Console | None = None,
    flags: Sequence[str] = (),
    program: Sequence[str] | None = None,
    converge: bool = True,
) -> AsyncIterator[Testnet]:
    """Run a mesh for as long as the context lasts.

    Args:
        topology: its nodes and distances.
        folder: for states and logs; a temporary one that is removed at the end, unless something failed, when absent.
        console: told in a line or two how the start goes.
        flags: further flags of `isochrone up` for every node.
        program: the command that runs a node, without `up` and its flags; this source tree's own if None.
        converge: wait until every node knows every other.

    Raises:
        TestnetError: if a node does not start or the mesh does not come together.
    """
    temporary = folder is None
    # Absolute without a look at the disk: the nodes get it as a flag, and messages name it.
    folder = Path(tempfile.mkdtemp(prefix="isochrone-testnet-") if folder is None else os.path.abspath(folder))  # noqa: ASYNC240, PTH100
    # A test mesh is a private network of its own, whose nodes issue themselves certificates.
    own = ("--network-dir", str(folder / "network")) if program is None else ()
    net = Testnet(topology, (), folder, (*own, *flags), tuple(program or (sys.executable, program_path())))
    try:
        await _start_links(net)
        if console is not None:
            console.print(f"Starting {len(net.nodes)} nodes; their logs are in {folder}", highlight=False)
        await _start_all(net)
        if converge:
            net.converged_s = await net.converge()
        yield net
    finally:
        with trio.CancelScope(shield=True):
            await net.stop()
    if temporary:
        shutil.rmtree(folder, ignore_errors=True)


async def _start_all(net: Testnet) -> None:
    """Start all nodes at once; of several failures the first is told."""
    failures: list[TestnetError] = []

    async def _start(node: RunningNode, scope: trio.CancelScope) -> None:
        try:
            await net.start(node)
        except TestnetError as error:
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for node in net.nodes:
            nursery.start_soon(_start, node, nursery.cancel_scope)
    if failures:
        raise failures[0]


async def _start_links(net: Testnet) -> None:
    """Make the nodes' folders and keys, find addresses that are free, and start the emulator on them."""
    net.folder.mkdir(parents=True, exist_ok=True)
    peer_ids = [_prepare(net.folder / spec.name) for spec in net.topology.nodes]
    links = [[(path.delay_s, path.jitter_s, path.loss) for path in row] for row in net.topology.links]
    for _ in range(ADDRESS_ATTEMPTS_MAX):
        block, port = f"127.{64 + secrets.randbelow(128)}.{secrets.randbelow(256)}", PORT_MIN + secrets.randbelow(PORT_COUNT)
        announced = [(f"{block}.{1 + index}", port) for index in range(len(peer_ids))]
        real = [(f"{block}.{128 + index}", port) for index in range(len(peer_ids))]
        net.emulator = emulator = _launch_emulator(net.folder, LinkSpec(announced, real, links, secrets.randbits(32)))
        await _until_ready(net.folder / "links.json", emulator)
        if emulator.poll() is None:
            net.nodes = tuple(
                RunningNode(spec, peer_ids[index], net.folder / spec.name, announced[index], real[index])
                for index, spec in enumerate(net.topology.nodes)
            )
            return
        assert emulator.stdin is not None
        emulator.stdin.close()
    log = (net.folder / "links.log").read_text(errors="replace")
    raise TestnetError(f"the link emulator did not start:\n{log}")


async def _until_ready(output: Path, emulator: subprocess.Popen[bytes]) -> None:
    """Wait until the emulator has bound its addresses, or has ended because it could not."""
    while not output.read_bytes() and emulator.poll() is None:  # noqa: ASYNC110, ASYNC240  # a file of another process, in page cache
        await trio.sleep(POLL_S / 10)


def _launch_emulator(folder: Path, spec: LinkSpec) -> subprocess.Popen[bytes]:
    # -I -S: it needs the standard library alone, and starts in a third of the time.
    command = [sys.executable, "-I", "-S", str(link.__file__)]
    with (folder / "links.json").open("wb") as output, (folder / "links.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # our own program
            command, stdin=subprocess.PIPE, stdout=output, stderr=log, process_group=0
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it ended already, which is seen by looking at it
        process.stdin.write(spec.to_json().encode() + b"\n")
        process.stdin.flush()
    return process


def _prepare(folder: Path) -> str:
    """Make a node's folder and key, forget what another run left, and return the peer id."""
    folder.mkdir(parents=True, exist_ok=True)
    with Store(folder / "state") as store:
        peer_id = peer_id_text(store.identity().peer_id)
        (store.path / PEERS_FILE).unlink(missing_ok=True)
    (folder / "node.log").unlink(missing_ok=True)
    return peer_id


def program_path() -> str:
    """Return the path of `node.py`, the program that stands beside this package."""
    found = find_spec("node")
    assert found is not None, "node.py is not importable"
    assert found.origin is not None, "node.py has no file"
    return found.origin


def _multiaddr(address: Address) -> str:
    return f"/ip4/{address[0]}/udp/{address[1]}/quic-v1"


async def _wait_exit(process: subprocess.Popen[bytes]) -> None:
    """Wait until a child has ended, and collect it."""
    if process.poll() is not None:
        return
    descriptor = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    process.wait()
