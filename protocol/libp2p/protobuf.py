"""The small part of protocol buffers that libp2p's messages need: varint and length-delimited fields, bounded.

Reading walks the fields of one message, which the caller has bounded in size, and yields number and value; fields of the two
fixed widths are skipped, groups are refused, and the count of fields is limited. Nothing recurses: an inner message is a value of
bytes that its owner reads in turn.

Source: protobuf.dev, "Encoding".
Spec: docs/spec/00-conventions.md, section "Protocol buffers".
"""

from collections.abc import Iterator

from protocol.errors import ErrorCode, RemoteProtocolError

UINT64_MAX = (1 << 64) - 1
"""Largest value of a varint field, unitless."""

FIELD_NUMBER_MAX = (1 << 29) - 1
"""Largest field number, unitless (protobuf.dev, "Assigning Field Numbers")."""

_VARINT_BYTES_MAX = 10
"""Longest varint in bytes: 64 bits in groups of seven."""

_VARINT = 0
"""Wire type of a varint."""

_FIXED64 = 1
"""Wire type of eight bytes."""

_LENGTH_DELIMITED = 2
"""Wire type of bytes, text and inner messages."""

_FIXED32 = 5
"""Wire type of four bytes."""

_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


def encode_uint(number: int, value: int) -> bytes:
    """Encode one varint field, 0 <= value <= `UINT64_MAX`."""
    assert 0 <= value <= UINT64_MAX, f"{value} does not fit uint64"
    return _varint(number << 3 | _VARINT) + _varint(value)


def encode_bytes(number: int, value: bytes) -> bytes:
    """Encode one length-delimited field."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def encode_text(number: int, value: str) -> bytes:
    """Encode one text field."""
    return encode_bytes(number, value.encode())


class FieldBudget:
    """Fields that a message and everything inside it may have together."""

    __slots__ = ("left",)

    def __init__(self, fields_max: int) -> None:
        self.left = fields_max


def read_fields(message: bytes, fields_max: int, budget: FieldBudget | None = None) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each varint and length-delimited field, in order, repeated ones repeatedly.

    Args:
        message: one whole message.
        fields_max: most fields of any kind before the message is refused.
        budget: what it shares with other messages; charged for each field.

    Raises:
        RemoteProtocolError: MALFORMED for bytes that are no message; TOO_LARGE for too many fields.
    """
    offset = 0
    fields = 0
    while offset < len(message):
        fields += 1
        if budget is not None:
            budget.left -= 1
        if fields > fields_max or (budget is not None and budget.left < 0):
            raise RemoteProtocolError(ErrorCode.TOO_LARGE, "a message of too many fields")
        tag, offset = _read_varint(message, offset)
        number, wire_type = tag >> 3, tag & 7
        if not 1 <= number <= FIELD_NUMBER_MAX:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"a message has field number {number}")
        if wire_type == _VARINT:
            value, offset = _read_varint(message, offset)
            yield number, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, offset = _read_varint(message, offset)
        elif wire_type in _FIXED_BYTES:
            length = _FIXED_BYTES[wire_type]
        else:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"field {number} has wire type {wire_type}")
        if length > len(message) - offset:
            raise RemoteProtocolError(ErrorCode.MALFORMED, f"field {number} goes past the end of its message")
        if wire_type == _LENGTH_DELIMITED:
            yield number, message[offset : offset + length]
        offset += length


def as_uint(value: int | bytes) -> int:
    """Return the value of a field that must be a varint.

    Raises:
        RemoteProtocolError: MALFORMED, when it is not.
    """
    if isinstance(value, int):
        return value
    raise RemoteProtocolError(ErrorCode.MALFORMED, "a number was expected where bytes stand")


def as_bytes(value: int | bytes) -> bytes:
    """Return the value of a field that must be length-delimited.

    Raises:
        RemoteProtocolError: MALFORMED, when it is not.
    """
    if isinstance(value, bytes):
        return value
    raise RemoteProtocolError(ErrorCode.MALFORMED, "bytes were expected where a number stands")


def as_text(value: int | bytes) -> str:
    """Return the value of a field that must be UTF-8 text.

    Raises:
        RemoteProtocolError: MALFORMED, when it is not.
    """
    try:
        return as_bytes(value).decode()
    except UnicodeDecodeError as fault:
        raise RemoteProtocolError(ErrorCode.MALFORMED, "a text field is not UTF-8") from fault


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(0x80 | (value & 0x7F))
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(message: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_BYTES_MAX):
        if offset + index >= len(message):
            raise RemoteProtocolError(ErrorCode.MALFORMED, "a message ends inside a varint")
        byte = message[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value > UINT64_MAX:
                break
            return value, offset + index + 1
    raise RemoteProtocolError(ErrorCode.MALFORMED, "a varint does not fit 64 bits")
