"""What a handshake costs in processor time, both ends together, beside aioquic with nothing round it.

Sockets and event loops are left out on both sides: datagrams are handed from one end to the other in one process. Ours is the
endpoint of a node: both ends show a libp2p certificate and prove the key behind it, the extension's signature is checked, and the
peer is charged. aioquic bare asks no client for a certificate, for it cannot: only the server shows one, a usual one of
ECDSA P-256, which the client checks against the authority that it trusts. It proves half as much.
"""

import os
import statistics
import time
from functools import partial

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks.grpc_echo import make_certificate as make_server_certificate
from benchmarks.harness import Row, alternate, report
from protocol.errors import ErrorCode
from protocol.identity import Identity, make_certificate, verify_certificate
from protocol.quic import choose_engine
from protocol.quic.endpoint import Endpoint
from protocol.quic.events import ConnectionEstablished, ConnectionHandle, Transmit
from protocol.quic.seam import QuicEngine

RUNS = 7
HANDSHAKES = 30
"""Of one run; two more warm up."""
GOAL = 1.2
ROUNDS_MAX = 10
"""Turns of both ends after which a handshake counts as failed."""
CLIENT, SERVER = ("192.0.2.1", 4001), ("192.0.2.2", 4001)


class Ends:
    """Two endpoints of ours, one of which dials the other."""

    def __init__(self, engine: QuicEngine) -> None:
        self._wall_s, self._now = time.time(), 1000.0
        self._client, self._server = self._end(engine), self._end(engine)

    def cpu_s(self) -> list[float]:
        """Seconds of a core for each of the handshakes of a run."""
        return [self._once() for _ in range(HANDSHAKES + 2)][2:]

    def _end(self, engine: QuicEngine) -> Endpoint:
        identity = Identity.from_seed(os.urandom(32))
        certificate = make_certificate(identity, os.urandom(64), self._wall_s)
        return Endpoint(engine, certificate, identity.peer_id, lambda der: verify_certificate(der, self._wall_s))

    def _once(self) -> float:
        self._now += 10.0  # a listener that strangers do not hurry
        for end in (self._client, self._server):
            end.handle_timer(self._now)
        self._exchange(self._client, self._server)
        began = time.process_time()
        handle = self._client.connect(SERVER, None, self._now)
        established: dict[Endpoint, ConnectionHandle] = {}
        for _ in range(ROUNDS_MAX):
            established |= self._exchange(self._client, self._server)
            if len(established) == 2:
                break
        took = time.process_time() - began
        assert len(established) == 2
        self._client.close(handle, ErrorCode.CANCELLED, "measured", self._now)
        self._exchange(self._client, self._server)
        return took

    def _exchange(self, *ends: Endpoint) -> dict[Endpoint, ConnectionHandle]:
        """Lets both say what they have to say, once; who is established now."""
        established = {}
        for end in ends:
            other, address = (self._server, CLIENT) if end is self._client else (self._client, SERVER)
            end.flush(self._now)
            while (output := end.next_output()) is not None:
                if isinstance(output, Transmit):
                    for data, _ in output.datagrams:
                        other.handle_datagram(data, address, self._now)
                elif isinstance(output, ConnectionEstablished):
                    established[end] = output.connection
        return established


class Bare:
    """aioquic's own client and server."""

    def __init__(self) -> None:
        key_pem, certificate_pem = make_server_certificate()
        self._server = QuicConfiguration(is_client=False, alpn_protocols=["bench"])
        self._server.certificate = x509.load_pem_x509_certificate(certificate_pem)
        self._server.private_key = load_pem_private_key(key_pem, None)  # type: ignore[assignment]
        self._client = QuicConfiguration(
            is_client=True, alpn_protocols=["bench"], server_name="localhost", cadata=certificate_pem
        )

    def cpu_s(self) -> list[float]:
        """Seconds of a core for each of the handshakes of a run."""
        return [self._once() for _ in range(HANDSHAKES + 2)][2:]

    def _once(self) -> float:
        now = 1000.0
        began = time.process_time()
        client = QuicConnection(configuration=self._client)
        client.connect(SERVER, now)
        server, done = None, set()
        for _ in range(ROUNDS_MAX):
            for data, _address in client.datagrams_to_send(now):
                if server is None:
                    cid = client.original_destination_connection_id
                    server = QuicConnection(configuration=self._server, original_destination_connection_id=cid)
                server.receive_datagram(data, CLIENT, now)
            assert server is not None
            for data, _address in server.datagrams_to_send(now):
                client.receive_datagram(data, SERVER, now)
            for name, side in (("client", client), ("server", server)):
                while (event := side.next_event()) is not None:
                    if isinstance(event, HandshakeCompleted):
                        done.add(name)
            if len(done) == 2:
                break
        took = time.process_time() - began
        assert len(done) == 2
        return took


def main() -> None:
    """Runs the benchmark."""
    ends = [Ends(choose_engine(name)) for name in ("qh3", "aioquic")]
    *ours, bare = alternate(RUNS, *(end.cpu_s for end in ends), partial(Bare().cpu_s))
    theirs = statistics.median(bare) * 1e6
    rows = [
        Row(f"handshake, mutual, both ends, {name}: CPU", statistics.median(taken) * 1e6, "us", "aioquic bare", theirs, GOAL)
        for name, taken in zip(("qh3", "aioquic"), ours, strict=True)
    ]
    report("handshake", "Processor time of a handshake, without sockets", rows, ("qh3", "aioquic", "cryptography"))


if __name__ == "__main__":
    main()
