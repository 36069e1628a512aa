"""`isochrone demo`: five real nodes at different distances, real inference, a kill, and a picture.

The demo starts a testnet, talks to the first node's gateway with the official `openai` client, as any application would, and
checks everything it shows: that embeddings and text come from the nearest node that serves the model, that vectors mean what
they should, and that the second nearest answers once the nearest has been killed. It ends with a table of predicted against
measured times and a map, and returns a non-zero status when anything was not as it should be.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import trio
from rich.console import Console
from rich.table import Table

from mesh.testnet.picture import Place, draw_map, page
from mesh.testnet.runner import RunningNode, Testnet, testnet
from mesh.testnet.topology import Topology, topology_from_mapping

EMBEDDING_MODEL = "all-minilm-l6-v2"
TEXT_MODEL = "isochrone-tiny-text"
EMBEDDING_TIMES = 8
"""Embedding requests in a row: enough for a median, few enough to watch."""
SETTLE_SAMPLES = 16
"""Probes answered by each peer before the story goes on: twice what the path's median is taken over."""
SETTLE_S_MAX = 30.0
"""Longest wait in seconds until the first node has measured everyone."""

DEMO = {
    "nodes": [
        {"name": "home", "region": "your machine", "engines": ["none"]},
        {"name": "office", "region": "same city", "engines": ["onnx:text"]},
        {"name": "campus", "region": "next city", "engines": ["onnx:text", "onnx:embeddings"]},
        {"name": "hosting", "region": "same continent", "engines": ["onnx:embeddings"]},
        {"name": "overseas", "region": "other continent", "engines": ["onnx:text", "onnx:embeddings"]},
    ],
    "rtt_ms": [
        [0, 4, 24, 60, 140],
        [4, 0, 26, 62, 142],
        [24, 26, 0, 45, 125],
        [60, 62, 45, 0, 110],
        [140, 142, 125, 110, 0],
    ],
}
"""Round trips in milliseconds as between a home, an office, a campus, a data centre and another continent."""


@dataclass(slots=True)
class Shown:
    """One request of the demo: what was asked, who answered, what was predicted and what was measured.

    The mesh predicts and measures from the gateway's hand-over to the first output; the client's time has its HTTP on top.
    """

    what: str
    answered_by: str
    rtt_ms: float
    predicted_ms: float
    measured_ms: float
    client_ms: float


@dataclass(slots=True)
class Story:
    """What the demo has seen so far."""

    requests: list[Shown] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def check(self, true: bool, otherwise: str) -> None:
        """Notes a failure; the demo goes on so that one run shows all of them."""
        if not true:
            self.failures.append(otherwise)


def parse_route(header: str) -> dict[str, float]:
    """Reads `x-mesh-route` ("rtt=3.1ms;queue=0.0ms;predicted=9.7ms;measured=9.1ms") into milliseconds."""
    pairs = (part.strip().split("=", 1) for part in header.split(";") if "=" in part)
    return {key: float(value.removesuffix("ms")) for key, value in pairs if value.endswith("ms")}


class Demo:
    """The demo's steps over a running testnet."""

    def __init__(self, net: Testnet, console: Console) -> None:
        """Prepares a client of the first node's gateway."""
        self._console = console
        self._names = {node.peer_id: node.name for node in net.nodes}
        self._client = openai.OpenAI(base_url=f"{net.nodes[0].gateway}/v1", api_key="none", max_retries=0, timeout=30)
        self.story = Story()

    def close(self) -> None:
        """Closes the client's connections."""
        self._client.close()

    def note(self, what: str, headers: Any, client_s: float) -> str:
        """Records one answered request and returns the name of the node that answered."""
        route = parse_route(headers.get("x-mesh-route", ""))
        name = self._names.get(headers.get("x-mesh-node", ""), "?")
        rtt_ms, predicted_ms, measured_ms = (route.get(key, 0.0) for key in ("rtt", "predicted", "measured"))
        self.story.requests.append(Shown(what, name, rtt_ms, predicted_ms, measured_ms, client_s * 1e3))
        return name

    def embeddings(self) -> None:
        """Embeds three words several times and checks that they mean what they should."""
        words = ["cat", "kitten", "GPU"]
        for _ in range(EMBEDDING_TIMES):
            started = time.perf_counter()
            raw = self._client.embeddings.with_raw_response.create(model=EMBEDDING_MODEL, input=words)
            name = self.note("embeddings", raw.headers, time.perf_counter() - started)
        vectors = np.array([item.embedding for item in raw.parse().data])
        kitten, gpu = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
        self._console.print(f"  embeddings by [bold]{name}[/]: cos(cat, kitten) = {kitten:.3f}, cos(cat, GPU) = {gpu:.3f}")
        self.story.check(abs(kitten - 0.788) < 0.01 and abs(gpu - 0.179) < 0.01, "the embeddings are not MiniLM's")
        self.story.check(name == "campus", f"embeddings were answered by {name}, not by the nearest that serves them, campus")

    def stream(self, expected: str, what: str = "text, first token") -> None:
        """Streams a text and checks who wrote it."""
        started = time.perf_counter()
        first_s = 0.0
        pieces: list[str] = []
        with self._client.chat.completions.with_streaming_response.create(
            model=TEXT_MODEL,
            messages=[{"role": "user", "content": "hacker"}],
            max_tokens=120,
            temperature=0.6,
            seed=7,
            stream=True,
        ) as raw:
            self._console.print("  ", end="")
            for chunk in raw.parse():
                if chunk.choices and chunk.choices[0].delta.content:
                    first_s = first_s or time.perf_counter() - started
                    pieces.append(chunk.choices[0].delta.content)
                    self._console.print(pieces[-1].replace("\n", " "), end="", highlight=False, markup=False, style="italic")
            self._console.print()
            name = self.note(what, raw.headers, first_s)
        self._console.print(f"  … streamed by [bold]{name}[/], first token after {first_s * 1e3:.1f} ms")
        self.story.check(len("".join(pieces)) > 20, "the stream brought no text")
        self.story.check(name == expected, f"the text came from {name}, not from {expected}")

    def unknown_model(self) -> None:
        """Asks for a model that nobody serves."""
        try:
            self._client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
        except openai.NotFoundError as error:
            self._console.print(f"  a model nobody serves: {error.status_code} {error.code}")
            self.story.check(error.code == "model_not_found", f"unknown model gave {error.code}")
        else:
            self.story.failures.append("an unknown model was answered")


async def peers_of(node: RunningNode) -> list[dict[str, Any]]:
    """Asks a node for its peers."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        response = await client.get(f"{node.gateway}/mesh/peers")
        response.raise_for_status()
        peers: list[dict[str, Any]] = response.json()["peers"]
        return peers


async def measured_matrix(net: Testnet) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Collects every node's own measurements into one matrix of milliseconds; NaN where nothing was measured."""
    place = {node.peer_id: index for index, node in enumerate(net.nodes)}
    matrix = np.full((len(net.nodes), len(net.nodes)), np.nan)
    np.fill_diagonal(matrix, 0.0)
    for index, node in enumerate(net.nodes):
        for peer in await peers_of(node):
            if peer["peer_id"] in place and peer["rtt_ms"] is not None:
                matrix[index, place[peer["peer_id"]]] = peer["rtt_ms"]
    return matrix


async def settled(net: Testnet) -> bool:
    """Waits until the first node has measured every other a few times; False when that takes too long."""
    with trio.move_on_after(SETTLE_S_MAX):
        while True:
            rows = await peers_of(net.nodes[0])
            if sum(row["samples"] >= SETTLE_SAMPLES for row in rows) >= len(net.nodes) - 1:
                return True
            await trio.sleep(0.2)
    return False


async def run_demo(folder: Path, *, as_json: bool = False, topology: Topology | None = None) -> int:
    """Runs the demo.

    Args:
        folder: where logs, the map and the result are written.
        as_json: print one JSON object instead of the story.
        topology: another mesh than the usual one, for tests.

    Returns:
        The exit status: 0 when everything was as it should be.
    """
    console = Console(quiet=as_json, highlight=False)
    topology = topology or topology_from_mapping(DEMO)
    console.print("[bold]Isochrone demo[/]: five nodes on this machine, with the distances of five places\n")
    started = time.perf_counter()
    async with testnet(topology, folder=folder / "nodes", console=console) as net:
        console.print(f"1. Five nodes know one another after {time.perf_counter() - started:.1f} s")
        steady = await settled(net)
        matrix = await measured_matrix(net)
        _show_distances(console, net, matrix)
        demo = Demo(net, console)
        try:
            demo.story.check(steady, "not every distance was measured in time")
            await _tell(demo, net, console)
        finally:
            demo.close()
    return _finish(demo.story, net, matrix, folder, console, as_json=as_json)


async def _tell(demo: Demo, net: Testnet, console: Console) -> None:
    """The steps of the story, in order."""

    async def step(title: str, work: Callable[[], None]) -> None:
        console.print(f"\n{title}")
        try:
            await trio.to_thread.run_sync(work)
        except openai.OpenAIError as error:
            demo.story.failures.append(f"{title}: {error}")

    await step("3. Embeddings through home's gateway, by the openai client", demo.embeddings)
    await step("4. A streamed text", lambda: demo.stream("office"))
    await step("5. A model that nobody serves", demo.unknown_model)
    victim = next(node for node in net.nodes if node.name == "office")
    console.print("\n6. The nearest text node, office, is killed (kill -9) while the next request is on its way")
    await victim.kill()
    await step("", lambda: demo.stream("campus", "… nearest just killed"))
    await step("7. And the one after that", lambda: demo.stream("campus", "… nearest gone"))


def _show_distances(console: Console, net: Testnet, matrix: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """Prints the measured distances from the first node."""
    table = Table("node", "where", "serves", "chosen RTT", "measured RTT", title="2. Distances from home, as home measured them")
    for index, node in enumerate(net.nodes[1:], start=1):
        spec = net.topology.nodes[index]
        table.add_row(
            node.name,
            spec.region,
            ", ".join(spec.engines),
            f"{net.topology.rtt_ms(0, index):.1f} ms",
            f"{matrix[0, index]:.2f} ms",
        )
    console.print(table)


def _finish(
    story: Story, net: Testnet, matrix: np.ndarray[Any, np.dtype[np.float64]], folder: Path, console: Console, *, as_json: bool
) -> int:
    """Prints the table, writes the map, and tells the status."""
    header = ("request", "answered by", "path RTT", "predicted", "measured", "at the client")
    rows = [
        (s.what, s.answered_by, *(f"{ms:.1f} ms" for ms in (s.rtt_ms, s.predicted_ms, s.measured_ms, s.client_ms)))
        for s in story.requests
    ]
    table = Table(*header, title="Predicted against measured")
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    counts = {node.name: sum(s.answered_by == node.name for s in story.requests) for node in net.nodes}
    places = [
        Place(
            node.name,
            0.0 if index == 0 or np.isnan(matrix[0, index]) else float(matrix[0, index]),
            counts[node.name],
            node.name != "office",
            net.topology.nodes[index].region,
        )
        for index, node in enumerate(net.nodes)
    ]
    title = "Who answered, and how far away"
    svg = draw_map(places, matrix, title)
    lead = "Rings are lines of equal round-trip time from home, as home measured them; a line leads to each node that answered."
    picture = folder / "mesh.html"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mesh.svg").write_text(svg)
    picture.write_text(page(svg, f"Isochrone: {title.lower()}", header, rows, lead))
    requests = [asdict(shown) for shown in story.requests]
    result = {"ok": not story.failures, "failures": story.failures, "picture": str(picture), "requests": requests}
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    if as_json:
        print(json.dumps(result))
    console.print(f"\nThe picture: {picture}")
    console.print("A map of your own mesh: isochrone map --open")
    for failure in story.failures:
        console.print(f"[bold red]wrong:[/] {failure}")
    console.print("[bold green]Everything was as it should be.[/]" if not story.failures else "[bold red]The demo failed.[/]")
    return 0 if not story.failures else 1
