"""A peer that breaks the rules: aioquic without our guards, with frames and certificates of its own making."""

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from quic_pair import DIALLER, LISTENER, WALL_S, certificate_of, engine_of

from protocol.identity import Identity, verify_certificate
from protocol.quic.endpoint import Endpoint
from protocol.quic.events import EndpointConfig, Transmit

TYPES = {tls.Epoch.INITIAL: QuicPacketType.INITIAL, tls.Epoch.ONE_RTT: QuicPacketType.ONE_RTT}


class Hostile:
    """An attacker as client, and a node of ours as its victim."""

    def __init__(self, engine, *, certificate="good", alpn="libp2p", config=None, cpu_clock=None, **settings):
        self.now = 50.0
        self.identity = Identity.from_seed(bytes([1]) * 32)
        self.victim_identity = Identity.from_seed(bytes([2]) * 32)
        self.victim = Endpoint(
            engine_of(engine),
            certificate_of(self.victim_identity),
            self.victim_identity.peer_id,
            lambda der: verify_certificate(der, WALL_S),
            config or EndpointConfig(),
            cpu_clock,
        )
        self.outputs = []
        self.wire = []
        configuration = QuicConfiguration(
            alpn_protocols=[alpn], is_client=True, verify_mode=0, max_datagram_frame_size=65535, **settings
        )
        if certificate == "good":
            good = certificate_of(self.identity)
            configuration.certificate, configuration.private_key = good.certificate, good.private_key
        elif certificate is not None:
            configuration.certificate, configuration.private_key = certificate[0], certificate[1]
            configuration.certificate_chain = list(certificate[2:])
        self.client = QuicConnection(configuration=configuration)
        self.client.connect(LISTENER, self.now)

    def exchange(self, rounds=30):
        """Let both sides talk until nothing more is said."""
        for _ in range(rounds):
            sent = [data for data, _ in self.client.datagrams_to_send(self.now)]
            for data in sent:
                self.victim.handle_datagram(data, DIALLER, self.now)
            answered = self.drain()
            for data in answered:
                self.client.receive_datagram(data, LISTENER, self.now)
            self.now += 0.01
            if not sent and not answered:
                timers = [timer for timer in (self.client.get_timer(), self.victim.next_timer()) if timer is not None]
                if not timers or min(timers) > self.now + 0.2:
                    return
                self.now = max(self.now, min(timers))
                self.client.handle_timer(self.now + 1e-6)
                self.victim.handle_timer(self.now)

    def drain(self):
        sent = []
        busy = True
        while busy:
            busy = False
            self.victim.flush(self.now)
            while (output := self.victim.next_output()) is not None:
                busy = True
                if isinstance(output, Transmit):
                    sent += [data for data, _ in output.datagrams]
                else:
                    self.outputs.append(output)
        return sent

    def of(self, kind):
        return [output for output in self.outputs if isinstance(output, kind)]

    def packet(self, frames: bytes, epoch=tls.Epoch.ONE_RTT) -> bytes:
        """Protect frames of any content as a packet of the attacker's connection."""
        client = self.client
        builder = QuicPacketBuilder(
            host_cid=client.host_cid,
            is_client=True,
            max_datagram_size=1400,
            packet_number=client._packet_number,
            peer_cid=client._peer_cid.cid,
            peer_token=b"",
            quic_logger=None,
            spin_bit=False,
            version=client._version,
        )
        builder.start_packet(TYPES[epoch], client._cryptos[epoch])
        buf = builder.start_frame(frames[0], capacity=len(frames))
        buf.push_bytes(frames[1:])
        datagrams, _ = builder.flush()
        client._packet_number = builder.packet_number
        (data,) = datagrams
        return data.ljust(1200, b"\x00") if epoch is tls.Epoch.INITIAL else data

    def attack(self, frames: bytes, epoch=tls.Epoch.ONE_RTT):
        """Send one packet of frames; what the victim answers is thrown away."""
        self.victim.handle_datagram(self.packet(frames, epoch), DIALLER, self.now)
        self.now += 0.001
        self.drain()


def varint(value: int) -> bytes:
    for prefix, size in ((0, 1), (1, 2), (2, 4), (3, 8)):
        if value < 1 << (8 * size - 2):
            return (value | prefix << (8 * size - 2)).to_bytes(size, "big")
    raise AssertionError(value)


def crypto_frame(offset: int, data: bytes) -> bytes:
    return b"\x06" + varint(offset) + varint(len(data)) + data


def stream_frame(stream_id: int, offset: int, data: bytes) -> bytes:
    return b"\x0e" + varint(stream_id) + varint(offset) + varint(len(data)) + data


def ack_frame(largest: int) -> bytes:
    return b"\x02" + varint(largest) + varint(0) + varint(0) + varint(0)


__all__ = ["Hostile", "ack_frame", "crypto_frame", "stream_frame", "varint"]
