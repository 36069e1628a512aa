"""A node under attack with twenty honest peers beside it: what the attack does to them, to its memory and to its processor.

For each attack a node process is started, twenty honest peers in a second process ask its echo engine at a steady pace, and a
third process is the offender. The same go is measured in turn: undisturbed; the control, in which the offender makes the same
datagrams and sends them to a socket that nobody reads, so that what the offender itself takes from this machine is known; and
the attack. The ratio is that of the attack to the control. With attacks that live on what the node answers (`rapid-reset`,
`slow-readers`, `slow-writers`, `forged-records`) there is nothing to send elsewhere: their control is the undisturbed run.

The node has the first processor for itself where the machine allows that; peers, offender and this program share the others,
the offender with the lowest claim. Everything takes place in a network namespace (`hostile_net.py`).
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks import hostile_net
from benchmarks.harness import FOLDER, cpu_name, versions
from benchmarks.node_process import NodeProcess

PEERS = 20
PER_SECOND = 4.0
"""Requests of each honest peer a second."""

READY_S = 60.0
"""Longest wait for all honest peers to be connected, in seconds."""

SETTLE_S = 0.5
"""Pause between two runs, in seconds."""

RATIO_GOAL = 2.0
MEMORY_GOAL_MIB = 64.0
CUT_GOAL_S = 5.0
DATAGRAM_GOAL_MS = 5.0

ALIVE_ON_ANSWERS = ("rapid-reset", "slow-readers", "slow-writers", "forged-records")
"""Attacks without a control of their own."""

NOBODY_TO_CUT = ("spoofed-initials", "junk")
"""Attacks whose sender cannot be cut: it has no connection."""

ATTACKS = (
    "spoofed-initials", "junk", "crypto-gaps", "stream-gaps", "fake-acks", "early-acks", "path-challenges", "connection-ids",
    "rapid-reset", "slow-readers", "slow-writers", "forged-records",
)  # fmt: skip


@dataclass(slots=True)
class Run:
    """One stretch of time.

    Attributes:
        p50_ms, p99_ms: of the honest requests that began in it.
        asked, lost: how many there were, and how many were not answered.
        cpu: share of one processor that the node took.
        growth_mib: how far its memory rose above what it was before.
        longest_ms: the longest processor time that one datagram took, as the node tells it.
        dropped: datagrams to the node that the kernel had no room for.
        waited: share of the time in which the node could have run and another program did.
        offender: what the offender says of itself.
    """

    p50_ms: float
    p99_ms: float
    asked: int
    lost: int
    cpu: float
    growth_mib: float
    longest_ms: float
    waited: float = 0.0
    dropped: int = 0
    offender: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Attacked:
    """What was measured of one attack."""

    attack: str
    engine: str
    seconds: float
    undisturbed: Run
    control: Run | None
    attacked: Run

    @property
    def ratio(self) -> float:
        """The honest p99 under attack over that of the control."""
        return self.attacked.p99_ms / max((self.control or self.undisturbed).p99_ms, 1e-6)

    @property
    def cut_s(self) -> float | None:
        """How long the offender was at it before it was first cut; None where it never was."""
        cuts = self.attacked.offender.get("cuts_s") or []
        return cuts[0] if cuts else None

    def missed(self) -> list[str]:
        """The goals that were not met."""
        found = []
        if self.ratio > RATIO_GOAL:
            found.append("p99")
        if self.attacked.lost > self.undisturbed.lost + self.attacked.asked // 100:
            found.append("lost")
        if self.attacked.growth_mib > MEMORY_GOAL_MIB:
            found.append("memory")
        may_go_on = self.attack in NOBODY_TO_CUT or self.attacked.offender.get("kept_out")
        if not may_go_on and (self.cut_s is None or self.cut_s > CUT_GOAL_S):
            found.append("cut")
        if self.attacked.longest_ms > DATAGRAM_GOAL_MS:
            found.append("datagram")
        return found


class Program:
    """Another process that answers in lines of JSON."""

    def __init__(self, module: str, *arguments: str, niceness: int = 0, processors: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            ["nice", "-n", str(niceness), sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._module = module
        if processors:
            os.sched_setaffinity(self._process.pid, processors)

    @property
    def lines(self) -> IO[str]:
        """What it says."""
        assert self._process.stdout is not None
        return self._process.stdout

    def read(self) -> dict[str, Any]:
        """The next line."""
        line = self.lines.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def tell(self, order: dict[str, Any]) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.lines.close()


class Honest:
    """The honest peers, and what became of their requests."""

    def __init__(self, node: NodeProcess, engine: str, processors: Sequence[int]) -> None:
        arguments = (node.address, engine, str(PEERS), str(PER_SECOND))
        self._program = Program("benchmarks.hostile_peers", *arguments, processors=processors)
        self._seen: list[tuple[float, float, str]] = []
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._ready.wait(READY_S):
            self._program.end()
            raise RuntimeError(f"the honest peers were not connected within {READY_S:g} s")

    def _read(self) -> None:
        for line in self._program.lines:
            said = json.loads(line)
            if "ready" in said:
                self._ready.set()
                continue
            self._seen.append((said["began"], said["took"], said["fault"]))

    def between(self, began_s: float, ended_s: float) -> list[tuple[float, str]]:
        """How long the requests that began then took, and what they failed with."""
        return [(took, fault) for began, took, fault in list(self._seen) if began_s <= began < ended_s]

    def end(self) -> None:
        """End them."""
        self._program.end()


def longest_ms(node: NodeProcess) -> float:
    """What the node says of the longest datagram of the last ten seconds."""
    try:
        text = httpx.get(f"{node.gateway}/metrics", trust_env=False, timeout=10, headers=_key(node)).text
    except httpx.HTTPError:
        return float("nan")
    found = re.search(r"^isochrone_datagram_longest_seconds (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) * 1000 if found else float("nan")


def network_of(node: NodeProcess) -> str:
    """The network that the node is of: a forged record of another one would be dropped unread."""
    answer = httpx.get(f"{node.gateway}/mesh/status", trust_env=False, timeout=10, headers=_key(node)).raise_for_status()
    return str(answer.json()["network"])


def _key(node: NodeProcess) -> dict[str, str]:
    """The gateway's key where it has one."""
    for path in sorted(node.state_dir.glob("*key*")):
        text = path.read_text(errors="replace").strip()
        if "gateway" in path.name and text.isprintable():
            return {"authorization": f"Bearer {text}"}
    return {}


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def waited_s(pid: int) -> float:
    """How long a process had to wait for a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def dropped(port: int) -> int:
    """How many datagrams to a port the kernel had no room for."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        columns = line.split()
        if int(columns[1].rpartition(":")[2], 16) == port:
            return int(columns[-1])
    return 0


def percentile(times: Sequence[float], share: float) -> float:
    """The value below which this share of the times lies."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def measure(node: NodeProcess, honest: Honest, seconds: float, offender: Program | None, aim: str) -> Run:
    """Let some seconds pass, with the offender at work or without it."""
    pid, before_mib = node.process.pid, node.memory_mib()
    port = int(node.address.split("/udp/")[1].split("/")[0])
    before_cpu, before_wait, before_dropped, began = cpu_s(pid), waited_s(pid), dropped(port), time.monotonic()
    if offender is not None:
        offender.tell({"aim": aim, "seconds": seconds})
    peak_mib = before_mib
    while time.monotonic() - began < seconds:
        time.sleep(0.1)
        peak_mib = max(peak_mib, node.memory_mib())
    ended = time.monotonic()
    used, waited = (cpu_s(pid) - before_cpu) / (ended - began), (waited_s(pid) - before_wait) / (ended - began)
    longest, lost_datagrams = longest_ms(node), dropped(port) - before_dropped
    said = offender.read() if offender is not None else {}
    limit = time.monotonic() + 5.5  # the last requests have five seconds
    expected = len(honest.between(began, ended))
    while time.monotonic() < limit and expected < int(0.98 * PEERS * PER_SECOND * seconds):
        time.sleep(0.1)
        expected = len(honest.between(began, ended))
    peak_mib = max(peak_mib, node.memory_mib())
    asked = honest.between(began, ended)
    times = [took * 1000 for took, _ in asked]
    lost = sum(1 for _, fault in asked if fault)
    p50_ms, p99_ms = percentile(times, 0.5), percentile(times, 0.99)
    return Run(p50_ms, p99_ms, len(asked), lost, used, peak_mib - before_mib, longest, waited, lost_datagrams, said)


@contextmanager
def sink() -> Iterator[int]:
    """A socket that nobody reads; its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        raw.bind((hostile_net.node_host(), 0))
        yield raw.getsockname()[1]


def attack_once(attack: str, engine: str, seconds: float, split: tuple[list[int], list[int]]) -> Attacked:
    """Measure one attack on a fresh node."""
    flags = ("--engine", "echo", "--quic-engine", engine)
    for_node, for_others = split
    with sink() as sink_port, NodeProcess(*flags, host=hostile_net.node_host()) as node:
        if for_node:
            os.sched_setaffinity(node.process.pid, for_node)
        found = re.search(r"/ip4/([^/]+)/udp/(\d+)/", node.address)
        assert found is not None, node.address
        where = f"{found.group(1)}:{found.group(2)}"
        offender = Program(
            "benchmarks.hostile_offender", attack, where, str(sink_port), network_of(node), niceness=10, processors=for_others
        )
        honest: Honest | None = None
        try:
            honest = Honest(node, engine, for_others)
            offender.read()
            time.sleep(SETTLE_S)
            measure(node, honest, 1.0, None, "")  # everything has run once
            undisturbed = measure(node, honest, seconds, None, "")
            control = None if attack in ALIVE_ON_ANSWERS else measure(node, honest, seconds, offender, "sink")
            time.sleep(SETTLE_S)
            attacked = measure(node, honest, seconds, offender, "node")
        finally:
            offender.end()
            if honest is not None:
                honest.end()
    return Attacked(attack, engine, seconds, undisturbed, control, attacked)


def split_processors() -> tuple[list[int], list[int]]:
    """The first processor for the node, the others for everybody else; nothing is pinned where there is one only."""
    usable = sorted(os.sched_getaffinity(0))
    return ([], []) if len(usable) < 2 else (usable[:1], usable[1:])


def show(results: Sequence[Attacked], console: Console) -> None:
    """Print the table of one engine."""
    engine = results[0].engine
    table = Table(
        title=f"A {engine} node under attack, {PEERS} honest peers with {PER_SECOND:g} requests a second each",
        caption="p99 in ms: undisturbed / control / under attack; ratio = attack over control; "
        "datagram = the dearest's CPU; waited = for a processor; dropped = by the kernel",
    )
    for column in (
        "attack",
        "sent/s",
        "p99 ms",
        "ratio",
        "lost",
        "memory MiB",
        "CPU %",
        "cut after s",
        "datagram ms",
        "waited %",
        "dropped",
        "goals",
    ):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for row in results:
        attacked, control = row.attacked, row.control
        cut = (
            "-"
            if row.attack in NOBODY_TO_CUT
            else "kept out"
            if row.cut_s is None and attacked.offender.get("kept_out")
            else "never"
        )
        missed = row.missed()
        table.add_row(
            row.attack,
            f"{attacked.offender.get('sent', 0) / row.seconds:,.0f}",
            f"{row.undisturbed.p99_ms:.1f} / {'-' if control is None else f'{control.p99_ms:.1f}'} / {attacked.p99_ms:.1f}",
            f"{row.ratio:.2f}",
            f"{attacked.lost}/{attacked.asked}",
            f"{attacked.growth_mib:.1f}",
            f"{row.undisturbed.cpu * 100:.0f} / {attacked.cpu * 100:.0f}",
            cut if row.cut_s is None else f"{row.cut_s:.2f}",
            f"{attacked.longest_ms:.2f}",
            f"{(row.control or row.undisturbed).waited * 100:.0f} / {attacked.waited * 100:.0f}",
            f"{attacked.dropped:,}",
            "missed: " + ", ".join(missed) if missed else "met",
        )
    console.print(table)
    for row in results:
        if why := row.attacked.offender.get("why"):
            console.print(f"  {row.attack}: {why[:150]}", highlight=False, markup=False)


def calmest(tries: Sequence[Attacked]) -> Attacked:
    """The try that other programs of this machine disturbed least: in which the node waited least for its processor."""

    def disturbed(row: Attacked) -> float:
        return sum(run.waited for run in (row.undisturbed, row.control, row.attacked) if run is not None)

    return min(tries, key=disturbed)


def main(argv: Sequence[str] = ()) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three seconds each instead of ten, one try instead of three")
    parser.add_argument("--only", default="", help="attacks, separated by commas: " + ", ".join(ATTACKS))
    parser.add_argument("--engine", default="qh3,aioquic", help="QUIC engines, separated by commas")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long each run takes")
    parser.add_argument("--tries", type=int, default=0, help="how often each attack is measured; the calmest try is shown")
    told = parser.parse_args(list(argv))
    attacks = told.only.split(",") if told.only else list(ATTACKS)
    if unknown := [name for name in attacks if name not in ATTACKS]:
        parser.error(f"no attack called {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    if hostile_net.is_inside():
        hostile_net.prepare()
    elif (status := hostile_net.run_inside(argv)) is not None:
        if status:
            sys.exit(status)
        return
    console = Console(width=160)
    seconds, tries = (3.0, 1) if told.quick else (10.0, 3)
    seconds, tries = told.seconds or seconds, told.tries or tries
    split = split_processors()
    if split[1]:
        os.sched_setaffinity(0, split[1])
    results: list[Attacked] = []
    for engine in told.engine.split(","):
        of_engine = []
        for attack in attacks:
            of_engine.append(calmest([attack_once(attack, engine, seconds, split) for _ in range(tries)]))
            row = of_engine[-1]
            before = (row.control or row.undisturbed).p99_ms
            console.print(f"{engine}: {attack}: p99 {before:.1f} -> {row.attacked.p99_ms:.1f} ms", highlight=False)
        show(of_engine, console)
        results += of_engine
    where = "a network namespace" if hostile_net.is_inside() else "loopback, whose addresses the node counts as its owner's"
    machine = f"{cpu_name()}, {os.cpu_count()} processors, {where}"
    console.print(f"{machine}; " + ", ".join(f"{k} {v}" for k, v in versions("trio", "qh3", "aioquic").items()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(row), "ratio": row.ratio, "cut_s": row.cut_s, "missed": row.missed()} for row in results]
    body = {"cpu": machine, "versions": versions("trio", "qh3", "aioquic"), "rows": rows}
    (FOLDER / "hostile.json").write_text(json.dumps(body, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
