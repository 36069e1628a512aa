"""What the gateway and a hop add to the engine's own time.

The same OpenAI request goes to an engine (an OpenAI-compatible echo server in its own process), to the node in front of it, and
to a node one hop away from that one. The first is what a client pays without the mesh.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks.harness import Row, alternate, report
from benchmarks.node_process import NodeProcess
from benchmarks.openai_echo import MODEL

RUNS = 5
CALLS = 60
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "one two three four"}]}


@contextmanager
def echo_server() -> Iterator[str]:
    """The engine in its own process; gives its URL."""
    command = [sys.executable, "-m", "benchmarks.openai_echo"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate(timeout=10)


def measure(url: str, count: int) -> list[float]:
    """Seconds per whole chat completion over one kept-alive HTTP connection."""
    took = []
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        for number in range(count + 5):
            started = time.perf_counter()
            answer = client.post("/v1/chat/completions", json=BODY)
            elapsed = time.perf_counter() - started
            answer.raise_for_status()
            if number >= 5:
                took.append(elapsed)
    return took


def wait_for_model(node: NodeProcess, seconds: float = 20.0) -> None:
    """Waits until the node's catalogue lists the model."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        models = httpx.get(f"{node.gateway}/v1/models", trust_env=False, timeout=10).json()["data"]
        if any(model["id"] == MODEL for model in models):
            return
        time.sleep(0.1)
    raise RuntimeError("the model did not appear")


def main() -> None:
    """Runs the benchmark."""
    with (
        echo_server() as engine,
        NodeProcess("--engine", engine) as front,
        NodeProcess("--engine", "none", "--bootstrap", front.address) as far,
    ):
        wait_for_model(front)
        wait_for_model(far)
        direct, through, hop = alternate(
            RUNS,
            lambda: measure(engine, CALLS),
            lambda: measure(front.gateway, CALLS),
            lambda: measure(far.gateway, CALLS),
        )
    base, near, distant = (statistics.median(took) * 1e3 for took in (direct, through, hop))
    rows = [
        Row("chat through the gateway", near, "ms", "the engine directly", base),
        Row("added by the gateway", near - base, "ms"),
        Row("chat over one hop", distant, "ms", "the engine directly", base),
        Row("added by the hop", distant - near, "ms"),
    ]
    report("gateway", "Gateway overhead, whole chat completions", rows, ("trio", "hypercorn", "starlette", "httpx", "qh3"))


if __name__ == "__main__":
    main()
