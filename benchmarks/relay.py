"""A chat through a relay, sealed, beside the same chat with the same node directly: four processes on one machine.

The node that answers tells an address at which nobody is, as one behind a firewall does. One node that asks is given its true
address and is connected to it; the other knows the relay alone.
"""

import socket
import statistics
import time

import httpx

from benchmarks.harness import Row, alternate, report
from benchmarks.node_process import NodeProcess

RUNS = 7
CALLS = 30
WORDS = 40
NOWHERE = "/ip4/127.0.0.1/udp/9/quic-v1"
BODY = {"model": "echo", "messages": [{"role": "user", "content": "word " * WORDS}], "max_tokens": WORDS}


def measure(url: str, *, stream: bool) -> list[float]:
    """Seconds of each of `CALLS` whole chats."""
    took: list[float] = []
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        for number in range(CALLS + 3):
            started = time.perf_counter()
            answer = client.post("/v1/chat/completions", json=BODY | {"stream": stream})
            elapsed = time.perf_counter() - started
            answer.raise_for_status()
            if number >= 3:
                took.append(elapsed)
    return took


def way_of(node: NodeProcess) -> str | None:
    """Through whom the node's next chat goes, None for nobody."""
    answer = httpx.post(f"{node.gateway}/v1/chat/completions", json=BODY, trust_env=False, timeout=30)
    answer.raise_for_status()
    route = httpx.get(f"{node.gateway}/mesh/explain/{answer.headers['x-request-id']}", trust_env=False, timeout=10).json()
    return next(row["via"] for row in route["candidates"] if row["peer_id"] == route["chosen"])


def wait_for_way(node: NodeProcess, relay: str | None, seconds: float = 40.0) -> None:
    """Waits until the node's chats go the way they are meant to."""
    until = time.monotonic() + seconds
    seen: object = "nothing"
    while time.monotonic() < until:
        try:
            seen = way_of(node)
        except httpx.HTTPError as error:
            seen = error
        if seen == relay:
            return
        time.sleep(0.5)
    raise RuntimeError(f"the way is {seen} and not {relay}")


def free_port() -> int:
    """A UDP port that is free on loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


def main() -> None:
    """Runs the benchmark."""
    true_address = f"/ip4/127.0.0.1/udp/{free_port()}/quic-v1"
    with (
        NodeProcess("--engine", "none", "--relay") as relay,
        NodeProcess("--engine", "echo", "--listen", true_address, "--announce", NOWHERE, "--bootstrap", relay.address) as far,
        NodeProcess("--engine", "none", "--announce", NOWHERE, "--bootstrap", f"{true_address}/p2p/{far.peer_id}") as near,
        NodeProcess("--engine", "none", "--announce", NOWHERE, "--bootstrap", relay.address) as asking,
    ):
        wait_for_way(near, None)
        wait_for_way(asking, relay.peer_id)
        rows = []
        for what, stream in (("whole", False), (f"streamed, {WORDS} tokens", True)):
            through, direct = alternate(
                RUNS, lambda s=stream: measure(asking.gateway, stream=s), lambda s=stream: measure(near.gateway, stream=s)
            )
            sealed, plain = statistics.median(through) * 1e3, statistics.median(direct) * 1e3
            rows.append(Row(f"chat through a relay, {what}, p50", sealed, "ms", "directly", plain))
            rows.append(Row("added by relay and seal", sealed - plain, "ms"))
    report("relay", "Sealed through a relay", rows, ("trio", "qh3", "cryptography"))


if __name__ == "__main__":
    main()
