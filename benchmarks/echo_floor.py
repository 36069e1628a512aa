"""What this machine adds to every round trip: two bare UDP sockets, one of which echoes, with the link emulator between them.

The emulator is told to delay by nothing. So a round trip is what four wake-ups of processes take here and now: the least that two
nodes under the same emulator can measure, whatever they are programmed in. It is taken while a mesh runs.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mesh.testnet import link
from mesh.testnet.link import LinkSpec

SAMPLES = 200
"""Round trips taken, a count: a 90th percentile of twenty."""

PAUSE_S = 0.02
"""Seconds between two: longer than a processor stays awake by itself."""

LOST_S = 2.0
"""Seconds after which a round trip counts as lost."""

_ECHO = """
import socket, sys
opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
opened.bind(("127.0.0.1", 0))
print(opened.getsockname()[1], flush=True)
while True:
    data, sender = opened.recvfrom(2048)
    opened.sendto(data, sender)
"""


@contextmanager
def echoing() -> Iterator[tuple[str, int]]:
    """The address of a process that sends back whatever comes."""
    echo = subprocess.Popen([sys.executable, "-I", "-S", "-c", _ECHO], stdout=subprocess.PIPE, text=True)
    try:
        assert echo.stdout is not None
        yield "127.0.0.1", int(echo.stdout.readline())
    finally:
        echo.kill()
        echo.communicate()


def floor_s(samples: int = SAMPLES) -> list[float]:
    """Round trips in seconds, the lost ones left out, of processes that are scheduled like any other."""
    with echoing() as address:
        return _through_emulator(address, samples)


def _through_emulator(address: tuple[str, int], samples: int) -> list[float]:
    found = []
    emulator = subprocess.Popen(
        [sys.executable, "-I", "-S", str(link.__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert emulator.stdin is not None
        assert emulator.stdout is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.bind(("127.0.0.1", 0))
            opened.settimeout(LOST_S)
            real = [opened.getsockname(), address]
            announced = [("127.0.0.1", port) for port in _free_ports(2)]
            still = [[(0.0, 0.0, 0.0)] * 2] * 2
            emulator.stdin.write(LinkSpec(announced, real, still).to_json() + "\n")
            emulator.stdin.flush()
            json.loads(emulator.stdout.readline())
            for number in range(samples):
                sent = time.perf_counter()
                opened.sendto(str(number).encode(), announced[1])
                try:
                    while opened.recv(2048) != str(number).encode():
                        pass
                except TimeoutError:
                    continue
                found.append(time.perf_counter() - sent)
                time.sleep(PAUSE_S)
    finally:
        emulator.communicate()
    return found


def _free_ports(count: int) -> list[int]:
    held = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    try:
        for opened in held:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in held]
    finally:
        for opened in held:
            opened.close()
