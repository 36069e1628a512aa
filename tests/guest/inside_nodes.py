"""Real nodes in a guest: `isochrone up` as its users run it, in a network namespace of their own or in the machine's.

Programs that run in a guest (inside_*.py) use it; it needs nothing but the standard library, because importing takes an emulated
processor long. What a node's gateway says is asked from within the node's namespace.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("/run/nodes")
"""States and logs; memory, as everything that a guest writes."""
READY_S_MAX = 400.0
"""Seconds until a node is ready: two that start at once on an emulated machine of two processors need sixty."""
REQUEST_S_MAX = 150.0
"""Seconds for an answer of a gateway."""
POLL_S = 0.5
"""Seconds between two looks; each look takes the nodes' processor."""
LOG_TAIL_LINES = 30
"""Lines of a node's log in an error."""
_CLONE_NEWNET = 0x40000000  # linux/sched.h


def within(namespace: str, work: Callable[[], object]) -> object:
    """Do something in a thread that has entered a network namespace (`ip netns`), or in the machine's own if it is empty."""
    if not namespace:
        return work()
    outcome: list[object] = []

    def enter_and_work() -> None:
        try:
            _enter(namespace)
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again by who waits
            outcome.append(error)

    thread = threading.Thread(target=enter_and_work)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _enter(namespace: str) -> None:
    """Take the calling thread into a network namespace; `os.setns` came with Python 3.12."""
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")
    finally:
        os.close(descriptor)


class Node:
    """One process of `isochrone up`.

    Attributes:
        name: also of its folder.
        state_dir: its state directory, where the native client finds its socket.
        ready: the JSON line that it printed when it was ready.
        process: the process.
    """

    def __init__(
        self, name: str, *flags: str, listen: str, namespace: str = "", program: str = "node.py", open_network: str = ""
    ) -> None:
        """Start it.

        Args:
            name: of its folder.
            *flags: further flags of `isochrone up`.
            listen: its address, such as `10.0.0.1`; the port is 4001.
            namespace: the network namespace, as `ip netns` calls it.
            program: what is run, below the project's folder.
            open_network: the open network it belongs to, for nodes of several guests; empty for a private one of this guest.
        """
        self.name, self.namespace, self.ready = name, namespace, {}
        self.folder = FOLDER / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.state_dir = self.folder / "state"
        network = ["--open", "--network", open_network] if open_network else ["--network-dir", str(FOLDER / "network")]
        command = [
            *(["ip", "netns", "exec", namespace] if namespace else []),
            *(sys.executable, str(ROOT / program), "up", "--json"),
            *("--state-dir", str(self.state_dir), *network),
            *("--listen", f"/ip4/{listen}/udp/4001/quic-v1", "--gateway", "127.0.0.1:0"),
            *flags,
        ]
        with (self.folder / "ready.json").open("wb") as output, (self.folder / "node.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=log)

    @classmethod
    def running(cls, name: str) -> "Node":
        """The node of this name that another program has started and left; it can be asked, not stopped."""
        node = cls.__new__(cls)
        node.name, node.namespace, node.folder = name, "", FOLDER / name
        node.state_dir = node.folder / "state"
        node.ready = json.loads((node.folder / "ready.json").read_text())
        return node

    @property
    def address(self) -> str:
        """The address at which others reach it."""
        return self.ready["addresses"][0]

    @property
    def peer_id(self) -> str:
        """Its peer id."""
        return self.ready["peer_id"]

    def wait_ready(self) -> None:
        """Wait until it has said that it is ready."""
        written = self.folder / "ready.json"
        self.wait(lambda: written.read_text().endswith("\n"), "be ready", READY_S_MAX)
        self.ready = json.loads(written.read_text())

    def ask(self, path: str, body: object = None) -> tuple[dict, dict[str, str]]:
        """Ask its gateway: the JSON that it answers, and the answer's headers with small names."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.ready["gateway"] + path, content, {"content-type": "application/json"})

        def asked() -> tuple[dict, dict[str, str]]:
            try:
                with urllib.request.urlopen(request, timeout=REQUEST_S_MAX) as answer:
                    return json.load(answer), {name.lower(): value for name, value in answer.headers.items()}
            except urllib.error.HTTPError as error:
                raise self.fault(f"answered {error.code} to {path}: {error.read().decode(errors='replace')}") from None

        return within(self.namespace, asked)

    def peers(self) -> dict[str, dict]:
        """The peers that it knows, by peer id."""
        return {row["peer_id"]: row for row in self.ask("/mesh/peers")[0]["peers"]}

    def command(self, *arguments: str) -> dict:
        """Run another command of the program beside it, and read the JSON that it prints."""
        enter = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        command = [*enter, sys.executable, str(ROOT / "node.py"), *arguments, "--state-dir", str(self.state_dir), "--json"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise self.fault(f"{arguments} ended with {finished.returncode}: {finished.stderr}{finished.stdout}")
        return json.loads(finished.stdout)

    def wait(self, is_so: Callable[[], bool], what: str, within_s: float = REQUEST_S_MAX) -> None:
        """Wait until something is so of this node, as long as it lives."""
        end = time.monotonic() + within_s
        while not is_so():
            if self.process.poll() is not None:
                raise self.fault(f"ended with {self.process.returncode} before it could {what}")
            if time.monotonic() > end:
                raise self.fault(f"did not {what} within {within_s:g} s")
            time.sleep(POLL_S)

    def fault(self, what: str) -> RuntimeError:
        """An error that ends with the node's log."""
        log = (self.folder / "node.log").read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return RuntimeError("\n".join([f"node {self.name} {what}; its log:", *log]))

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()


def meet(*nodes: Node) -> None:
    """Wait until each of the nodes knows all others as alive."""
    for node in nodes:
        others = {other.peer_id for other in nodes if other is not node}

        def knows(node: Node = node, others: set[str] = others) -> bool:
            alive = {peer for peer, row in node.peers().items() if row["standing"] == "alive"}
            return others <= alive

        node.wait(knows, "meet the others", READY_S_MAX)
