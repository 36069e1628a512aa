"""Where engines may be: the name that the owner wrote leads to them, and not to where machines tell their secrets."""

import httpcore
import pytest
import trio
from engine_server import OpenAIServer, chat, collect

from mesh.engines.openai import OpenAIEngine
from mesh.engines.reach import ReachBackend, may_hold_engine
from protocol.inference import Finished


class Resolver(trio.abc.HostnameResolver):
    """Answers each question with the next of its answers, as a name does whose owner wants it to."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[object] = []

    async def getaddrinfo(self, host, port, *_wished, **_also):
        self.asked.append(host)
        address = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        version = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
        return [(version, trio.socket.SOCK_STREAM, 6, "", (address, port))]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


class Recorder(httpcore.AsyncNetworkBackend):
    """Notes what would be connected to, and refuses."""

    def __init__(self) -> None:
        self.hosts: list[str] = []

    async def connect_tcp(self, host, port, *_wished, **_also):
        self.hosts.append(host)
        raise httpcore.ConnectError("recorded")


SECRET = [
    "169.254.169.254", "169.254.170.2", "169.254.1.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0",
    "224.0.0.1", "255.255.255.255", "::", "fe80::1", "fe80::1%lo", "fd00:ec2::254", "ff02::1",
    "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
]  # fmt: skip


@pytest.mark.parametrize("address", SECRET)
async def test_name_that_leads_to_secrets_is_not_followed(address: str) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(address))
    recorder = Recorder()
    with pytest.raises(httpcore.ConnectError, match=r"gpu\.example leads to .*write that address itself"):
        await ReachBackend(recorder).connect_tcp("gpu.example", 80, timeout=1.0)
    assert recorder.hosts == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.2", "203.0.113.7", "fd12:3456::1", "2001:db8::1"])
def test_engines_live_on_loopback_and_in_networks_of_every_kind(address: str) -> None:
    assert may_hold_engine(address)


@pytest.mark.parametrize("literal", ["169.254.169.254", "127.0.0.1", "fe80::1"])
async def test_address_that_the_owner_wrote_itself_is_used(literal: str) -> None:
    recorder = Recorder()
    with pytest.raises(httpcore.ConnectError, match="recorded"):
        await ReachBackend(recorder).connect_tcp(literal, 80)
    assert recorder.hosts == [literal]


@pytest.mark.parametrize("name", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376"])
async def test_other_spellings_of_an_address_are_names(name: str) -> None:
    recorder = Recorder()
    with pytest.raises(httpcore.ConnectError, match="leads to"):
        await ReachBackend(recorder).connect_tcp(name, 80)
    assert recorder.hosts == []


async def test_name_is_resolved_once_for_a_connection_and_what_was_checked_is_connected_to() -> None:
    resolver = Resolver("203.0.113.7", "169.254.169.254")
    trio.socket.set_custom_hostname_resolver(resolver)
    recorder = Recorder()
    with pytest.raises(httpcore.ConnectError, match="recorded"):
        await ReachBackend(recorder).connect_tcp("gpu.example", 80)
    assert recorder.hosts == ["203.0.113.7"]
    assert resolver.asked == [b"gpu.example"]


async def test_engine_behind_a_name_answers_until_the_name_leads_elsewhere(nursery: trio.Nursery) -> None:
    server = OpenAIServer()
    await server.serve(nursery)
    port = server.url.rpartition(":")[2]
    resolver = Resolver("127.0.0.1")
    trio.socket.set_custom_hostname_resolver(resolver)
    engine = OpenAIEngine(f"http://gpu.example:{port}")
    await engine.start()
    assert isinstance((await collect(engine, chat("good")))[-1], Finished)
    await engine.aclose()
    resolver.answers = ["169.254.169.254"]
    rebound = OpenAIEngine(f"http://gpu.example:{port}")
    await rebound.start()
    assert rebound.offers() == ()
    assert "169.254.169.254" in rebound.problem
    await rebound.aclose()


async def test_name_without_addresses_is_an_engine_that_does_not_answer() -> None:
    engine = OpenAIEngine("http://engine.invalid:1")
    await engine.start()
    assert engine.offers() == ()
    assert "engine.invalid" in engine.problem
    await engine.aclose()


def test_private_name_of_httpx_is_what_it_was() -> None:
    engine = OpenAIEngine("http://gpu.example")
    assert isinstance(engine._client._transport._pool._network_backend, ReachBackend)  # type: ignore[attr-defined]
