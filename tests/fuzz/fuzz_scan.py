"""Finds the functions of the product that read bytes somebody else has written.

A function counts when it calls one of the primitives by which bytes become values (`PRIMITIVES`), or when its name says that it
decodes (`VERBS`) and one of its parameters is bytes. What is found is compared with `decoders.py`: a new decoder without a
harness fails the tests.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

ROOMS = ("protocol", "mesh")
"""Where decoders are looked for; the simulator and the scripts read nothing of strangers."""

APART = ("protocol/wire/generated", "mesh/conformance", "mesh/testnet", "mesh/demo.py")
"""Left out: generated accessors that nothing uses on foreign bytes, and programs that try a node and are none."""

PRIMITIVES = frozenset(
    {
        "json.loads",
        "json.load",
        "_unpackb",
        "unpack",
        "unpack_from",
        "iter_unpack",
        "int.from_bytes",
        "from_bytes",
        "read_fields",
        "read_message",
        "read_elements",
        "read_sequence",
        "decode_uvarint",
        "peek_uvarint",
        "FrameDecoder",
        "next_frame",
        "load_der_x509_certificate",
        "load_pem_x509_certificate",
        "decompress",
        "decompressobj",
        "fromhex",
        "b64decode",
        "urlsafe_b64decode",
        "b32decode",
        "pull_uint_var",
        "pull_bytes",
        "pull_uint8",
        "pull_uint16",
        "pull_uint32",
        "frombuffer",
        "receive_datagram",
        "datagram_received",
        "fromstring",
        "literal_eval",
    }
)
"""Calls by which bytes become values, by their last name or by module and name."""

VERBS = re.compile(r"_?(decode|read|open|parse|unpack|peek|verify|receive|split|take|merge|handle_datagram|feed)(_|$)")
"""Names that say it."""

_BYTES = re.compile(r"\b(bytes|bytearray|memoryview|Received)\b")


def _called(node: ast.Call) -> tuple[str, ...]:
    match node.func:
        case ast.Name(id=name):
            return (name,)
        case ast.Attribute(attr=name, value=ast.Name(id=module)):
            return (name, f"{module}.{name}")
        case ast.Attribute(attr=name):
            return (name,)
    return ()


def _is_decoder(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    if VERBS.match(function.name) and any(
        argument.annotation is not None and _BYTES.search(ast.unparse(argument.annotation)) for argument in arguments
    ):
        return True
    return any(PRIMITIVES.intersection(_called(node)) for node in ast.walk(function) if isinstance(node, ast.Call))


def _functions(node: ast.AST, path: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{path}{child.name}.")


def _is_stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is a line of a Protocol class, which does nothing."""
    return isinstance(function.body[-1], ast.Expr) and ast.unparse(function.body[-1]) == "..."


def decoders(root: Path = ROOT) -> list[str]:
    """The names of all decoders, `package.module:Class.function`, sorted."""
    found: list[str] = []
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            inside = path.relative_to(root).as_posix()
            if inside.startswith(APART):
                continue
            module = inside.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            tree = ast.parse(path.read_text())
            found += [
                f"{module}:{name}" for name, function in _functions(tree, "") if _is_decoder(function) and not _is_stub(function)
            ]
    return sorted(found)
