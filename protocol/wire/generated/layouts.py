"""What reader and writer know about each message; written by scripts/schemas.sh, do not edit."""

from struct import Struct

from protocol.wire.layout import FieldLayout, Kind, MessageLayout, TableLayout

SCHEMAS_HASH = "a9625aeef40c024223f84f36bc19ef2608b63680c8b0a9b1aedd0d1d49e3d8d3"
GENERATED_HASH = "e52c71015fbd80075acbcbbd9bf402132acbaf73eaf99d586f297dee0249b653"

REPLY = MessageLayout(
    "Reply", b"ISIR", 7, (
        TableLayout("Tensor", bytes.fromhex("0c001400040008000c001000"), Struct("<iIBxxxII"), 4, (
            FieldLayout("name", 4, Kind.STRING, 4, Struct("<I"), 256, 0, False, (), 4, 4),
            FieldLayout("dtype", 6, Kind.SCALAR, 1, Struct("<B"), 0, 0, False, (), 8, 4),
            FieldLayout("shape", 8, Kind.SCALARS, 4, Struct("<I"), 8, 0, False, (), 12, 4),
            FieldLayout("data", 10, Kind.BYTES, 4, Struct("<B"), 8388608, 0, True, (), 16, 16),
        )),
        TableLayout("Accepted", bytes.fromhex("060008000400"), Struct("<iI"), 4, (
            FieldLayout("queue_us", 4, Kind.SCALAR, 4, Struct("<I"), 0, 0, False, (), 4, 4),
        )),
        TableLayout("TextDelta", bytes.fromhex("08000c0004000800"), Struct("<iIHxx"), 4, (
            FieldLayout("text", 4, Kind.STRING, 4, Struct("<I"), 8388608, 0, True, (), 4, 4),
            FieldLayout("index", 6, Kind.SCALAR, 2, Struct("<H"), 0, 0, False, (), 8, 4),
        )),
        TableLayout("JsonDelta", bytes.fromhex("060008000400"), Struct("<iI"), 4, (
            FieldLayout("payload", 4, Kind.BYTES, 4, Struct("<B"), 8388608, 0, True, (), 4, 4),
        )),
        TableLayout("TensorsReady", bytes.fromhex("060008000400"), Struct("<iI"), 4, (
            FieldLayout("tensors", 4, Kind.TABLES, 4, Struct("<I"), 32, 0, True, (0,), 4, 4),
        )),
        TableLayout("Finished", bytes.fromhex("10001c00040008000c00100014001800"), Struct("<iIIIIII"), 4, (
            FieldLayout("finish_reasons", 4, Kind.STRINGS, 4, Struct("<I"), 128, 32, False, (), 4, 4),
            FieldLayout("prompt_tokens", 6, Kind.SCALAR, 4, Struct("<I"), 0, 0, False, (), 8, 4),
            FieldLayout("completion_tokens", 8, Kind.SCALAR, 4, Struct("<I"), 0, 0, False, (), 12, 4),
            FieldLayout("queue_us", 10, Kind.SCALAR, 4, Struct("<I"), 0, 0, False, (), 16, 4),
            FieldLayout("service_us", 12, Kind.SCALAR, 4, Struct("<I"), 0, 0, False, (), 20, 4),
            FieldLayout("receipt", 14, Kind.BYTES, 4, Struct("<B"), 1024, 0, False, (), 24, 4),
        )),
        TableLayout("Failed", bytes.fromhex("0a001000040008000c00"), Struct("<iHxxII"), 4, (
            FieldLayout("code", 4, Kind.SCALAR, 2, Struct("<H"), 0, 0, False, (), 4, 4),
            FieldLayout("message", 6, Kind.STRING, 4, Struct("<I"), 1024, 0, False, (), 8, 4),
            FieldLayout("retry_after_ms", 8, Kind.SCALAR, 4, Struct("<I"), 0, 0, False, (), 12, 4),
        )),
        TableLayout("Reply", bytes.fromhex("08000c0004000800"), Struct("<iBxxxI"), 4, (
            FieldLayout("event", 6, Kind.UNION, 4, Struct("<I"), 0, 0, True, (1, 2, 3, 4, 5, 6), 8, 4),
        )),
    ),
)
REQUEST = MessageLayout(
    "Request", b"ISIQ", 1, (
        TableLayout("Tensor", bytes.fromhex("0c001400040008000c001000"), Struct("<iIBxxxII"), 4, (
            FieldLayout("name", 4, Kind.STRING, 4, Struct("<I"), 256, 0, False, (), 4, 4),
            FieldLayout("dtype", 6, Kind.SCALAR, 1, Struct("<B"), 0, 0, False, (), 8, 4),
            FieldLayout("shape", 8, Kind.SCALARS, 4, Struct("<I"), 8, 0, False, (), 12, 4),
            FieldLayout("data", 10, Kind.BYTES, 4, Struct("<B"), 8388608, 0, True, (), 16, 16),
        )),
        TableLayout("Request", bytes.fromhex("1a003000040008000c001000140018001c001d00200028002c00"), Struct("<iIBxxxIIIIB?xxQI?xxx"), 8, (
            FieldLayout("id", 4, Kind.BYTES, 4, Struct("<B"), 16, 0, True, (), 4, 4),
            FieldLayout("feature", 6, Kind.SCALAR, 1, Struct("<B"), 0, 0, False, (), 8, 4),
            FieldLayout("model", 8, Kind.STRING, 4, Struct("<I"), 256, 0, True, (), 12, 4),
            FieldLayout("body", 10, Kind.BYTES, 4, Struct("<B"), 8388608, 0, False, (), 16, 4),
            FieldLayout("tensors", 12, Kind.TABLES, 4, Struct("<I"), 32, 0, False, (0,), 20, 4),
            FieldLayout("deadline_us", 14, Kind.SCALAR, 4, Struct("<I"), 0, 0, False, (), 24, 4),
            FieldLayout("hops_left", 16, Kind.SCALAR, 1, Struct("<B"), 0, 0, False, (), 28, 4),
            FieldLayout("stream", 18, Kind.SCALAR, 1, Struct("<?"), 0, 0, False, (), 29, 4),
            FieldLayout("memory_bytes", 20, Kind.SCALAR, 8, Struct("<Q"), 0, 0, False, (), 32, 8),
            FieldLayout("output_tokens", 22, Kind.SCALAR, 4, Struct("<I"), 0, 0, False, (), 40, 4),
            FieldLayout("receipt", 24, Kind.SCALAR, 1, Struct("<?"), 0, 0, False, (), 44, 4),
        )),
    ),
)
