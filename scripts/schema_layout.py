"""Writes protocol/wire/generated/layouts.py, what reader and writer know about each FlatBuffers message, from protocol/schemas.

A small strict parser reads the part of the schema language that the schemas use and refuses everything else, so that nothing is
skipped in silence. Slots are numbered as flatc numbers them: in order of declaration, with two for a union (its type, then its
value). The hash of the schemas and of this file goes into the output; a test compares it, so that stale code is noticed without
flatc.

Source: FlatBuffers, "Writing a schema" and "FlatBuffer internals".
"""

import hashlib
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCHEMAS = ROOT / "protocol" / "schemas"
OUTPUT = ROOT / "protocol" / "wire" / "generated" / "layouts.py"

# Inline size in bytes and `struct` format of each scalar the schemas may use. A table is aligned to the widest of its scalars and
# to its offset to the vtable.
SCALARS = {
    "bool": (1, "?"),
    "ubyte": (1, "B"),
    "byte": (1, "b"),
    "ushort": (2, "H"),
    "short": (2, "h"),
    "uint": (4, "I"),
    "int": (4, "i"),
    "ulong": (8, "Q"),
    "long": (8, "q"),
}

TOKEN = re.compile(r'\s+|//[^\n]*|(?P<token>"[^"]*"|[A-Za-z_][A-Za-z0-9_.]*|-?[0-9]+|[{}()\[\]:;,=])')


class SchemaError(Exception):
    """A schema uses something this parser does not know, or leaves a bound out."""


@dataclass
class Field:
    """One declared field."""

    name: str
    type: str
    vector: bool
    attributes: dict[str, str]


@dataclass
class Module:
    """What one .fbs file declares, with its includes."""

    enums: set[str] = field(default_factory=set)
    unions: dict[str, list[str]] = field(default_factory=dict)
    tables: dict[str, list[Field]] = field(default_factory=dict)
    root: str = ""
    identifier: str = ""


class Parser:
    """A recursive-descent parser over the tokens of one file."""

    def __init__(self, path: Path, module: Module) -> None:
        self.path = path
        self.module = module
        text = path.read_text()
        self.tokens: list[str] = []
        position = 0
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None:
                raise SchemaError(f"{path.name}: cannot read {text[position : position + 20]!r}")
            if match["token"]:
                self.tokens.append(match["token"])
            position = match.end()
        self.tokens.reverse()

    def take(self, expected: str = "") -> str:
        """Return the next token, which must be `expected` where that is given."""
        token = self.tokens.pop() if self.tokens else ""
        if not token or (expected and token != expected):
            raise SchemaError(f"{self.path.name}: {token!r} where {expected or 'something'!r} was expected")
        return token

    def accept(self, wanted: str) -> bool:
        """Take the next token if it is `wanted`."""
        if self.tokens and self.tokens[-1] == wanted:
            self.tokens.pop()
            return True
        return False

    def parse(self) -> None:
        """Read the whole file into the module."""
        while self.tokens:
            match self.take():
                case "include":
                    Parser(self.path.parent / self.take().strip('"'), self.module).parse()
                    self.take(";")
                case "namespace" | "attribute":
                    self.take()
                    self.take(";")
                case "root_type":
                    self.module.root = self.take()
                    self.take(";")
                case "file_identifier":
                    self.module.identifier = self.take().strip('"')
                    self.take(";")
                case "enum":
                    self.parse_enum()
                case "union":
                    self.parse_union()
                case "table":
                    self.parse_table()
                case other:
                    raise SchemaError(f"{self.path.name}: {other!r} is not supported")

    def parse_enum(self) -> None:
        """Read an enum; only unsigned bytes that start at zero are allowed, so that the default is 0."""
        self.module.enums.add(self.take())
        for expected in (":", "ubyte", "{"):
            self.take(expected)
        while not self.accept("}"):
            self.take()
            self.take("=")
            self.take()
            self.accept(",")

    def parse_union(self) -> None:
        """Read a union of tables."""
        members = self.module.unions.setdefault(self.take(), [])
        self.take("{")
        while not self.accept("}"):
            members.append(self.take())
            self.accept(",")

    def parse_table(self) -> None:
        """Read a table; default values are not supported."""
        fields = self.module.tables.setdefault(self.take(), [])
        self.take("{")
        while not self.accept("}"):
            name = self.take()
            self.take(":")
            vector = self.accept("[")
            kind = self.take()
            if vector:
                self.take("]")
            attributes: dict[str, str] = {}
            if self.accept("("):
                while not self.accept(")"):
                    attribute = self.take()
                    attributes[attribute] = self.take().strip('"') if self.accept(":") else ""
                    self.accept(",")
            self.take(";")
            fields.append(Field(name, kind, vector, attributes))


def scalar_of(declared: Field, module: Module) -> tuple[int, str] | None:
    """Return size and format of the field's type, or None where it is no scalar."""
    return SCALARS["ubyte"] if declared.type in module.enums else SCALARS.get(declared.type)


def layout_of(declared: Field, slot: int, place: int, module: Module, numbers: dict[str, int]) -> str:
    """Return the source text of one `FieldLayout`, whose inline part the writer puts at `place`."""
    known = {"required", "force_align", "max_length", "max_item_length"}
    if unknown := set(declared.attributes) - known:
        raise SchemaError(f"{declared.name}: attributes {sorted(unknown)} are not supported")
    scalar = scalar_of(declared, module)
    size, code, members = 4, "I", "()"
    if declared.type == "string":
        kind = "STRINGS" if declared.vector else "STRING"
    elif scalar is not None:
        size, code = scalar
        kind = "SCALAR" if not declared.vector else "BYTES" if code == "B" else "SCALARS"
    elif declared.type in module.tables:
        kind = "TABLES" if declared.vector else "TABLE"
        members = f"({numbers[declared.type]},)"
    elif declared.type in module.unions and not declared.vector:
        kind = "UNION"
        members = repr(tuple(numbers[name] for name in module.unions[declared.type]))
    else:
        raise SchemaError(f"{declared.name}: the type {declared.type} is not supported")
    bounded = kind in {"STRING", "STRINGS", "BYTES", "SCALARS", "TABLES"}
    if bounded != ("max_length" in declared.attributes) or (kind == "STRINGS") != ("max_item_length" in declared.attributes):
        raise SchemaError(f"{declared.name}: every string and vector, and nothing else, has a bound")
    length_max = int(declared.attributes.get("max_length", 0))
    item_length_max = int(declared.attributes.get("max_item_length", 0))
    alignment = max(4, size, int(declared.attributes.get("force_align", 4)))
    required = "required" in declared.attributes
    inline_size = size if kind == "SCALAR" else 4
    return (
        f'FieldLayout("{declared.name}", {slot}, Kind.{kind}, {inline_size}, Struct("<{code}"), '
        f"{length_max}, {item_length_max}, {required}, {members}, {place}, {alignment}),"
    )


def table_of(name: str, fields: list[Field], module: Module, numbers: dict[str, int]) -> list[str]:
    """Return the lines of one `TableLayout`: its fields in order, each at its natural alignment, all of them always present."""
    lines: list[str] = []
    code, place, slot, alignment = "<i", 4, 4, 4
    places: list[int] = []

    def put(size: int, letter: str) -> None:
        nonlocal code, place, alignment
        alignment = max(alignment, size)
        padding = -place % size
        code += "x" * padding + letter
        places.append(place + padding)
        place += padding + size

    for declared in fields:
        if declared.type in module.unions:
            # A union occupies two slots, its type first; the layout names that of its value.
            put(1, "B")
            slot += 2
        scalar = scalar_of(declared, module)
        put(*(scalar if scalar is not None and not declared.vector else (4, "I")))
        lines.append(f"            {layout_of(declared, slot, places[-1], module, numbers)}")
        slot += 2
    padding = -place % 4
    vtable = struct.pack(f"<{2 + len(places)}H", 4 + 2 * len(places), place + padding, *places)
    head = f'        TableLayout("{name}", bytes.fromhex("{vtable.hex()}"), Struct("{code}{"x" * padding}"), {alignment}, ('
    return [head, *lines, "        )),"]


def message_of(path: Path) -> str | None:
    """Return the source text of one `MessageLayout`, or None for a file without a root type."""
    module = Module()
    Parser(path, module).parse()
    if not module.root:
        return None
    if len(module.identifier) != 4:
        raise SchemaError(f"{path.name}: a root type needs a file_identifier of four characters")
    numbers = {name: number for number, name in enumerate(module.tables)}
    lines = [f"{module.root.upper()} = MessageLayout(", f'    "{module.root}", b"{module.identifier}", {numbers[module.root]}, (']
    for name, fields in module.tables.items():
        lines.extend(table_of(name, fields, module, numbers))
    lines.append("    ),\n)")
    return "\n".join(lines)


def schemas_hash() -> str:
    """Return the hash over this script, scripts/schemas.sh and every schema, by name."""
    digest = hashlib.sha256()
    for path in [Path(__file__), ROOT / "scripts" / "schemas.sh", *sorted(SCHEMAS.glob("*.fbs"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def generated_hash() -> str:
    """Return the hash over the modules flatc wrote, by name."""
    digest = hashlib.sha256()
    for path in sorted(OUTPUT.parent.glob("*_generated.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def source_text() -> str:
    """Return the whole text of layouts.py."""
    messages = [text for path in sorted(SCHEMAS.glob("*.fbs")) if (text := message_of(path))]
    head = [
        '"""What reader and writer know about each message; written by scripts/schemas.sh, do not edit."""',
        "",
        "from struct import Struct",
        "",
        "from protocol.wire.layout import FieldLayout, Kind, MessageLayout, TableLayout",
        "",
        f'SCHEMAS_HASH = "{schemas_hash()}"',
        f'GENERATED_HASH = "{generated_hash()}"',
        "",
    ]
    return "\n".join([*head, *messages]) + "\n"


if __name__ == "__main__":
    (OUTPUT.parent / "__init__.py").write_text('"""Code generated from protocol/schemas by scripts/schemas.sh; do not edit."""\n')
    OUTPUT.write_text(source_text())
