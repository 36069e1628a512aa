"""The harness of the node's own socket: frames as a program sends them, each a question or a request."""

from fuzz_oracle import Harness
from fuzz_seeds import of

from mesh.local.frames import FrameReader
from mesh.local.questions import MODELS, ROUTE, is_question, read_question
from protocol.encoding import encode_frame
from protocol.errors import RemoteProtocolError
from protocol.wire.inference import decode_request

PIECE_BYTES = 1350
"""Most bytes that come at once here."""


def local_door(_state: None, data: bytes) -> object:
    """Receive frames where the reader says, and read their messages."""
    reader, at, read = FrameReader(1 << 16), 0, []
    while at < len(data):
        room = reader.room()
        n_bytes = min(len(room), len(data) - at, PIECE_BYTES)
        room[:n_bytes] = data[at : at + n_bytes]
        at += n_bytes
        message = reader.took(n_bytes)
        if message is not None:
            # What was answered with a refusal is followed by the next message all the same.
            try:
                read.append(read_question(message) if is_question(message) else decode_request(message))
            except RemoteProtocolError as error:
                read.append(error.code)
            if len(read) >= 64:
                break
    return read


def seeds() -> list[bytes]:
    """Requests of the vectors and questions, as frames."""
    requests = [encode_frame(message) for message in of("inference", "requests", field="message")()]
    questions = [encode_frame(MODELS), encode_frame(ROUTE + bytes(16)), encode_frame(b"?else")]
    return [*requests, *questions, b"".join(questions)]


HARNESS = Harness(
    "local-door",
    local_door,
    (RemoteProtocolError,),
    seeds,
    ("mesh.local.frames:FrameReader.took", "mesh.local.questions:read_question"),
)
