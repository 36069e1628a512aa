"""py-libp2p as a peer: takes commands as JSON lines on its input, answers in JSON lines. See ../README.md for the commands.

It runs in an environment of its own, since the dependencies of py-libp2p are not ours, and imports nothing of Isochrone.
"""

import hashlib
import json
import logging
import os
import secrets
import sys
import time

import trio
from libp2p import new_host
from libp2p.host.ping import PingService
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.identify_push.identify_push import ID_PUSH, identify_push_handler_for, push_identify_to_peer
from libp2p.peer.envelope import consume_envelope
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.transport.quic.config import QUICTransportConfig
from libp2p.transport.quic.exceptions import QUICStreamClosedError
from libp2p.utils.varint import read_length_prefixed_protobuf
from multiaddr import Multiaddr

PING = "/ipfs/ping/1.0.0"
IDENTIFY = "/ipfs/id/1.0.0"
PING_BYTES = 32
CHUNK_BYTES = 65536
WAIT_S = 20.0
RECEIVE_BUFFER_BYTES = 16 * 1024 * 1024


def tell(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def text(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    told = f"{type(error).__name__}: {error}"
    return told if error.__cause__ is None else f"{told} <- {text(error.__cause__)}"


def pattern(n_bytes):
    """The bytes that both ends of a transfer know: 0 to 250 again and again."""
    return (bytes(range(251)) * (n_bytes // 251 + 1))[:n_bytes]


async def chunks(stream):
    """Read until the peer's end.

    The stream under the library's stream is read: the latter takes an orderly end of both sides for a reset. The former says that
    the peer has ended although it holds bytes still, when they came together with the end between two of its own looks.
    """
    quic = stream.muxed_stream
    while True:
        try:
            chunk = await quic.read()
        except (MuxedStreamEOF, QUICStreamClosedError):
            if quic.is_reset() or not quic._read_closed:
                raise
            if not quic._receive_buffer:
                return
            chunk = bytes(quic._receive_buffer)
            quic._receive_buffer.clear()
        yield chunk


async def digest_of(stream):
    digest, n_bytes = hashlib.sha256(), 0
    async for chunk in chunks(stream):
        digest.update(chunk)
        n_bytes += len(chunk)
    return {"bytes": n_bytes, "sha256": digest.hexdigest()}


async def echo(stream):
    async for chunk in chunks(stream):
        await stream.write(chunk)
    await stream.close_write()


async def count(stream):
    await stream.write(json.dumps(await digest_of(stream)).encode())
    await stream.close_write()


async def reset(stream):
    await stream.read(CHUNK_BYTES)
    await stream.reset()


async def endless(stream):
    try:
        while True:
            await stream.write(pattern(CHUNK_BYTES))
    except Exception as error:  # noqa: BLE001  (whatever the library says is what is asked for)
        tell({"event": "stopped", "error": text(error)})


async def deaf(stream):
    """Asks the writer to stop: the library's stream cannot, the QUIC connection under it can."""
    await stream.read(1)
    quic = stream.muxed_stream
    quic._connection._quic.stop_stream(int(quic.stream_id), 7)
    await quic._connection._transmit()


def contained(handler):
    """Keep the failure of one stream to itself: an exception of a handler would end the whole host."""

    async def handle(stream):
        try:
            await handler(stream)
        except Exception as error:  # noqa: BLE001
            tell({"event": "failed", "error": text(error)})
            await stream.reset()

    return handle


async def nothing(stream):
    await stream.reset()


class Commands:
    """What the test asks for, by name."""

    def __init__(self, host):
        self.host = host
        self.pings = PingService(host)

    async def dial(self, address):
        info = info_from_p2p_addr(Multiaddr(address))
        started = time.perf_counter()
        await self.host.connect(info)
        connected_s = time.perf_counter() - started
        await self.identify(str(info.peer_id))
        return {
            "peer_id": str(info.peer_id),
            "connected_s": connected_s,
            "identified_s": time.perf_counter() - started,
        }

    async def meet(self, peer):
        """Wait until the peer is connected and identified."""
        peer_id = ID.from_string(peer)
        while peer_id not in self.host._identified_peers:  # noqa: ASYNC110  (the library has no event for it)
            await trio.sleep(0.001)

    async def hang_up(self, peer):
        await self.host.disconnect(ID.from_string(peer))

    async def connected(self):
        return {"peers": [str(peer) for peer in self.host.get_connected_peers()]}

    async def ping(self, peer, count):
        async for _ in self.pings.ping_iter(ID.from_string(peer), count):
            pass

    async def round_trips(self, peer, count):
        stream = await self.host.new_stream(ID.from_string(peer), [PING])
        times = []
        for _ in range(count):
            data = secrets.token_bytes(PING_BYTES)
            started = time.perf_counter()
            await stream.write(data)
            echoed = b""
            while len(echoed) < PING_BYTES:
                echoed += await stream.read(PING_BYTES - len(echoed))
            times.append(time.perf_counter() - started)
            assert echoed == data
        await stream.close()
        return {"times_s": times}

    async def identify(self, peer):
        stream = await self.host.new_stream(ID.from_string(peer), [IDENTIFY])
        said = Identify()
        said.ParseFromString(await read_length_prefixed_protobuf(stream, use_varint_format=True))
        await stream.close()
        record = None
        if said.HasField("signedPeerRecord"):
            envelope, signed = consume_envelope(said.signedPeerRecord, "libp2p-peer-record")
            assert str(signed.peer_id) == str(ID.from_pubkey(envelope.public_key)) == peer
            record = {"sequence": signed.seq, "addresses": [str(address) for address in signed.addrs]}
        return {
            "agent": said.agent_version,
            "protocol_version": said.protocol_version,
            "protocols": list(said.protocols),
            "addresses": [str(Multiaddr(address)) for address in said.listen_addrs],
            "observed": str(Multiaddr(said.observed_addr)),
            "record": record,
        }

    async def known(self, peer):
        peer_id, store = ID.from_string(peer), self.host.get_peerstore()
        envelope = store.get_peer_record(peer_id)
        certified = [str(address) for address in envelope.record().addrs] if envelope is not None else []
        addresses = [str(address) for address in store.addrs(peer_id)]
        return {
            "protocols": list(store.get_protocols(peer_id)),
            "addresses": addresses,
            "certified": set(certified) == set(addresses),
        }

    async def serve(self, protocol):
        self.host.set_stream_handler(protocol, nothing)
        for peer in self.host.get_connected_peers():
            await push_identify_to_peer(self.host, peer)

    async def exchange(self, peer, protocol, bytes):  # noqa: A002  (the name of the command's field)
        stream = await self.host.new_stream(ID.from_string(peer), [protocol])
        answer = {}

        async def read():
            answer.update(await digest_of(stream))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await stream.write(pattern(bytes))
            await stream.close_write()
        return answer

    async def ask(self, peer, protocol, bytes):  # noqa: A002
        stream = await self.host.new_stream(ID.from_string(peer), [protocol])
        await stream.write(pattern(bytes))
        await stream.close_write()
        return {"said": b"".join([chunk async for chunk in chunks(stream)]).decode()}

    async def raw(self, peer, hex, end):  # noqa: A002
        stream = await self.host.get_network().new_stream(ID.from_string(peer))
        await stream.write(bytes.fromhex(hex))
        if end:
            await stream.close_write()
        said = b""
        try:
            async for chunk in chunks(stream):
                said += chunk
        except Exception as error:  # noqa: BLE001
            return {"hex": said.hex(), "status": text(error)}
        return {"hex": said.hex(), "status": "closed"}

    async def reset(self, peer, protocol):
        stream = await self.host.new_stream(ID.from_string(peer), [protocol])
        await stream.write(pattern(10))
        await stream.read(1)
        await stream.reset()

    async def stop(self, peer, protocol):
        stream = await self.host.new_stream(ID.from_string(peer), [protocol])
        await stream.write(pattern(10))
        await deaf(stream)

    async def watch(self, peer, protocol):
        stream = await self.host.new_stream(ID.from_string(peer), [protocol])
        await stream.write(pattern(10))
        try:
            return {"ended": "end", **await digest_of(stream)}
        except Exception as error:  # noqa: BLE001
            return {"ended": "error", "error": text(error)}

    async def many(self, peer, protocol, count):
        streams, n_bytes = [], 0
        for _ in range(count):
            stream = await self.host.new_stream(ID.from_string(peer), [protocol])
            await stream.write(pattern(10))
            streams.append(stream)
        for stream in streams:
            await stream.close_write()
        for stream in streams:
            n_bytes += (await digest_of(stream))["bytes"]
        return {"bytes": n_bytes}


async def answer(commands, line):
    asked = json.loads(line)
    number, name = asked.pop("id"), asked.pop("do")
    try:
        with trio.fail_after(WAIT_S):
            told = await getattr(commands, name)(**asked)
    except Exception as error:  # noqa: BLE001  (whatever goes wrong is the answer)
        tell({"id": number, "ok": False, "error": text(error)})
    else:
        tell({"id": number, "ok": True, **(told or {})})


async def main():
    listen = [Multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")]
    # Beyond its receive buffer the library drops the bytes of a stream, so it has to hold the largest transfer.
    config = QUICTransportConfig(enable_draft29=False, MAX_STREAM_RECEIVE_BUFFER=RECEIVE_BUFFER_BYTES)
    host = new_host(listen_addrs=listen, enable_quic=True, quic_transport_opt=config)
    for protocol, handler in (("echo", echo), ("count", count), ("reset", reset), ("endless", endless), ("deaf", deaf)):
        host.set_stream_handler(f"/interop/{protocol}/1", contained(handler))
    host.set_stream_handler(ID_PUSH, identify_push_handler_for(host))
    async with host.run(listen), trio.open_nursery() as nursery:
        tell({"event": "ready", "peer_id": str(host.get_id()), "addresses": [str(address) for address in host.get_addrs()]})
        lines = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
        kept = b""
        commands = Commands(host)
        async for data in lines:
            *whole, kept = (kept + data).split(b"\n")
            for line in whole:
                nursery.start_soon(answer, commands, line)
        nursery.cancel_scope.cancel()


logging.disable(logging.CRITICAL)
trio.run(main)
