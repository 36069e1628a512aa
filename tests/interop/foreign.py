"""A libp2p program of another implementation as a process of its own, driven by JSON lines; see README.md."""

import hashlib
import json
import os
import shutil
import subprocess
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from protocol.identity import PeerId, parse_peer_id
from protocol.multiaddr import Multiaddr, parse_multiaddr

HERE = Path(__file__).parent
ENVIRONMENT = Path(os.environ.get("INTEROP_VENV", HERE.parents[1] / ".venv-interop"))
"""Where `make test-interop` puts the other implementations' Python packages, and Node.js."""

READY_S_MAX = 60.0
"""Longest start of a foreign program in seconds, on a busy machine."""

ANSWER_S_MAX = 30.0
"""Longest wait for the answer to a command in seconds; above the programs' own patience of 20 s, which tells more."""


def pattern(n_bytes: int) -> bytes:
    """The bytes that both ends of a transfer know: 0 to 250 again and again."""
    return (bytes(range(251)) * (n_bytes // 251 + 1))[:n_bytes]


def digest_of(data: bytes) -> dict:
    """What a peer answers that was sent `data`."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class ForeignError(Exception):
    """What the foreign program says went wrong, in its own words."""


class Implementation:
    """One foreign implementation and how its program is started."""

    def __init__(self, name: str, command: list[str | Path], lacks: dict[str, str]) -> None:
        """Describe an implementation.

        Args:
            name: for the names of tests.
            command: starts its program.
            lacks: what it cannot do, and why.
        """
        self.name = name
        self.command = [str(part) for part in command]
        self.lacks = lacks

    @property
    def is_installed(self) -> bool:
        """Whether `make test-interop` has been run."""
        return (ENVIRONMENT / ".ready").exists()


JS_RESETS = "@chainsafe/libp2p-quic 2.1.1 takes RESET_STREAM for the end of the data (stream.js, readFromStream)"
PY = Implementation("py-libp2p", [ENVIRONMENT / "bin" / "python", HERE / "python" / "py_peer.py"], {})
JS = Implementation(
    "js-libp2p", [ENVIRONMENT / "bin" / "interop-node", ENVIRONMENT / "js" / "js_peer.mjs"], {"resets": JS_RESETS}
)
ALL = [PY, JS]


class Foreign:
    """A running foreign program. The process outlives a test, the tasks that talk to it do not."""

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        if implementation is JS:  # a module of Node.js finds packages beside itself alone
            shutil.copy(HERE / "js" / "js_peer.mjs", ENVIRONMENT / "js" / "js_peer.mjs")
        self.process = subprocess.Popen(implementation.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline() or "{}")
        if ready.get("event") != "ready":
            raise RuntimeError(f"{implementation.name} did not start: {' '.join(implementation.command)}")
        self.text_id: str = ready["peer_id"]
        self.peer_id: PeerId = parse_peer_id(ready["peer_id"])
        self.address: Multiaddr = parse_multiaddr(ready["addresses"][0])
        self._number = 0

    def stop(self) -> None:
        """End the program; its input's end is its sign to leave."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    @asynccontextmanager
    async def talking(self):
        """Talk to the program from this trio run."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        async with (
            trio.lowlevel.FdStream(os.dup(self.process.stdin.fileno())) as commands,
            trio.lowlevel.FdStream(os.dup(self.process.stdout.fileno())) as answers,
            trio.open_nursery() as nursery,
        ):
            talk = Talk(self, commands)
            nursery.start_soon(talk.listen, answers)
            yield talk
            nursery.cancel_scope.cancel()
        for stream in (self.process.stdin, self.process.stdout):
            os.set_blocking(stream.fileno(), True)


class Talk:
    """Commands to a foreign program and what it says."""

    def __init__(self, foreign: Foreign, commands: trio.lowlevel.FdStream) -> None:
        self.foreign = foreign
        self.events: deque[dict] = deque()
        self._commands = commands
        self._answers: dict[int, dict] = {}
        self._heard = trio.Condition()

    async def listen(self, answers: trio.lowlevel.FdStream) -> None:
        kept = b""
        async for data in answers:
            *lines, kept = (kept + data).split(b"\n")
            async with self._heard:
                for line in lines:
                    said = json.loads(line)
                    if "event" in said:
                        self.events.append(said)
                    else:
                        self._answers[said["id"]] = said
                self._heard.notify_all()
        raise RuntimeError(f"{self.foreign.implementation.name} ended with {self.foreign.process.poll()}")

    async def ask(self, command: str, **fields) -> dict:
        """Give a command and return its answer.

        Raises:
            ForeignError: the program could not do it.
        """
        self.foreign._number += 1
        number = self.foreign._number
        await self._commands.send_all(json.dumps({"id": number, "do": command, **fields}).encode() + b"\n")
        with trio.fail_after(ANSWER_S_MAX):
            async with self._heard:
                while number not in self._answers:
                    await self._heard.wait()
        answer = self._answers.pop(number)
        if not answer["ok"]:
            raise ForeignError(answer["error"])
        return answer

    async def event(self, kind: str) -> dict:
        """Wait for the next event of a kind."""
        with trio.fail_after(ANSWER_S_MAX):
            async with self._heard:
                while not (found := [event for event in self.events if event["event"] == kind]):
                    await self._heard.wait()
        self.events.remove(found[0])
        return found[0]
