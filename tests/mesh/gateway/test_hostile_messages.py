"""Messages that are wrong, double-tongued, huge, slow or many: each is refused with its reason, and a normal client goes on."""

import gzip
import json
from collections.abc import Callable

import h11
import pytest
import trio
from hostile_door import (
    CHAT,
    CLOSED,
    GOOD,
    MESSAGES,
    Attack,
    Case,
    Door,
    Outcome,
    door,
    get,
    is_refused_beside_a_normal_client,
    post,
    read_reply,
    sends,
)

from mesh.gateway.strict import LINES_MAX, StrictBuffer

SMUGGLING = "request smuggling: RFC 9112, sections 2.2, 5.2, 6.1, 6.3, 7.1.1 and 11.2; CVE-2025-43859 (h11, chunks)"
SLOW = "slowloris and its kin: RFC 9110, section 17; limits in security.md 2.11"
LARGE = "too much of one thing: limits in security.md 2.9 and 2.11"
JSON_BOMB = "JSON that costs more than its bytes, or that two programs read differently (security.md 2.9)"
TRAVERSAL = "paths that climb (CWE-22)"
BAD_HTTP = (400, "bad_http")
INVALID = (400, "invalid_json")
NOT_FOUND = (404, "not_found")

START = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
BODY = json.dumps(GOOD).encode()
CHUNKED = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n"
MIB = 1 << 20


def with_lengths(*headers: str, body: bytes = BODY) -> Attack:
    return sends(START + "".join(f"{header}\r\n" for header in headers).encode() + b"\r\n" + body)


def with_body(text: str | bytes) -> Attack:
    return sends(post(text if isinstance(text, bytes) else text.encode()))


def chat_with(extra: str) -> Attack:
    return with_body(json.dumps(GOOD)[:-1] + ", " + extra + "}")


def trickled(data: bytes, until: Callable[[bytes], bool] = lambda _: False) -> Attack:
    """Send a byte now and then, for ever, and see what comes."""

    async def attack(opened: Door) -> Outcome:
        stream = await opened.connect()

        async def trickle() -> None:
            for index in range(len(data)):
                try:
                    await stream.send_all(data[index : index + 1])
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            reply = await read_reply(stream)
            nursery.cancel_scope.cancel()
        return reply.outcome

    return attack


async def says_nothing(opened: Door) -> Outcome:
    return (await read_reply(await opened.connect())).outcome


async def gap_between_requests(opened: Door) -> Outcome:
    stream = await opened.connect()
    await stream.send_all(get("/health"))
    assert (await read_reply(stream)).status == 200
    return (await read_reply(stream)).outcome


async def many_connections(opened: Door) -> Outcome:
    """Take all places and more, many times over; those who ask for nothing make room for those who do."""
    streams = [await opened.connect() for _ in range(120)]
    for _ in range(20):
        assert (await opened.send(get("/health"))).status == 200  # a new connection finds its place
    replies = [await read_reply(stream) for stream in streams[:100]]
    assert all(reply.ended for reply in replies)
    return replies[0].outcome


async def many_slow_bodies(opened: Door) -> Outcome:
    """The same with requests whose bodies never come."""
    streams = []
    for _ in range(40):
        stream = await opened.connect()
        streams.append(stream)
        await stream.send_all(START + b"Content-Length: 100\r\n\r\n{")
    assert (await opened.send(get("/health"))).status == 200
    return (await read_reply(streams[0])).outcome


async def many_at_once_on_one_connection(opened: Door) -> Outcome:
    """A thousand requests in one piece: each gets its answer, one after another."""
    stream = await opened.connect()
    n_refused = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, get(host="evil.example") * 300)
        data = b""
        while n_refused < 300 and (part := await stream.receive_some(65536)):
            data += bytes(part)
            n_refused = data.count(b"HTTP/1.1 421")
    assert n_refused == 300
    return (421, "wrong_host")


async def never_reads(opened: Door) -> Outcome:
    """Asks for an answer without end and takes none of it."""
    socket = trio.socket.socket()
    socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    await socket.connect(("127.0.0.1", opened.port))
    stream = trio.SocketStream(socket)
    opened.opened.append(stream)
    await stream.send_all(post({"model": "endless", "messages": MESSAGES, "stream": True}))
    with trio.fail_after(30):
        await opened.engine.stopped.wait()  # the engine is told to stop
    assert opened.telemetry.registry.get_sample_value("isochrone_gateway_connections_cut_total")
    return CLOSED


async def huge_body_in_chunks(opened: Door) -> Outcome:
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    return (await opened.send(START + b"Transfer-Encoding: chunked\r\n\r\n", *([piece] * 140), b"0\r\n\r\n")).outcome


async def many_large_bodies(opened: Door) -> Outcome:
    """Bodies that are each allowed and together are not."""
    head = START + f"Content-Length: {MIB}\r\n\r\n".encode()
    held = [await opened.connect() for _ in range(3)]
    for stream in held:
        await stream.send_all(head + b" " * (MIB - 1))
    while (outcome := (await opened.send(head + b" " * MIB)).outcome) == INVALID:  # the others are not read yet
        pass
    return outcome


ENDLESS_HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 1000

CASES = [
    Case(
        "two kinds of length",
        SMUGGLING,
        (400, "ambiguous_length"),
        with_lengths("Content-Length: 4", "Transfer-Encoding: chunked", body=CHUNKED),
    ),
    Case("two lengths", SMUGGLING, BAD_HTTP, with_lengths("Content-Length: 4", f"Content-Length: {len(BODY)}")),
    Case("two lengths in one", SMUGGLING, BAD_HTTP, with_lengths(f"Content-Length: {len(BODY)}, 4")),
    Case("signed length", SMUGGLING, BAD_HTTP, with_lengths(f"Content-Length: +{len(BODY)}")),
    Case("negative length", SMUGGLING, BAD_HTTP, with_lengths("Content-Length: -1")),
    Case("length in hex", SMUGGLING, BAD_HTTP, with_lengths("Content-Length: 0x10")),
    Case("unknown coding", SMUGGLING, (501, "transfer_encoding"), with_lengths("Transfer-Encoding: xchunked", body=CHUNKED)),
    Case("coded twice", SMUGGLING, (501, "transfer_encoding"), with_lengths("Transfer-Encoding: gzip, chunked", body=CHUNKED)),
    Case("coding hidden by a tab", SMUGGLING, BAD_HTTP, with_lengths("Transfer-Encoding:\x0bchunked", body=CHUNKED)),
    Case("space before the colon", SMUGGLING, BAD_HTTP, with_lengths(f"Content-Length : {len(BODY)}")),
    Case("lines that end in LF", SMUGGLING, BAD_HTTP, sends(get().replace(b"\r\n", b"\n"))),
    Case("one line that ends in LF", SMUGGLING, BAD_HTTP, sends(get("/health", "X: y\nContent-Length: 5"))),
    Case("lone CR", SMUGGLING, BAD_HTTP, sends(get("/health", "X: y\rContent-Length: 5"))),
    Case("folded header", SMUGGLING, BAD_HTTP, sends(get("/health", "X: y\r\n\tTransfer-Encoding: chunked"))),
    Case("NUL in a header", SMUGGLING, BAD_HTTP, sends(get("/health", "X: y\x00z"))),
    Case("header without a name", SMUGGLING, BAD_HTTP, sends(get("/health", ": y"))),
    Case("blank in the target", SMUGGLING, BAD_HTTP, sends(get("/health HTTP/1.1 "))),
    Case("chunk with a sign", SMUGGLING, BAD_HTTP, with_lengths("Transfer-Encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n")),
    Case(
        "chunk that goes on", SMUGGLING, BAD_HTTP, with_lengths("Transfer-Encoding: chunked", body=b"1\r\n{XX2\r\n}\r\n0\r\n\r\n")
    ),
    Case(
        "chunk extensions",
        SMUGGLING,
        BAD_HTTP,
        with_lengths("Transfer-Encoding: chunked", body=b"1;" + b"a=b;" * 2000 + b"\r\n{"),
    ),
    Case("endless chunk line", SMUGGLING, BAD_HTTP, with_lengths("Transfer-Encoding: chunked", body=b"1;" + b"a" * 5000)),
    Case(
        "folded trailer",
        SMUGGLING,
        BAD_HTTP,
        with_lengths("Transfer-Encoding: chunked", body=CHUNKED[:-2] + b"X: y\r\n z\r\n\r\n"),
    ),
    Case("TLS on a port without", SMUGGLING, BAD_HTTP, sends(bytes.fromhex("160301020001000100") + bytes(100))),
    Case("no HTTP at all", SMUGGLING, BAD_HTTP, sends(b"EHLO evil.example\r\n\r\n")),
    Case(
        "unknown expectation",
        "RFC 9110, section 10.1.1",
        (417, "expectation_failed"),
        sends(post(GOOD, "Expect: the-unexpected")),
    ),
    Case(
        "compressed bomb",
        "1,029 times its size: security.md 2.9",
        (415, "unsupported_media_type"),
        sends(post(gzip.compress(b" " * (64 * MIB)), "Content-Encoding: gzip")),
    ),
    Case("path that climbs", TRAVERSAL, NOT_FOUND, sends(get("/v1/../../etc/passwd"))),
    Case("path that climbs in code", TRAVERSAL, NOT_FOUND, sends(get("/v1/%2e%2e/%2e%2e/etc/passwd"))),
    Case("model that climbs", TRAVERSAL, (404, "model_not_found"), sends(get("/v1/models/..%2f..%2f..%2fetc%2fpasswd"))),
    Case("request id that climbs", TRAVERSAL, NOT_FOUND, sends(get("/mesh/explain/..%2fstatus"))),
    Case("NUL in the path", TRAVERSAL, NOT_FOUND, sends(get("/health%00.json"))),
    Case("two slashes", TRAVERSAL, NOT_FOUND, sends(get("//mesh/status"))),
    Case("large head", LARGE, (431, "headers_too_large"), sends(get("/health", "X: " + "y" * 20_000))),
    Case(
        "large head in pieces", LARGE, (431, "headers_too_large"), sends(get("/health", "X: " + "y" * 15_000)[:-4], b"y" * 4000)
    ),
    Case("long target", LARGE, (431, "headers_too_large"), sends(get("/" + "y" * 17_000))),
    Case("many headers", LARGE, (431, "headers_too_large"), sends(get("/health", *(f"X-{i}: y" for i in range(110))))),
    Case(
        "many more headers",
        LARGE,
        (431, "headers_too_large"),
        sends(get("/health", *(f"X-{i}: y" for i in range(LINES_MAX + 1)))),
    ),
    Case("large body", LARGE, (413, "too_large"), sends(post(b" " * (9 * MIB)))),
    Case("large body in chunks", LARGE, (413, "too_large"), huge_body_in_chunks),
    Case("large bodies together", LARGE, (429, "overloaded"), many_large_bodies, (("bodies_bytes_max", 3 * MIB + 1000),)),
    Case("deep JSON", JSON_BOMB, INVALID, chat_with('"metadata": ' + "[" * 100 + "]" * 100)),
    Case("deeper JSON", JSON_BOMB, INVALID, with_body("[" * 60_000)),
    Case(
        "deep JSON where any name is allowed",
        JSON_BOMB,
        INVALID,
        chat_with('"guided_json": ' + '{"a":' * 5000 + "1" + "}" * 5000),
    ),
    Case("many arrays", JSON_BOMB, INVALID, chat_with('"metadata": {"x": [' + "[]," * 2_000_000 + "1]}")),
    Case("many objects", JSON_BOMB, INVALID, chat_with('"metadata": {"x": [' + "{}," * 2_000_000 + "1]}")),
    Case("many numbers", JSON_BOMB, INVALID, chat_with('"metadata": {"x": [' + "1," * 3_000_000 + "1]}")),
    Case("many names", JSON_BOMB, INVALID, chat_with('"metadata": {' + ",".join(f'"{i}":1' for i in range(300_000)) + "}")),
    Case("NaN", JSON_BOMB, INVALID, chat_with('"temperature": NaN')),
    Case("infinity", JSON_BOMB, INVALID, chat_with('"temperature": -Infinity')),
    Case("number out of range", JSON_BOMB, INVALID, chat_with('"metadata": {"x": 1e999}')),
    Case("number of many digits", JSON_BOMB, INVALID, chat_with('"seed": ' + "9" * 5000)),
    Case("one name twice", JSON_BOMB, INVALID, chat_with('"model": "tools"')),
    Case("one name twice, deep", JSON_BOMB, INVALID, chat_with('"metadata": {"a": 1, "\\u0061": 2}')),
    Case("half a character", JSON_BOMB, INVALID, chat_with('"user": "\\ud800"')),
    Case("no UTF-8", JSON_BOMB, INVALID, with_body(BODY + b"\xff")),
    Case("UTF-16", JSON_BOMB, INVALID, with_body(json.dumps(GOOD).encode("utf-16"))),
    Case("marked UTF-8", JSON_BOMB, INVALID, with_body(b"\xef\xbb\xbf" + BODY)),
    Case("NUL in JSON", JSON_BOMB, INVALID, chat_with('"user": "\x00"')),
    Case("two values", JSON_BOMB, INVALID, with_body(BODY + BODY)),
    Case("head a byte at a time", SLOW, CLOSED, trickled(ENDLESS_HEAD), (("idle_timeout_s", 0.5),)),
    Case("nothing said", SLOW, CLOSED, says_nothing, (("idle_timeout_s", 0.5),)),
    Case("nothing more said", SLOW, CLOSED, gap_between_requests, (("idle_timeout_s", 0.5),)),
    Case(
        "body a byte at a time",
        SLOW,
        (408, "body_too_slow"),
        trickled(START + b"Content-Length: 1000\r\n\r\n" + b" " * 1000),
        (("body_timeout_s", 0.5), ("idle_timeout_s", 20.0)),
    ),
    Case(
        "chunks a byte at a time",
        SLOW,
        (408, "body_too_slow"),
        trickled(START + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 1000),
        (("body_timeout_s", 0.5), ("idle_timeout_s", 20.0)),
    ),
    Case("answer not read", SLOW, CLOSED, never_reads, (("write_timeout_s", 0.3),)),
    Case("connections without end", LARGE, CLOSED, many_connections, (("connections_max", 16),)),
    Case("slow bodies without end", LARGE, CLOSED, many_slow_bodies, (("connections_max", 16),)),
    Case("requests without end", LARGE, (421, "wrong_host"), many_at_once_on_one_connection),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_message_is_refused_beside_a_normal_client(case: Case, nursery: trio.Nursery) -> None:
    await is_refused_beside_a_normal_client(case, nursery)


async def test_what_a_caller_says_of_its_request_is_not_believed(nursery: trio.Nursery) -> None:
    async with door(nursery) as opened:
        reply = await opened.send(get("/v1/models", "X-Request-Id: evil", "X-Mesh-Node: evil", "Range: bytes=0-1"))
        assert reply.status == 200
        assert "evil" not in str(reply.headers)
        assert "content-range" not in reply.headers
        assert len(json.loads(reply.body)["data"]) > 2


async def test_expected_100_continue_is_given_and_the_body_taken(nursery: trio.Nursery) -> None:
    async with door(nursery) as opened:
        assert (await opened.send(post(GOOD, "Expect: 100-continue"))).status == 200


async def test_body_in_chunks_is_taken(nursery: trio.Nursery) -> None:
    async with door(nursery) as opened:
        assert (await opened.send(START + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED)).status == 200


async def test_connection_with_work_under_way_never_makes_room(nursery: trio.Nursery) -> None:
    async with door(nursery, connections_max=4) as opened:
        stream = await opened.connect()
        await stream.send_all(post({"model": "endless", "messages": MESSAGES, "stream": True}))
        assert b"200" in await stream.receive_some(100)
        for _ in range(12):
            await opened.connect()
        for _ in range(3):
            assert (await opened.send(get("/health"))).status == 200
        assert not opened.engine.stopped.is_set()
        assert await stream.receive_some(100)


def test_private_names_of_h11_are_what_they_were() -> None:
    connection = h11.Connection(h11.SERVER)
    assert type(connection._receive_buffer).__mro__[0] is StrictBuffer.__mro__[1]
    connection._receive_buffer = StrictBuffer()
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: a\n\r\n")
    with pytest.raises(h11.RemoteProtocolError, match="line that ends"):
        connection.next_event()
