"""The program of this tree among nodes of the last released version: the wheel of its tag, built and run as its users run it.

A release that cannot be fetched (a shallow clone has no history) is a reason to skip; anything else that fails here means that
two neighbouring versions do not understand each other.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio

ROOT = Path(__file__).parent.parent.parent
PREVIOUS_VERSION, PREVIOUS_COMMIT = "0.1.0", "60723b24a6382643bf1c9b1496ecd20cb5bd0506"
"""The last release and its commit; the hash holds where tags were not fetched."""
READY_S, KNOWN_S = 60, 30
ASKED = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture(scope="session")
def previous() -> Path:
    """A folder with the packages of the last release, from its wheel; made once and kept under build/."""
    folder = ROOT / "build" / "previous" / f"{PREVIOUS_VERSION}-{PREVIOUS_COMMIT[:12]}"
    if (folder / "done").exists():
        return folder / "installed"
    if subprocess.run(["git", "cat-file", "-e", f"{PREVIOUS_COMMIT}^{{commit}}"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip(f"this clone has no history: version {PREVIOUS_VERSION} ({PREVIOUS_COMMIT[:12]}) is not in it")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "source").mkdir(parents=True)
    archive = subprocess.run(["git", "archive", PREVIOUS_COMMIT], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder / "source", input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    for arguments in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheel", folder / "source"],
        ["install", "--no-deps", "--no-index", "--target", folder / "installed", "--find-links", folder / "wheel", "isochrone"],
    ):
        done = subprocess.run([*pip, *arguments], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    (folder / "done").touch()
    return folder / "installed"


@dataclass
class Running:
    process: subprocess.Popen
    log: Path
    peer_id: str
    address: str
    gateway: str

    async def get(self, path: str) -> dict:
        async with httpx.AsyncClient(base_url=self.gateway, trust_env=False, timeout=10) as client:
            return (await client.get(path)).raise_for_status().json()

    async def knows(self, *others: "Running") -> None:
        """Wait until all the others are alive here, and what they serve is known."""
        with trio.fail_after(KNOWN_S):
            while True:
                rows = {row["peer_id"]: row for row in (await self.get("/mesh/peers"))["peers"]}
                if all(
                    rows.get(other.peer_id, {}).get("standing") == "alive" and rows[other.peer_id]["models"] for other in others
                ):
                    return
                await trio.sleep(0.1)

    async def ask(self) -> str:
        """The peer id of whoever answers."""
        async with httpx.AsyncClient(base_url=self.gateway, trust_env=False, timeout=30) as client:
            answer = (await client.post("/v1/chat/completions", json=ASKED)).raise_for_status()
        assert answer.json()["choices"][0]["message"]["content"] == "one two three"
        return answer.headers["x-mesh-node"]


def start(packages: Path, folder: Path, engine: str, join: str | None) -> tuple[subprocess.Popen, Path]:
    folder.mkdir()
    command = [sys.executable, "-m", "node", "up", "--json", "--state-dir", str(folder / "state"), "--gateway", "127.0.0.1:0"]
    command += ["--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--engine", engine, *(["--bootstrap", join] if join else [])]
    command += ["--open"] if packages == ROOT else []  # the last release knows no other networks
    environment = {**os.environ, "PYTHONPATH": str(packages), "HOME": str(folder)}
    log = folder / "node.log"
    with log.open("wb") as errors:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors), log


@asynccontextmanager
async def running(packages: Path, folder: Path, *, engine: str, join: str | None = None) -> AsyncIterator[Running]:
    """One node of the version in `packages`."""
    process, log = start(packages, folder, engine, join)
    try:
        assert process.stdout is not None
        with trio.fail_after(READY_S):
            line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        assert line, log.read_text()
        ready = json.loads(line)
        yield Running(process, log, ready["peer_id"], ready["addresses"][0], ready["gateway"])
        if process.poll() is None:  # no test has killed it
            process.terminate()
            assert await trio.to_thread.run_sync(process.wait, 20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_release_is_the_one_that_runs(previous: Path, tmp_path: Path) -> None:
    code = "import mesh, protocol; print(mesh.__file__); print(protocol.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(previous)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert all(Path(line).is_relative_to(previous) for line in run.stdout.split())
    assert list((previous.parent / "wheel").glob(f"isochrone-{PREVIOUS_VERSION}-*.whl"))


async def test_two_versions_answer_for_each_other_and_pass_on_what_others_say(previous: Path, tmp_path: Path) -> None:
    """This version learns of a third node, and is learned of, through a node of the last release alone; each asks the other."""
    async with (
        running(previous, tmp_path / "old-door", engine="none") as door,
        running(ROOT, tmp_path / "new-engine", engine="echo", join=door.address) as new_engine,
        running(ROOT, tmp_path / "new-client", engine="none", join=door.address) as new_client,
    ):
        await new_client.knows(new_engine)
        assert await new_client.ask() == new_engine.peer_id
        await door.knows(new_engine)
        assert await door.ask() == new_engine.peer_id
        async with running(previous, tmp_path / "old-engine", engine="echo", join=new_client.address) as old_engine:
            await new_client.knows(old_engine)
            await door.knows(old_engine)
            new_engine.process.kill()
            with trio.fail_after(KNOWN_S):
                while await new_client.ask() != old_engine.peer_id:  # asking takes its time
                    pass
        new_engine.process.wait()
        faults = [line for node in (door, new_client) for line in node.log.read_text().splitlines() if "fault" in line.lower()]
        assert faults == []
