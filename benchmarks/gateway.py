"""What the gateway and a hop add to the engine's own time, beside what other proxies add.

The same OpenAI request goes to an engine (an OpenAI-compatible echo server in its own process), to the node in front of it, and
to a node one hop away from that one. The first is what a client pays without the mesh. A streaming chat also goes through the
LiteLLM proxy and through vllm-router, in front of the same engine; there the time to the first word is taken.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import httpx

from benchmarks.harness import Row, alternate, report
from benchmarks.node_process import NodeProcess
from benchmarks.openai_echo import MODEL
from benchmarks.proxies import LITELLM, ROUTER, lacking, running, version_of

RUNS = 5
CALLS = 60
FIRST_WORD = '"one"'
"""What the first line of an answer holds that brings text."""
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


def first_word(url: str, count: int) -> list[float]:
    """Seconds until the first word of a streaming chat, over one kept-alive HTTP connection."""
    took = []
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        for number in range(count + 5):
            started = time.perf_counter()
            with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as answer:
                answer.raise_for_status()
                heard = [time.perf_counter() - started for line in answer.iter_lines() if FIRST_WORD in line]
            assert heard
            if number >= 5:
                took.append(heard[0])
    return took


def beside_proxies(engine: str, far: str) -> tuple[list[Row], list[str], dict[str, str]]:
    """What a gateway and a hop add to a streaming chat until its first word, beside what each proxy adds; notes, versions."""
    goals, rows, found = {LITELLM: 0.2, ROUTER: 1.0}, [], {}
    notes = [why for name in goals if (why := lacking(name))]
    with ExitStack() as stack:
        urls = {}
        for name in goals:
            if lacking(name):
                continue
            try:
                urls[name] = stack.enter_context(running(name, engine, MODEL))
                found[name] = version_of(name)
            except RuntimeError as error:
                notes.append(str(error))
        ways = [partial(first_word, url, CALLS) for url in (engine, far, *urls.values())]
        base, ours, *others = (statistics.median(taken) * 1e3 for taken in alternate(RUNS, *ways))
    rows.append(Row("first word of a chat over one hop, p50", ours, "ms", "the engine directly", base))
    for name, theirs in zip(urls, others, strict=True):
        row = Row("added by gateway and hop, first word, p50", ours - base, "ms", f"added by {name}", theirs - base, goals[name])
        rows.append(row)
    return rows, notes, found


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
        rows, notes, found = beside_proxies(engine, far.gateway)
    base, near, distant = (statistics.median(took) * 1e3 for took in (direct, through, hop))
    rows[:0] = [
        Row("chat through the gateway", near, "ms", "the engine directly", base),
        Row("added by the gateway", near - base, "ms"),
        Row("chat over one hop", distant, "ms", "the engine directly", base),
        Row("added by the hop", distant - near, "ms"),
    ]
    report(
        "gateway", "Gateway overhead, chat completions", rows, ("trio", "hypercorn", "starlette", "httpx", "qh3"), notes, found
    )


if __name__ == "__main__":
    main()
