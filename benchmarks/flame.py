"""Where one hop spends its time: both processes sampled under load and drawn, beside the blocking UDP echo that is the floor.

A native client, a light node, asks the echo engine of a node for 1 KiB, one request after the other, while py-spy looks two
hundred times a second at what each process does. Waiting for the network is left out. What the QUIC library and the kernel do is
part of the Python function that calls them.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import trio

from benchmarks.echo_floor import echoing
from benchmarks.harness import Row, cpu_s, report
from benchmarks.icicle import Stacks, draw
from benchmarks.node_process import NodeProcess
from mesh import client

PAYLOAD_BYTES = 1024
RATE_HZ = 200
"""Looks a second: each stops the process for some 0.1 ms, so that a fiftieth of the time is lost to them."""
WARM_UP_S = 2.0
FLOOR_CALLS = 5000
WAITING = frozenset({"get_events", "_work", "wait", "poll"})
"""Innermost functions of a thread that waits for something, without their classes."""
LAYERS_SHOWN = 14
LOOP = "trio's own loop"
"""What is done between two tasks, and in threads that belong to none."""


def floor_s() -> float:
    """The median round trip in seconds of 1 KiB between two processes by blocking sockets, without encryption."""
    with echoing() as address, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.connect(address)
        opened.settimeout(5.0)
        payload, took = os.urandom(PAYLOAD_BYTES), []
        for _ in range(FLOOR_CALLS):
            began = time.perf_counter()
            opened.send(payload)
            opened.recv(2048)
            took.append(time.perf_counter() - began)
    return statistics.median(took)


async def ask(address: str, for_s: float) -> None:
    """Asks for so long, and prints the median round trip in seconds, how many there were, and its own processor time."""
    array, took = np.zeros(PAYLOAD_BYTES, "u1"), []
    async with client.connect([address], network="isochrone-main") as mesh:
        await mesh.infer("echo", {"x": array})
        print("asking", flush=True)
        until, used = time.perf_counter() + for_s, time.process_time()
        while (began := time.perf_counter()) < until:
            await mesh.infer("echo", {"x": array})
            took.append(time.perf_counter() - began)
        print(statistics.median(took), len(took), time.process_time() - used, flush=True)


def py_spy() -> str:
    """Where the sampler is.

    Raises:
        SystemExit: it is not installed.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise SystemExit("py-spy is not installed: pip install 'isochrone[bench]' (`make bench` does)")
    return found


def record(pid: int, for_s: float, out: Path) -> subprocess.Popen[bytes]:
    """Begins to look at a process."""
    command = [py_spy(), "record", "--format", "raw", "--rate", str(RATE_HZ), "--duration", str(int(for_s))]
    return subprocess.Popen(
        [*command, "--pid", str(pid), "--output", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def read_stacks(raw: str) -> Stacks:
    """What py-spy wrote, without the lines within functions, and without threads that wait."""
    stacks: Stacks = Counter()
    for line in raw.splitlines():
        text, _, count = line.rpartition(" ")
        frames = tuple(frame.rpartition(":")[0].removesuffix(")") for frame in text.split(";"))
        if frames[-1].partition(" (")[0].rpartition(".")[2] not in WAITING:
            stacks[frames] += int(count)
    return stacks


def within_turns(stacks: Stacks) -> Stacks:
    """The stacks from where the event loop runs a task; whatever else there is becomes one function of the loop."""
    found: Stacks = Counter()
    for frames, count in stacks.items():
        turn = max((at for at, frame in enumerate(frames) if frame.startswith("unrolled_run ")), default=len(frames))
        found[frames[turn + 1 :] or (f"{LOOP} (trio/",)] += count
    return found


def layers(stacks: Stacks) -> list[tuple[str, float]]:
    """The share of each module in which the time was spent, itself or in libraries it calls, the largest first."""
    shares: Counter[str] = Counter()
    for frames, count in within_turns(stacks).items():
        files = [frame.partition(" (")[2] for frame in frames]
        own = [file for file in files if file.startswith(("mesh/", "protocol/"))]
        shares[own[-1] if own else LOOP] += count
    total = sum(shares.values())
    return [(name, count / total) for name, count in shares.most_common()]


def measure(for_s: float) -> tuple[dict[str, Stacks], list[Row]]:
    """Runs the hop under load and looks at both ends."""
    py_spy()
    with tempfile.TemporaryDirectory() as folder, NodeProcess("--engine", "echo", "--quic-engine", "qh3") as node:
        command = [sys.executable, "-m", "benchmarks.flame", "ask", node.address, str(for_s + 2 * WARM_UP_S)]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert asking.stdout is not None
        assert asking.stdout.readline().strip() == "asking"
        before = cpu_s(node.process.pid)
        time.sleep(WARM_UP_S)
        outs = {"asking": Path(folder) / "asking", "answering": Path(folder) / "answering"}
        looking = [record(pid, for_s, out) for pid, out in zip((asking.pid, node.process.pid), outs.values(), strict=True)]
        for one in looking:
            _, said = one.communicate(timeout=for_s + 30)
            if one.returncode:
                raise SystemExit(f"py-spy cannot look at the process: {said.decode().strip()}\nIt needs root, or ptrace rights.")
        p50_s, calls, used_s = map(float, asking.stdout.readline().split())
        answering_s = cpu_s(node.process.pid) - before
        asking.wait()
        stacks = {name: read_stacks(out.read_text()) for name, out in outs.items()}
    rows = [
        Row("1 KiB hop, native client, p50, looked at", p50_s * 1e6, "us", "blocking UDP echo, no encryption", floor_s() * 1e6),
        Row("CPU of the asking process per call", used_s / calls * 1e6, "us"),
        Row("CPU of the answering process per call", answering_s / calls * 1e6, "us"),
    ]
    for name, found in stacks.items():
        rows += [Row(f"{name}: {module}", 100 * share, "%") for module, share in layers(found)[:LAYERS_SHOWN]]
    return stacks, rows


def main(flags: list[str]) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks flame", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench/hop.svg"), help="where the picture goes")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long to look")
    told = parser.parse_args(flags)
    stacks, rows = measure(told.seconds)
    told.out.parent.mkdir(parents=True, exist_ok=True)
    told.out.write_text(draw({f"{name} process": within_turns(found) for name, found in stacks.items()}))
    report("flame", "One hop of 1 KiB under load", rows, ("trio", "qh3", "py-spy"), [f"The picture is {told.out}."])


if __name__ == "__main__":
    trio.run(ask, sys.argv[2], float(sys.argv[3]))
