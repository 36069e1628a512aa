"""Runs in a guest with the devices rxa and rxb and an emulated GPU: two nodes exchange tensors that lie on the device, by RDMA.

Prints a JSON object: each answer, and what the devices have counted meanwhile.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from inside_rdma import CARDS_S, counted, since

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1 << 20
"""Numbers of 4 bytes in a tensor: 4 MiB."""
READY_S_MAX = 400.0
"""Seconds until a node is ready and has met the other: both start at once on an emulated machine."""
POLL_S = 1.0
"""Seconds between two looks; each takes the nodes' processor."""


class Node:
    """A process of inside_gpu_node.py."""

    def __init__(self, name: str, device: str, *bootstrap: str) -> None:
        program = str(ROOT / "tests/guest/inside_gpu_node.py")
        command = [sys.executable, "-u", program, f"/run/gpu-{name}", device, *bootstrap]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.hear()

    def hear(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a node ended with {self.process.wait()}")
        return json.loads(line)

    def say(self, words: str) -> dict:
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        return self.hear()


def wait(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + READY_S_MAX
    while not is_so():
        if time.monotonic() > end:
            sys.exit(f"not within {READY_S_MAX:g} s: {what}")
        time.sleep(POLL_S)


answerer = Node("answerer", "rxb")
asker = Node("asker", "rxa", answerer.ready["address"])
for node in (answerer, asker):
    wait(lambda node=node: "rdma" in node.say("status")["fabrics"]["kinds"], "find its port")
    wait(lambda node=node: node.say("status")["alive"] > 0, "meet the other")
time.sleep(CARDS_S)  # cards with the ports are told, and looked at again

answers = []
for _ in range(3):
    before = counted("rxa")
    found = asker.say(f"ask {SIZE}")
    answers.append({**found, "counted": since(before, counted("rxa"))})
told = {"answers": answers, "asker": asker.say("status"), "answerer": answerer.say("status")}
for node in (answerer, asker):
    node.process.kill()
print(json.dumps(told))
