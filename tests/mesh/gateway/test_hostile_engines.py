"""Requests that would turn an engine against its owner, engines that lie or break, and names that would turn a terminal."""

import json

import pytest
import test_hostile_callers
import test_hostile_messages
import trio
from hostile_door import MESSAGES, Attack, Case, Door, Outcome, door, get, is_refused_beside_a_normal_client, post, sends

from mesh.gateway import GatewayConfig
from mesh.gateway.sanitise import parse_call
from mesh.plain import printable
from mesh.tables import MODEL_COLUMNS, rows_table
from protocol.inference import Feature

FETCHED = "an engine that fetches what a message names: CVE-2026-24779, CVE-2026-25960, CVE-2026-34753"
TARGETS = "a target named in the body: CVE-2024-6587 (api_base), PYSEC-2026-4070 (nested in user_config), CVE-2026-5530"
REDIRECTED = "a redirect that is not looked at again: CVE-2026-45401, CVE-2026-63764"
BROKEN = "an engine that breaks, floods or hangs: security.md 2.11"
REFUSED = (400, "remote_content_refused")
FAILED = (502, "engine_failed")
DROPPED = (200, "")


def asks_for(part: object) -> Attack:
    return sends(post({"model": "good", "messages": [{"role": "user", "content": [part]}]}))


def image(url: object) -> Attack:
    return asks_for({"type": "image_url", "image_url": {"url": url}})


def targets(extra: dict[str, object]) -> Attack:
    """A body that names another engine: it is answered by the owner's, which never sees the name."""

    async def attack(opened: Door) -> Outcome:
        before = len(opened.engine.bodies)
        reply = await opened.send(post({"model": "good", "messages": MESSAGES, "user": "hostile", **extra}))
        (seen,) = [body for body in opened.engine.bodies[before:] if body.get("user") == "hostile"]
        assert "evil" not in json.dumps(seen)
        assert reply.headers["x-mesh-dropped"]
        return reply.outcome

    return attack


def chat(model: str, *, stream: bool = False, **body: object) -> Attack:
    return sends(post({"model": model, "messages": MESSAGES, "stream": stream, **body}))


async def breaks_a_stream(opened: Door) -> Outcome:
    """A stream that has begun ends with the reason and without a false end."""
    stream = await opened.connect()
    await stream.send_all(post({"model": "rubbish", "messages": MESSAGES, "stream": True}, "Connection: close"))
    data = b""
    while part := await stream.receive_some(65536):
        data += bytes(part)
    assert b"[DONE]" not in data
    assert b'"code":"engine_failed"' in data
    return FAILED


async def redirects(opened: Door) -> Outcome:
    outcome = (await opened.send(post({"model": "redirects", "messages": MESSAGES}))).outcome
    assert opened.engine.visits == 0
    return outcome


EVIL = "http://169.254.169.254/latest/meta-data/evil"

CASES = [
    Case("image at an address", FETCHED, REFUSED, image("http://169.254.169.254/latest/meta-data/")),
    Case("image at a name", FETCHED, REFUSED, image("https://evil.example/x.png")),
    Case("image in capitals", FETCHED, REFUSED, image("HTTP://169.254.169.254/")),
    Case("image behind blanks", FETCHED, REFUSED, image(" \t\nhttp://169.254.169.254/")),
    Case("image in a file", FETCHED, REFUSED, image("file:///etc/passwd")),
    Case("image at a path", FETCHED, REFUSED, image("/etc/passwd")),
    Case("image without a scheme", FETCHED, REFUSED, image("//evil.example/x.png")),
    Case("image by a strange scheme", FETCHED, REFUSED, image("gopher://127.0.0.1:11434/_x")),
    Case("image that is almost data", FETCHED, REFUSED, image("DATA:text/plain,x")),
    Case("image that is a list", FETCHED, REFUSED, image(["http://evil.example/"])),
    Case("image as text", FETCHED, REFUSED, asks_for({"type": "image_url", "image_url": "http://evil.example/x.png"})),
    Case(
        "address in another field",
        FETCHED,
        REFUSED,
        asks_for({"type": "input_audio", "input_audio": {"data": "http://evil.example/"}}),
    ),
    Case(
        "address in a new field",
        FETCHED,
        REFUSED,
        asks_for({"type": "video", "video": {"source": {"uri": "https://evil.example/"}}}),
    ),
    Case(
        "address too deep to see",
        FETCHED,
        REFUSED,
        asks_for({"type": "x", "a": {"b": {"c": {"d": {"e": {"f": "http://evil.example/"}}}}}}),
    ),
    Case("another target", TARGETS, DROPPED, targets({"api_base": EVIL, "base_url": EVIL})),
    Case(
        "another target, nested", TARGETS, DROPPED, targets({"metadata": {"user_config": {"model_list": [{"api_base": EVIL}]}}})
    ),
    Case("another target, deep", TARGETS, DROPPED, targets({"metadata": {"a": [{"b": [{"api_base": EVIL}]}]}})),
    Case("another target, in parameters", TARGETS, DROPPED, targets({"metadata": {"parameters": {"api_base": EVIL}}})),
    Case("another target, in a schema", TARGETS, DROPPED, targets({"metadata": {"schema": {"base_url": EVIL}}})),
    Case(
        "another target, in a message",
        TARGETS,
        DROPPED,
        targets({"messages": [{"role": "user", "content": "x", "api-base": EVIL}]}),
    ),
    Case(
        "another target, spelt oddly",
        TARGETS,
        DROPPED,
        targets(
            {
                "metadata": {
                    "apiBase": EVIL,
                    "API-BASE": EVIL,
                    "api base": EVIL,
                    "api_base\u200b": EVIL,
                    "\uff41\uff50\uff49_base": EVIL,
                    "openai_api_base": EVIL,
                    "azure.api_base.url": EVIL,
                    "aws_sts_endpoint": EVIL,
                    "Base_URL ": EVIL,
                }
            }
        ),
    ),
    Case("another key", TARGETS, DROPPED, targets({"metadata": {"api_key": "evil", "extra_headers": {"authorization": "evil"}}})),
    Case(
        "a proxy",
        TARGETS,
        DROPPED,
        targets({"chat_template_kwargs": {"proxy": EVIL, "headers": {"x": EVIL}, "webhook_url": EVIL}}),
    ),
    Case("a field nobody knows", TARGETS, DROPPED, targets({"callbacks": [EVIL], "lora_path": "/evil"})),
    Case("engine that redirects", REDIRECTED, FAILED, redirects),
    Case("engine that answers no events", BROKEN, FAILED, chat("no-events")),
    Case("engine that talks rubbish", BROKEN, FAILED, chat("rubbish")),
    Case("engine that breaks a stream", BROKEN, FAILED, breaks_a_stream),
    Case("engine with a line without end", BROKEN, FAILED, chat("long-line")),
    Case("engine without an end", BROKEN, FAILED, chat("endless"), (("answer_bytes_max", 20_000),)),
    Case("engine that hangs", BROKEN, FAILED, chat("hangs"), (("patience_s", 2.0),)),
    Case("engine that hangs midway", BROKEN, FAILED, chat("hangs-midway"), (("patience_s", 2.0),)),
    Case("engine that dies", BROKEN, FAILED, chat("dies")),
    Case("engine that compresses", BROKEN, FAILED, chat("compressed")),
    Case("engine with a large answer", BROKEN, FAILED, sends(post({"model": "embed-huge", "input": "x"}, path="/v1/embeddings"))),
    Case(
        "engine with words for numbers", BROKEN, FAILED, sends(post({"model": "embed-text", "input": "x"}, path="/v1/embeddings"))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_engine_is_not_turned_against_its_owner_beside_a_normal_client(case: Case, nursery: trio.Nursery) -> None:
    await is_refused_beside_a_normal_client(case, nursery)


def test_names_in_a_callers_own_schema_are_only_names() -> None:
    schema = {"type": "object", "properties": {"api_base": {"type": "string"}, "headers": {"type": "object"}}}
    body = {
        "model": "m",
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "functions": [{"name": "f", "parameters": schema}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        "guided_json": schema,
        "json_schema": schema,
        "structured_outputs": {"json": schema},
    }
    call = parse_call(Feature.CHAT, json.dumps(body).encode(), GatewayConfig())
    assert json.loads(call.body) == body
    assert call.dropped == ()


NAMES = [
    "\x1b[2J\x1b[31mall is well",
    "good\nerror: forged line",
    "good\r",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202egood",
    "[red]good[/red]",
    "x" * 256,
    'm"} 1\nisochrone_peers{state="',
]


async def test_names_of_models_are_text_wherever_they_are_shown(nursery: trio.Nursery) -> None:
    async with door(nursery) as opened:
        opened.engine.models = [{"id": name} for name in NAMES]
        dispatcher = opened.gateway._dispatcher
        await dispatcher.engine.refresh()  # type: ignore[attr-defined]
        listed = await opened.send(get("/mesh/models"))
        assert listed.headers["content-type"] == "application/json"
        assert {row["model"] for row in json.loads(listed.body)["models"]} == set(NAMES)
        assert not any(sign in listed.body for sign in (b"\x1b", b"\n", "\u202e".encode()))
        for name in NAMES:
            reply = await opened.send(post({"model": name, "messages": MESSAGES}))
            assert not any(sign in str(reply.headers) for sign in ("\x1b", "script", "forged"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        metrics = (await opened.send(get("/metrics"))).body.decode()
        assert printable(metrics, keep="\n") == metrics
        assert 'isochrone_peers{state=""' not in metrics
        assert not any(line.startswith(("error: forged", 'isochrone_peers{state=""')) for line in metrics.splitlines())
        log = opened.log.getvalue()
        assert printable(log, keep="\n") == log
        assert "forged line" in log
        assert not any(line.startswith("error: forged") for line in log.splitlines())


def test_names_of_models_are_text_in_a_table() -> None:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    table = rows_table("Models", [{"model": name, "peer_ids": [name]} for name in NAMES], MODEL_COLUMNS)
    Console(file=out, width=400, force_terminal=True, color_system=None).print(table)
    shown = out.getvalue().replace("\x1b[3m", "").replace("\x1b[0m", "").replace("\x1b[1m", "")  # the title's own
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[red]good[/red]" in shown


def test_sixty_cases_and_more_stand_in_the_tables() -> None:
    every = [*test_hostile_callers.CASES, *test_hostile_callers.KEY_CASES, *test_hostile_messages.CASES, *CASES]
    assert len({case.name for case in every}) == len(every) >= 60
    assert all(case.why for case in every)
