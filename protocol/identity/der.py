"""A reader for the few DER structures that a certificate check needs.

It walks elements of definite length inside bytes that are already bounded, copies nothing twice and never recurses.

Source: ITU-T X.690 section 10 (DER).
"""

from protocol.errors import ErrorCode, RemoteProtocolError

SEQUENCE = 0x30
"""Tag of SEQUENCE, constructed (X.690 section 8.9)."""

OCTET_STRING = 0x04
"""Tag of OCTET STRING, primitive (X.690 section 8.7)."""

OBJECT_IDENTIFIER = 0x06
"""Tag of OBJECT IDENTIFIER (X.690 section 8.19)."""

BOOLEAN = 0x01
"""Tag of BOOLEAN (X.690 section 8.2)."""

ELEMENTS_MAX = 64
"""Most elements of one structure: a certificate body has 10, and no certificate of a peer needs 64 extensions."""

_LENGTH_BYTES_MAX = 2
"""Most bytes of a long-form length: two reach 65535, past every size that is allowed here."""


def read_elements(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Split `data` into its elements.

    Returns:
        For each element its tag, its content, and the whole element with tag and length.

    Raises:
        RemoteProtocolError: BAD_CERTIFICATE, for bytes that are not a run of at most `ELEMENTS_MAX` DER elements.
    """
    elements: list[tuple[int, bytes, bytes]] = []
    offset = 0
    while offset < len(data):
        if len(elements) == ELEMENTS_MAX:
            raise RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, f"a structure of more than {ELEMENTS_MAX} elements")
        start, end = _content_range(data, offset)
        elements.append((data[offset], data[start:end], data[offset:end]))
        offset = end
    return elements


def read_sequence(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """Return the elements of the one SEQUENCE that `data` consists of.

    Raises:
        RemoteProtocolError: BAD_CERTIFICATE, for anything else.
    """
    elements = read_elements(data)
    if len(elements) != 1 or elements[0][0] != SEQUENCE:
        raise RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, "not a single DER sequence")
    return read_elements(elements[0][1])


def encode_element(tag: int, content: bytes) -> bytes:
    """Put a tag and a length before `content`, which has less than 65536 bytes."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    length_bytes = length.to_bytes((length.bit_length() + 7) // 8, "big")
    assert len(length_bytes) <= _LENGTH_BYTES_MAX, f"an element of {length} bytes"
    return bytes((tag, 0x80 | len(length_bytes))) + length_bytes + content


def _content_range(data: bytes, offset: int) -> tuple[int, int]:
    start = offset + 2
    if start > len(data) or data[offset] & 0x1F == 0x1F:
        raise RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, "a DER element has no readable tag and length")
    length = data[offset + 1]
    if length >= 0x80:
        length_bytes = data[start : start + (length & 0x7F)]
        start += length & 0x7F
        if not 0 < len(length_bytes) == length & 0x7F <= _LENGTH_BYTES_MAX:
            raise RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, "a DER length is indefinite, cut off or too large")
        length = int.from_bytes(length_bytes, "big")
        if length < 0x80 or length_bytes[0] == 0:
            raise RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, "a DER length is not in its shortest form")
    if start + length > len(data):
        raise RemoteProtocolError(ErrorCode.BAD_CERTIFICATE, "a DER element is cut off")
    return start, start + length
