"""A real node in another process, for benchmarks: started through the command line, stopped by SIGTERM."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

STOP_S_MAX = 20.0
"""Longest orderly stop in seconds before the process is killed."""


def environment() -> dict[str, str]:
    """This process's environment, but bytecode is kept: a program that was installed has it from its second start on."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class NodeProcess:
    """`isochrone up --json` with the given flags; use as a context manager."""

    def __init__(self, *flags: str, host: str = "127.0.0.1", is_open: bool = True, program: Sequence[str] = ("node.py",)) -> None:
        """Prepares the command.

        Args:
            flags: for `isochrone up`, beside a fresh state directory, a free port and a free gateway port.
            host: where it listens for peers.
            is_open: whether anybody may join.
            program: what Python is told to run.
        """
        self._flags = flags
        self._host = host
        self._is_open = is_open
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="isochrone-bench-")
        self.state_dir = Path(self._folder.name)
        self.started_s = 0.0
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        """Starts the node and waits until it is ready."""
        command = [
            sys.executable, *self._program, "up", "--json", *(["--open"] if self._is_open else []),
            "--state-dir", self._folder.name,
            "--listen", f"/ip4/{self._host}/udp/0/quic-v1",
            "--gateway", "127.0.0.1:0",
            *self._flags,
        ]  # fmt: skip
        self.log = Path(self._folder.name) / "log"
        started = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment())
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready_s = time.perf_counter() - started
        if not line:
            raise RuntimeError(f"the node did not start:\n{self.log.read_text()}")
        answer = json.loads(line)
        self.peer_id: str = answer["peer_id"]
        self.address: str = answer["addresses"][0]
        self.gateway: str = answer["gateway"]
        return self

    def memory_mib(self) -> float:
        """Resident memory of the process in MiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def peers(self) -> list[dict[str, object]]:
        """What the node says of its peers."""
        answer: list[dict[str, object]] = httpx.get(f"{self.gateway}/mesh/peers", trust_env=False, timeout=10).json()["peers"]
        return answer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stops the node."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._folder.cleanup()
