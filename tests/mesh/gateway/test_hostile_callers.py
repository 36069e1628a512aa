"""Who calls the gateway and may not: pages in a browser, other places' names, other protocols, and people without a key."""

import httpx
import pytest
import trio
from hostile_door import CHAT, GOOD, Case, Door, Outcome, door, get, is_refused_beside_a_normal_client, post, sends

from mesh.keyfile import KeyRing

REBINDING = "DNS rebinding: CVE-2025-66414, CVE-2026-11624 (servers on loopback that took any Host)"
ORIGIN = "a page of another origin: fetch standard, `Origin`; the rules in security.md 2.11"
PROXY = "RFC 9112, section 3.2: other forms of a target, and methods of proxies"
UPGRADE = "RFC 9110, section 7.8: another protocol behind the checks of this one (h2c smuggling)"
KEYS = "RFC 6750; 175,108 open hosts of one engine in 130 countries (SentinelLABS and Censys, 2026)"
WRONG_HOST = (421, "wrong_host")
WRONG_ORIGIN = (403, "wrong_origin")
BAD_HTTP = (400, "bad_http")


def hosted(host: str) -> Case:
    return Case(f"host {host!r}", REBINDING, WRONG_HOST, sends(get(host=host)))


def from_page(origin: str) -> Case:
    return Case(f"origin {origin!r}", ORIGIN, WRONG_ORIGIN, sends(post(GOOD, f"Origin: {origin}")))


async def preflight(opened: Door) -> Outcome:
    asked = b"OPTIONS " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:3000\r\n"
    reply = await opened.send(asked + b"Access-Control-Request-Method: POST\r\n\r\n")
    assert not [name for name in reply.headers if name.startswith("access-control")]
    return reply.outcome


CASES = [
    hosted("evil.example"),
    hosted("evil.example:8421"),
    hosted("localhost."),
    hosted("127.0.0.1.evil.example"),
    hosted("localhost@evil.example"),
    hosted("evil.example@localhost"),
    hosted("[::ffff:127.0.0.1]"),
    hosted("[::1%25lo]"),
    hosted("0x7f.1"),
    hosted("2130706433"),
    hosted("127.1"),
    hosted("0.0.0.0"),
    hosted("localhost, evil.example"),
    hosted("localhost:80:80"),
    hosted("localhost%00.evil.example"),
    hosted("localhost/"),
    Case("no host at all", REBINDING, BAD_HTTP, sends(get(host=None))),
    Case("no host in HTTP/1.0", REBINDING, WRONG_HOST, sends(get(host=None, version="1.0"))),
    Case("two hosts", REBINDING, BAD_HTTP, sends(get("/v1/models", "Host: evil.example"))),
    Case("host of a proxy", REBINDING, WRONG_HOST, sends(get("/", "X-Forwarded-Host: localhost", host="evil.example"))),
    Case("address as target", REBINDING, (400, "bad_target"), sends(get("http://evil.example/v1/models"))),
    Case("our address as target", PROXY, (400, "bad_target"), sends(get("http://localhost/v1/models", host="evil.example"))),
    from_page("https://evil.example"),
    from_page("null"),
    from_page("file://"),
    from_page("http://localhost.evil.example"),
    from_page("chrome-extension://abcdefghijklmnop"),
    from_page("http://localhost http://evil.example"),
    from_page("http://localhost/path"),
    from_page("localhost"),
    Case(
        "preflight of another origin",
        ORIGIN,
        WRONG_ORIGIN,
        sends(b"OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n"),
    ),
    Case("preflight of our origin", ORIGIN, (405, "method_not_allowed"), preflight),
    Case(
        "form without preflight",
        ORIGIN,
        (415, "unsupported_media_type"),
        sends(post(GOOD).replace(b"application/json", b"text/plain")),
    ),
    Case(
        "encoded form",
        ORIGIN,
        (415, "unsupported_media_type"),
        sends(post(GOOD).replace(b"application/json", b"application/x-www-form-urlencoded")),
    ),
    Case("trace", PROXY, (405, "method_not_allowed"), sends(b"TRACE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")),
    Case("tunnel", PROXY, (400, "bad_target"), sends(b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: localhost\r\n\r\n")),
    Case("options of the server", PROXY, (400, "bad_target"), sends(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n")),
    Case("method override", PROXY, (405, "method_not_allowed"), sends(get(CHAT, "X-HTTP-Method-Override: POST"))),
    Case("deletion", PROXY, (405, "method_not_allowed"), sends(b"DELETE /v1/models/good HTTP/1.1\r\nHost: localhost\r\n\r\n")),
    Case(
        "h2c",
        UPGRADE,
        (400, "upgrade_refused"),
        sends(get("/v1/models", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")),
    ),
    Case(
        "websocket",
        UPGRADE,
        (403, ""),
        sends(
            get(
                "/v1/models",
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            )
        ),
    ),
    Case("another version", UPGRADE, (505, "http_version"), sends(get(version="3.0"))),
    Case("key in the address", KEYS, (400, "key_in_query"), sends(get("/v1/models?api_key=iso_secret"))),
    Case("key in the address, spelt oddly", KEYS, (400, "key_in_query"), sends(get("/v1/models?x&%41pi-Key=iso_secret"))),
]

KEY = "iso_3dGh5JqkN8wEr2Zx7"
OTHER = "iso_Qm4Tz9Lb1Vy6Hc0Ps"
RING = KeyRing([("owner", KEY), ("guest", OTHER)])
NO_KEY = (401, "invalid_api_key")


def keyed(name: str, *headers: str, path: str = "/v1/models") -> Case:
    return Case(name, KEYS, NO_KEY, sends(get(path, *headers)), (("keys", RING),))


async def too_often(opened: Door) -> Outcome:
    """One key asks more often than it may; the normal client has another."""
    outcomes = [(await opened.send(get("/health", f"Authorization: Bearer {OTHER}"))).outcome for _ in range(12)]
    assert outcomes[:5] == [(200, "")] * 5
    return outcomes[-1]


KEY_CASES = [
    keyed("no key"),
    keyed("no key for metrics", path="/metrics"),
    keyed("no key for a trace", path="/mesh/trace/abc?content=1"),
    keyed("no key for health", path="/health"),
    keyed("no key for what is not there", path="/admin"),
    keyed("wrong key", "Authorization: Bearer iso_3dGh5JqkN8wEr2Zx8"),
    keyed("beginning of a key", f"Authorization: Bearer {KEY[:-1]}"),
    keyed("more than a key", f"Authorization: Bearer {KEY}{'x' * 300}"),
    keyed("empty key", "Authorization: Bearer "),
    keyed("key of a strange alphabet", "Authorization: Bearer ï½iso_ÿ"),
    keyed("very long key", f"Authorization: Bearer {'x' * 9000}"),
    keyed("key as a password", "Authorization: Basic aXNvXzNkR2g1SnFrTjh3RXIyWng3Og=="),
    keyed("key by another scheme", f"Authorization: Basic {KEY}"),
    keyed("key without its scheme", f"Authorization: {KEY}"),
    keyed("two keys", f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"),
    keyed("key in a cookie", f"Cookie: key={KEY}"),
    keyed("key in another header", f"X-Api-Key: {KEY}"),
    Case(
        "too many requests with one key",
        KEYS,
        (429, "rate_limited"),
        too_often,
        (("keys", KeyRing([("guest", OTHER)])), ("key_requests_burst", 5), ("key_requests_per_s", 0.001)),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_caller_is_refused_beside_a_normal_client(case: Case, nursery: trio.Nursery) -> None:
    await is_refused_beside_a_normal_client(case, nursery)


@pytest.mark.parametrize("case", KEY_CASES[:-1], ids=str)
async def test_caller_without_a_key_is_refused_beside_one_with(case: Case, nursery: trio.Nursery) -> None:
    await is_refused_beside_a_normal_client(case, nursery, {"authorization": f"Bearer {KEY}"})


async def test_one_key_used_too_often_leaves_the_other_alone(nursery: trio.Nursery) -> None:
    ring = (("keys", RING), ("key_requests_burst", 5), ("key_requests_per_s", 0.001))
    async with door(nursery, **dict(ring)) as opened:
        assert await too_often(opened) == (429, "rate_limited")
        assert (await opened.send(get("/health", f"Authorization: Bearer {KEY}"))).outcome == (200, "")


async def test_refusals_of_keys_differ_in_nothing(nursery: trio.Nursery) -> None:
    async with door(nursery, keys=RING) as opened:
        told = set()
        for header in ("X: y", "Authorization: Bearer", f"Authorization: Bearer {KEY[:-1]}", "Authorization: Basic QQ=="):
            reply = await opened.send(get("/v1/models", header))
            told.add(
                (
                    reply.status,
                    reply.body,
                    *sorted(set(reply.headers.items()) - {("x-request-id", reply.headers["x-request-id"])}),
                )
            )
        assert len({entry[:2] for entry in told}) == 1
        assert all("Bearer" in str(entry) for entry in told)


async def test_every_page_wants_a_key_and_opens_with_one(nursery: trio.Nursery) -> None:
    async with door(nursery, keys=RING) as opened, httpx.AsyncClient(base_url=opened.url) as client:
        for path in ("/v1/models", "/health", "/metrics", "/mesh/status", "/mesh/peers", "/mesh/models"):
            assert (await client.get(path)).status_code == 401, path
            for key in (KEY, OTHER):
                assert (await client.get(path, headers={"authorization": f"bearer {key}"})).status_code == 200, path


async def test_without_keys_any_authorization_is_let_be(nursery: trio.Nursery) -> None:
    async with door(nursery) as opened:
        assert (await opened.send(get("/v1/models", "Authorization: Bearer any"))).status == 200


async def test_every_answer_tells_browsers_to_run_nothing(nursery: trio.Nursery) -> None:
    async with door(nursery) as opened:
        for data in (get(), get(host="evil.example"), get("/metrics"), get("/nowhere")):
            reply = await opened.send(data)
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["content-security-policy"].startswith("default-src 'none'")
            assert "access-control-allow-origin" not in reply.headers
            assert "text/html" not in reply.headers["content-type"]
