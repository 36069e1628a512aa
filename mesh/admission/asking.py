"""Asking an issuer for a certificate: one frame there, one frame back.

Spec: docs/spec/09-admission.md, section "Joining".
"""

from mesh.transport import Connection, Stream
from protocol.admission import (
    JOIN_FRAME_BYTES_MAX,
    JOIN_PROTOCOL,
    JoinAnswer,
    JoinRequest,
    decode_join_answer,
    encode_join_request,
)
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError

JOIN_TIMEOUT_S = 15.0
"""Longest wait in seconds for an issuer's answer: its disk has to take it before it is given."""


async def ask_to_join(connection: Connection, request: JoinRequest) -> JoinAnswer:
    """Ask an issuer for a certificate.

    Raises:
        StreamReset: it does not answer such requests.
        ConnectionLost: the connection is gone.
        RemoteProtocolError: its answer cannot be read.
    """
    async with await connection.open_stream(JOIN_PROTOCOL) as stream:
        await stream.send_all(encode_frame(encode_join_request(request)), end=True)
        return decode_join_answer(await one_frame(stream))


async def one_frame(stream: Stream) -> bytes:
    """The one frame that a peer sends.

    Raises:
        RemoteProtocolError: TOO_LARGE, or MALFORMED where the stream ends before.
    """
    decoder = FrameDecoder(JOIN_FRAME_BYTES_MAX)
    while (frame := decoder.next_frame()) is None:
        chunk = await stream.receive_some()
        if not chunk:
            raise RemoteProtocolError(ErrorCode.MALFORMED, "the stream ended without a frame")
        decoder.receive(chunk)
    return frame
