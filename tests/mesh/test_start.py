"""A node starts without what it does not need yet."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mesh.config import Ready, resolve
from mesh.service import run_node

ROOT = Path(__file__).parents[2]
LATER = ("httpx", "hypercorn", "starlette", "onnxruntime", "pyroute2", "mesh.admission.commands", "mesh.conformance", "sim.world")


def imported(code: str, names: tuple[str, ...]) -> list[str]:
    told = f"{code}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_node_is_made_without_the_libraries_of_its_http_door_and_of_other_commands() -> None:
    assert imported("import node, mesh.service, mesh.up", LATER) == []


def test_command_line_is_read_without_the_mesh() -> None:
    assert imported("import node", ("trio", "numpy", "protocol.node", "mesh.transport")) == []


@pytest.fixture
def collector_off() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("collector_off")
async def test_collector_that_was_put_off_runs_when_the_node_is_ready(tmp_path: Path) -> None:
    flags = {"open": True, "engine": ["echo"], "gateway": "127.0.0.1:0", "listen": ["/ip4/127.0.0.1/udp/0/quic-v1"]}
    config = resolve({**flags, "state_dir": tmp_path}, {"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    shutdown, runs = trio.Event(), []

    def ready(_: Ready) -> None:
        runs.append(gc.isenabled())
        shutdown.set()

    with trio.fail_after(30):
        await run_node(config, ready, shutdown)
    assert runs == [True]
