"""Wrong behaviours of a node in identity and transport, each by name, for the conformance suite to catch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from aioquic.quic.connection import QuicConnection

import mesh.outbox
import mesh.transport.builtin
import mesh.transport.stream
from mesh.service import Service
from protocol.conduct import Allowance, ConductConfig
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import Identity, certificate, encode_public_key, verify_certificate
from protocol.libp2p.multistream import Listener
from protocol.libp2p.ping import PingConfig, PingListener
from protocol.multiaddr import Multiaddr
from protocol.quic import aioquic_engine
from protocol.quic.connection import Connection
from protocol.quic.doorstep import Doorstep
from protocol.quic.events import Transmit

SOMEBODY = Identity.from_seed(bytes([99]) * 32)
"""Who a broken node says that it is."""


@dataclass(frozen=True)
class Fault:
    """One wrong behaviour.

    Attributes:
        name: what the node does.
        sentences: those that it breaks; at least one must be told as failed, and no other may.
        spoil: makes a node do it, before it starts.
    """

    name: str
    sentences: tuple[str, ...]
    spoil: Callable[[Service, pytest.MonkeyPatch], None]


FAULTS: list[Fault] = []


def fault(name: str, *sentences: str):
    """Register the function below as a way to spoil a node."""

    def register(spoil):
        FAULTS.append(Fault(name, sentences, spoil))
        return spoil

    return register


def endpoint_config(service: Service, **changes: object) -> None:
    endpoint = service.transport.endpoint
    endpoint.config = replace(endpoint.config, **changes)
    endpoint.conduct.config = endpoint.config.conduct
    endpoint._doorstep = Doorstep(endpoint.config, b"secret")


@fault("echoes other bytes than the ping's", "ISO-TRANSPORT-080")
def _(service, patch):
    echo = PingListener.handle_data
    patch.setattr(PingListener, "handle_data", lambda self, data, now: echo(self, data, now)[::-1])


@fault("echoes half a ping", "ISO-TRANSPORT-080")
def _(service, patch):
    patch.setattr(PingListener, "handle_data", lambda self, data, now: data)


@fault("serves any number of ping streams", "ISO-TRANSPORT-081")
def _(service, patch):
    config = service.transport.config
    service.transport.config = replace(config, ping=PingConfig(inbound_streams_max=100))


@fault("identifies itself with another key", "ISO-ID-021", "ISO-ID-001")
def _(service, patch):
    patch.setattr(mesh.transport.builtin, "encode_public_key", lambda _key: encode_public_key(SOMEBODY.public_key))


@fault("shows another peer's record", "ISO-ID-021")
def _(service, patch):
    seal = mesh.transport.builtin.seal_peer_record
    patch.setattr(mesh.transport.builtin, "seal_peer_record", lambda _own, number, addresses: seal(SOMEBODY, number, addresses))


@fault("counts its peer records downwards", "ISO-ID-028")
def _(service, patch):
    numbers = iter(range(10**9, 0, -1))
    service.transport.record_sequence = lambda: next(numbers)


@fault("tells addresses with port 0", "ISO-ID-011")
def _(service, patch):
    encode = mesh.transport.builtin.encode_identify

    def without_ports(said):
        addresses = [Multiaddr.from_bytes(address).with_port(0).to_bytes() for address in said.listen_addresses]
        return encode(replace(said, listen_addresses=tuple(addresses)))

    patch.setattr(mesh.transport.builtin, "encode_identify", without_ports)


@fault("takes certificates that have expired", "ISO-ID-018", "ISO-TRANSPORT-004")
def _(service, patch):
    def lenient(der: bytes):
        wall_s = service.transport.machine.wall()
        for offset_s in (0.0, -5400.0, 5400.0):
            try:
                return verify_certificate(der, wall_s + offset_s)
            except RemoteProtocolError as error:
                if error.code is not ErrorCode.EXPIRED:
                    raise
        raise AssertionError

    service.transport.endpoint._verify = lenient


@fault("does not verify who vouches for a certificate", "ISO-ID-017", "ISO-TRANSPORT-004")
def _(service, patch):
    patch.setattr(certificate, "verify_signature", lambda *_args: True)


@fault("does not verify that a certificate signs itself", "ISO-ID-017", "ISO-TRANSPORT-004")
def _(service, patch):
    patch.setattr(certificate, "_verify_self_signature", lambda _certificate: None)


@fault("calls every bad certificate expired", "ISO-ID-017", "ISO-ID-016", "ISO-ID-002", "ISO-ID-003", "ISO-TRANSPORT-004")
def _(service, patch):
    def confused(der: bytes):
        try:
            return verify_certificate(der, service.transport.machine.wall())
        except RemoteProtocolError as error:
            raise RemoteProtocolError(ErrorCode.EXPIRED, error.detail) from error

    service.transport.endpoint._verify = confused


@fault("refuses a critical libp2p extension", "ISO-ID-019", "ISO-ID-017")
def _(service, patch):
    read = certificate._read_binding

    def strict(extensions: bytes):
        if b"\x01\x01\xff" in extensions:
            raise RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, "critical")
        return read(extensions)

    patch.setattr(certificate, "_read_binding", strict)


@fault("speaks another ALPN protocol too", "ISO-TRANSPORT-002")
def _(service, patch):
    configure = aioquic_engine._configuration

    def configuration(setup, *, is_client):
        made = configure(setup, is_client=is_client)
        made.alpn_protocols = ["libp2p"] if is_client else ["something", "libp2p"]
        return made

    patch.setattr(aioquic_engine, "_configuration", configuration)


@fault("sends a server name when it dials", "ISO-TRANSPORT-003", "ISO-ID-020")
def _(service, patch):
    configure = aioquic_engine._configuration

    def configuration(setup, *, is_client):
        made = configure(setup, is_client=is_client)
        made.server_name = "somebody.example" if is_client else None
        return made

    patch.setattr(aioquic_engine, "_configuration", configuration)


@fault("allows unidirectional streams", "ISO-TRANSPORT-040")
def _(service, patch):
    make = aioquic_engine.GuardedConnection.__init__

    def init(self, *args):
        make(self, *args)
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 4

    patch.setattr(aioquic_engine.GuardedConnection, "__init__", init)


@fault("takes no DATAGRAM frames", "ISO-TRANSPORT-009")
def _(service, patch):
    configure = aioquic_engine._configuration

    def configuration(setup, *, is_client):
        made = configure(setup, is_client=is_client)
        made.max_datagram_frame_size = None
        return made

    patch.setattr(aioquic_engine, "_configuration", configuration)


@fault("believes acknowledgements of what it never sent", "ISO-TRANSPORT-015")
def _(service, patch):
    patch.setattr(aioquic_engine.GuardedConnection, "_handle_ack_frame", QuicConnection._handle_ack_frame)


@fault("answers junk", "ISO-TRANSPORT-010")
def _(service, patch):
    endpoint = service.transport.endpoint
    route = endpoint._route

    def answer(received, now):
        connection = route(received, now)
        if connection is None and received.data:
            endpoint._outputs.append(Transmit(received.local, [(b"who are you?", received.address)]))
        return connection

    endpoint._route = answer


@fault("takes any number of unfinished handshakes", "ISO-TRANSPORT-012")
def _(service, patch):
    unbounded = Allowance(1e9, 1e9)
    endpoint_config(service, handshakes_max=10_000, handshakes_unproven_max=10_000, unproven=unbounded)


@fault("answers no stranger while many handshakes are unfinished", "ISO-TRANSPORT-017")
def _(service, patch):
    patch.setattr(service.transport.endpoint._doorstep._retry, "packet", lambda *_: None)


@fault("bans nobody", "ISO-TRANSPORT-026", "ISO-TRANSPORT-027")
def _(service, patch):
    patch.setattr(service.transport.endpoint.conduct, "is_banned", lambda *_: False)


@fault("waits for a handshake for ever", "ISO-TRANSPORT-008")
def _(service, patch):
    endpoint_config(service, handshake_timeout_s=1000.0)


@fault("lets a peer open streams without end", "ISO-TRANSPORT-043")
def _(service, patch):
    endpoint_config(service, conduct=ConductConfig(streams=Allowance(1e9, 1e9)))


@fault("keeps both connections of one peer", "ISO-TRANSPORT-020", "ISO-TRANSPORT-021", "ISO-TRANSPORT-025", "ISO-ID-004")
def _(service, patch):
    service.transport._retire = lambda _connection, _successor: None


@fault("closes a duplicate at once", "ISO-TRANSPORT-020", "ISO-TRANSPORT-021")
def _(service, patch):
    service.transport.config = replace(service.transport.config, retire_min_s=0.0, retire_max_s=0.05)


@fault("lets the greater peer id win", "ISO-TRANSPORT-020", "ISO-TRANSPORT-025", "ISO-ID-004")
def _(service, patch):
    keeps = service.transport._keeps_older

    def wrong(older, newer):
        return older.is_dialled != newer.is_dialled and not keeps(older, newer)

    service.transport._keeps_older = wrong


@fault("does not see that a peer was started again", "ISO-TRANSPORT-025")
def _(service, patch):
    established = service.transport._established
    service.transport._established = lambda output: established(replace(output, incarnation=b"the same"))


@fault("does not follow a client that moves", "ISO-TRANSPORT-024")
def _(service, patch):
    receive = Connection.receive

    def only_from_the_first(self, datagrams, address, now, received_at):
        if address == self.address:
            receive(self, datagrams, address, now, received_at)

    patch.setattr(Connection, "receive", only_from_the_first)


@fault("speaks before the header", "ISO-TRANSPORT-050")
def _(service, patch):
    class Hasty(Listener):
        def data_to_send(self):
            data = super().data_to_send()
            return encode_frame(b"hello\n") + data if b"/multistream" in data else data

    patch.setattr(mesh.transport.stream, "Listener", Hasty)


@fault("forgets what comes behind the proposal", "ISO-TRANSPORT-051")
def _(service, patch):
    class Forgetful(Listener):
        def take_rest(self):
            return b""

    patch.setattr(mesh.transport.stream, "Listener", Forgetful)


@fault("refuses proposals without end", "ISO-TRANSPORT-052")
def _(service, patch):
    class Patient(Listener):
        def receive_data(self, data):
            self._refused = 0
            self._config = replace(self._config, proposals_max=1000)
            return super().receive_data(data)

    patch.setattr(mesh.transport.stream, "Listener", Patient)


@fault("refuses sixteen proposals", "ISO-TRANSPORT-052")
def _(service, patch):
    class Impatient(Listener):
        def receive_data(self, data):
            self._config = replace(self._config, proposals_max=4)
            return super().receive_data(data)

    patch.setattr(mesh.transport.stream, "Listener", Impatient)


@fault("ends the connection for a fault of one stream", "ISO-CONV-011", "ISO-TRANSPORT-052", "ISO-CONV-004")
def _(service, patch):
    reset = mesh.transport.stream.Stream.reset

    def drastic(self, code=ErrorCode.CANCELLED):
        reset(self, code)
        if code == ErrorCode.MALFORMED:
            transport = service.transport
            transport.endpoint.close(self.connection.handle, ErrorCode.MALFORMED, "", transport.now())

    patch.setattr(mesh.transport.stream.Stream, "reset", drastic)


@fault("resets with codes of its own", "ISO-CONV-012", "ISO-TRANSPORT-081")
def _(service, patch):
    reset = mesh.transport.stream.Stream.reset
    patch.setattr(mesh.transport.stream.Stream, "reset", lambda self, _code=0: reset(self, 0x666))


@fault("ends the connection when a protocol is not known", "ISO-CONV-001", "ISO-TRANSPORT-050", "ISO-TRANSPORT-052")
def _(service, patch):
    class Strict(Listener):
        def receive_data(self, data):
            agreed = super().receive_data(data)
            if self._refused:
                raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "")
            return agreed

    patch.setattr(mesh.transport.stream, "Listener", Strict)


@fault("waits for the bytes of a frame over its limit", "ISO-CONV-002", "ISO-CONV-005", "ISO-GOS-001")
def _(service, patch):
    patch.setattr(mesh.outbox, "FrameDecoder", lambda _limit: FrameDecoder(1 << 62))


@fault("takes a stream that ends inside a frame for ended", "ISO-CONV-006")
def _(service, patch):
    class Careless(FrameDecoder):
        def finish(self):
            pass

    patch.setattr(mesh.outbox, "FrameDecoder", Careless)


@fault("connects to whoever answers", "ISO-ID-013", "ISO-TRANSPORT-005", "ISO-TRANSPORT-030", "ISO-REC-015", "ISO-MEMBER-002")
def _(service, patch):
    dial = service.transport.dial
    service.transport.dial = lambda address, *, afresh=False: dial(address.with_peer(None), afresh=afresh)


@fault(
    "believes whatever a peer pushes",
    *("ISO-ID-023", "ISO-ID-024", "ISO-ID-026", "ISO-ID-027", "ISO-ID-030", "ISO-CONV-007", "ISO-CONV-008", "ISO-CONV-009"),
)
def _(service, patch):
    async def swallow(stream, transport):
        while await stream.receive_some():
            pass

    patch.setattr(mesh.transport.builtin, "serve_identify_push", swallow)


@fault(
    "refuses a description without a key", "ISO-ID-032", "ISO-ID-033", "ISO-ID-030", "ISO-CONV-007", "ISO-CONV-008", "ISO-ID-023"
)
def _(service, patch):
    read = mesh.transport.builtin._read_identify

    async def strict(stream):
        said = await read(stream)
        if said.public_key is None:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "no key")
        return said

    patch.setattr(mesh.transport.builtin, "_read_identify", strict)


@fault("names its protocol version without a slash", "ISO-ID-033")
def _(service, patch):
    service.transport.config = replace(service.transport.config, protocol_version="isochrone/1")
