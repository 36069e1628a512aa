"""A gateway with a real engine behind it, hostile callers before it, and one normal client that keeps asking beside them.

A `Case` is one way to come in by force: what is sent, the answer it must get, and the report that it comes from. The normal
client measures how long its answers take before and while the others are at it; what they may cost it is a ratio of the two.
"""

import json
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from statistics import median

import httpx
import trio
from gateway_node import LocalDispatcher

from mesh.engines.openai import OpenAIConfig, OpenAIEngine
from mesh.gateway import GatewayConfig
from mesh.gateway.server import Gateway
from mesh.telemetry import Telemetry, make_logger

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from engine_server import OpenAIServer

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
GOOD = {"model": "good", "messages": MESSAGES}
GOOD_TEXT = "Grüße aus Köln"
SLOWER_MAX = 150.0
"""How many times its worst undisturbed answer the worst of a normal client may take: generous, for machines that are busy."""
SLOWER_MEDIAN_MAX = 10.0
"""The same for the median, which one late task does not move."""
ANSWERS = 12
"""Answers that the normal client measures before the others come, and at least beside them."""

CLOSED = (0, "closed")
"""The end of a caller who gets no answer: its connection is closed."""

Outcome = tuple[int, str]


@dataclass
class Door:
    """What a case can use."""

    url: str
    gateway: Gateway
    engine: OpenAIServer
    telemetry: Telemetry
    log: StringIO
    tls: ssl.SSLContext | None = None
    opened: list[trio.SocketStream] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def connect(self) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.opened.append(stream)
        return stream

    async def send(self, *pieces: bytes) -> "Reply":
        """Send bytes on a connection of their own, and read one answer."""
        stream = await self.connect()
        try:
            for piece in pieces:
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            pass  # refused before all of it was sent; the answer may be there all the same
        return await read_reply(stream)


@dataclass
class Reply:
    """One answer, or the end of a connection."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False

    @property
    def outcome(self) -> Outcome:
        if self.status == 0:
            return CLOSED
        try:
            code = json.loads(self.body)["error"]["code"]
        except (ValueError, KeyError, TypeError):
            code = ""
        return self.status, code


async def read_reply(stream: trio.abc.ReceiveStream, *, limit_s: float = 20.0) -> Reply:
    """Read one answer whose length is told, skipping interim ones."""
    data = b""
    with trio.fail_after(limit_s):
        while True:
            while b"\r\n\r\n" not in data:
                part = await _receive(stream)
                if not part:
                    return Reply(ended=True)
                data += part
            head, _, data = data.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split()[1])
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            if status >= 200:
                break
        length = int(headers.get("content-length", "0"))
        while len(data) < length and (part := await _receive(stream)):
            data += part
    return Reply(status, headers, data[:length])


async def _receive(stream: trio.abc.ReceiveStream) -> bytes:
    try:
        return bytes(await stream.receive_some(65536))
    except trio.BrokenResourceError:
        return b""


Attack = Callable[[Door], Awaitable[Outcome]]


@dataclass(frozen=True)
class Case:
    """One way to come in by force.

    Attributes:
        name: what is tried.
        why: what it comes from.
        outcome: the status and code it must get.
        attack: what is done.
        changes: `patience_s`, and fields of the gateway's configuration that bring its limits near.
    """

    name: str
    why: str
    outcome: Outcome
    attack: Attack
    changes: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return self.name


def get(path: str = "/v1/models", *headers: str, host: str | None = "localhost", version: str = "1.1") -> bytes:
    """A GET as bytes."""
    lines = [f"GET {path} HTTP/{version}", *([] if host is None else [f"Host: {host}"]), *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def post(body: bytes | object, *headers: str, path: str = CHAT, host: str = "localhost") -> bytes:
    """A POST with its length."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + content


def sends(*pieces: bytes) -> Attack:
    """An attack that is nothing but bytes."""

    async def attack(door: Door) -> Outcome:
        return (await door.send(*pieces)).outcome

    return attack


@dataclass
class NormalClient:
    """Asks on and on, each time the same, and looks at every answer."""

    client: httpx.AsyncClient
    times_s: list[float] = field(default_factory=list)

    async def ask(self) -> float:
        started_at = trio.current_time()
        answer = await self.client.post(CHAT, json=GOOD)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == GOOD_TEXT
        return trio.current_time() - started_at

    async def keep_asking(self, is_over: trio.Event) -> None:
        while not is_over.is_set() or len(self.times_s) < ANSWERS:
            self.times_s.append(await self.ask())


@asynccontextmanager
async def door(nursery: trio.Nursery, patience_s: float = 20.0, **changes: object) -> AsyncIterator[Door]:
    """A gateway in front of a real engine over HTTP, whose silence is borne for `patience_s` seconds."""
    server = OpenAIServer()
    await server.serve(nursery)
    engine = OpenAIEngine(server.url, OpenAIConfig(first_output_s_max=patience_s, idle_s_max=patience_s, answer_bytes_max=50_000))
    await engine.start()
    log = StringIO()
    telemetry = Telemetry(make_logger("console", "info", log))
    gateway = Gateway(replace(GatewayConfig(port=0), **changes), LocalDispatcher(engine), telemetry)  # type: ignore[arg-type]
    url = await nursery.start(gateway.serve)
    opened = Door(url, gateway, server, telemetry, log)
    try:
        yield opened
    finally:
        for stream in opened.opened:
            stream.socket.close()
        await engine.aclose()


async def is_refused_beside_a_normal_client(case: Case, nursery: trio.Nursery, headers: dict[str, str] | None = None) -> None:
    """Run one case, with the normal client at work before, meanwhile and after."""
    async with (
        door(nursery, **dict(case.changes)) as opened,
        httpx.AsyncClient(base_url=opened.url, timeout=30, headers=headers or {}) as http,
    ):
        normal = NormalClient(http)
        undisturbed_s = [await normal.ask() for _ in range(ANSWERS)]
        with trio.fail_after(60):
            async with trio.open_nursery() as beside:
                is_over = trio.Event()
                beside.start_soon(normal.keep_asking, is_over)
                outcome = await case.attack(opened)
                is_over.set()
        await normal.ask()
        assert outcome == case.outcome
        assert median(normal.times_s) <= SLOWER_MEDIAN_MAX * max(undisturbed_s)
        assert max(normal.times_s) <= SLOWER_MAX * max(undisturbed_s)
