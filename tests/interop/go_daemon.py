"""go-libp2p as a peer: the daemon p2pd in a process of its own, driven over its control socket.

The control protocol is that of libp2p's daemons: a connection carries one request and one response, protocol buffers behind their
lengths; after the request for a stream the connection is that stream.

Source: libp2p/go-libp2p-daemon specs/CONTROL.md; the program comes with the package hivemind.
"""

import subprocess
import time
from pathlib import Path

import trio
from foreign import ENVIRONMENT, ForeignError

from protocol.encoding import encode_frame
from protocol.identity import Identity, PeerId
from protocol.libp2p import protobuf
from protocol.libp2p.identify import quic_addresses
from protocol.multiaddr import Multiaddr

BINARY = next(ENVIRONMENT.glob("lib/python3*/site-packages/hivemind/hivemind_cli/p2pd"), ENVIRONMENT / "p2pd")

# Request types and field numbers of the control protocol.
_IDENTIFY, _CONNECT, _STREAM_OPEN, _LIST_PEERS = 0, 1, 2, 5
_TYPE, _CONNECT_BODY, _STREAM_OPEN_BODY = 1, 2, 3
_ERROR, _IDENTIFIED, _PEERS = 2, 4, 6
_FIELDS_MAX = 64


class GoDaemon:
    """A running p2pd."""

    name = "go-libp2p"

    def __init__(self, folder: Path, number: int, *options: str) -> None:
        """Start the daemon with a key of our choice.

        Args:
            folder: for its key and its control socket.
            number: of its identity.
            options: more of its command line.
        """
        self.identity = Identity.from_seed(bytes([number]) * 32)
        key, self._socket = folder / "key", folder / "control"
        key.write_bytes(b"\x08\x01\x12\x40" + self.identity.seed + self.identity.public_key)
        command = [
            BINARY,
            "-q",
            "-id",
            key,
            "-listen",
            f"/unix{self._socket}",
            "-hostAddrs",
            "/ip4/127.0.0.1/udp/0/quic-v1",
            *options,
        ]
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + 20
        while not self._socket.exists():
            if self.process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"p2pd did not start: {self.process.poll()}")

    def stop(self) -> None:
        """End the daemon."""
        self.process.terminate()
        self.process.wait(10)

    async def addresses(self) -> tuple[Multiaddr, ...]:
        """Where it listens, with its peer id."""
        answer = await self._ask(protobuf.encode_uint(_TYPE, _IDENTIFY))
        (identified,) = answer[_IDENTIFIED]
        found = [bytes(value) for number, value in protobuf.read_fields(identified, _FIELDS_MAX) if number == 2]
        return tuple(address.with_peer(self.identity.peer_id) for address in quic_addresses(found))

    async def connect(self, address: Multiaddr) -> None:
        """Dial a peer."""
        assert address.peer_id is not None
        body = protobuf.encode_bytes(1, address.peer_id) + protobuf.encode_bytes(2, address.with_peer(None).to_bytes())
        await self._ask(protobuf.encode_uint(_TYPE, _CONNECT) + protobuf.encode_bytes(_CONNECT_BODY, body))

    async def peers(self) -> list[PeerId]:
        """Who is connected."""
        answer = await self._ask(protobuf.encode_uint(_TYPE, _LIST_PEERS))
        infos = [dict(protobuf.read_fields(info, _FIELDS_MAX)) for info in answer.get(_PEERS, [])]
        return [PeerId(bytes(info[1])) for info in infos]

    async def open_stream(self, peer_id: PeerId, protocol: str) -> trio.SocketStream:
        """Open a stream to a connected peer; its bytes and its ends pass through a local socket."""
        body = protobuf.encode_bytes(1, peer_id) + protobuf.encode_text(2, protocol)
        control = await trio.open_unix_socket(self._socket)
        try:
            await self._call(control, protobuf.encode_uint(_TYPE, _STREAM_OPEN) + protobuf.encode_bytes(_STREAM_OPEN_BODY, body))
        except BaseException:
            await trio.aclose_forcefully(control)
            raise
        return control

    async def _ask(self, request: bytes) -> dict[int, list[bytes]]:
        async with await trio.open_unix_socket(self._socket) as control:
            return await self._call(control, request)

    async def _call(self, control: trio.SocketStream, request: bytes) -> dict[int, list[bytes]]:
        """Send one request and read one response, and not a byte more."""
        await control.send_all(encode_frame(request))
        length = shift = 0
        while True:
            (byte,) = await control.receive_some(1)
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        response = b""
        while len(response) < length:
            response += await control.receive_some(length - len(response))
        answer: dict[int, list[bytes]] = {}
        for number, value in protobuf.read_fields(response, _FIELDS_MAX):
            if isinstance(value, bytes):
                answer.setdefault(number, []).append(value)
        if _ERROR in answer:
            raise ForeignError(answer[_ERROR][0][2:].decode())
        return answer
