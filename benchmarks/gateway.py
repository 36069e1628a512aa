"""What the gateway and a hop add to the engine's own time.

The same OpenAI request goes to the engine, to the node in front of it, and to a node one hop away. The engine is a node's own
gateway in front of an echo engine in another process, reached as any OpenAI-compatible server by URL. So "the engine directly" is
the client talking to that server, "through the gateway" is a second node that fronts it, and "over one hop" a third node that
forwards to the second.
"""

import statistics
import time

import httpx

from benchmarks.harness import Row, alternate, report
from benchmarks.node_process import NodeProcess

RUNS = 5
CALLS = 60
BODY = {"model": "echo", "messages": [{"role": "user", "content": "one two three four"}]}


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
        if any(model["id"] == BODY["model"] for model in models):
            return
        time.sleep(0.1)
    raise RuntimeError("the model did not appear")


def main() -> None:
    """Runs the benchmark."""
    with (
        NodeProcess("--engine", "echo", "--network", "bench-engine") as server,
        NodeProcess("--engine", server.gateway, "--network", "bench") as front,
        NodeProcess("--engine", "none", "--network", "bench", "--bootstrap", front.address) as far,
    ):
        wait_for_model(front)
        wait_for_model(far)
        direct, through, hop = alternate(
            RUNS,
            lambda: measure(server.gateway, CALLS),
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
