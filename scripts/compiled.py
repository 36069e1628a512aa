"""Runs a Python module with the core and the simulator compiled to machine code; compiles them first where they have changed.

    python scripts/compiled.py -m sim --nodes 1000 --for 60
    python scripts/compiled.py                              only compiles

The same sources are translated to C by mypyc, which the type checker brings along, and built with the machine's C compiler; what
comes out runs two to three times as fast and gives the same digests. The result lies under build/compiled and nothing else is
touched: no source is shadowed by a stale build, for the build carries a hash of what it was made from.

Where there is no C compiler, or no mypyc, the module runs as it is, and a line says what would have to be installed.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "build" / "compiled"
STAMP = TARGET / "made-from"
PACKAGES = ("protocol", "sim")

COMPILED = (
    "protocol",
    "sim/agenda.py",
    "sim/flight.py",
    "sim/formed.py",
    "sim/journal.py",
    "sim/network.py",
    "sim/process.py",
    "sim/reader.py",
    "sim/world.py",
)
"""What is compiled of it: the core, and what every event of a world passes through."""

LEFT = (
    "protocol/fabric",
    "protocol/quic",
    "protocol/identity",
    "protocol/libp2p",
    "protocol/inference.py",
    "protocol/wire",
)
"""What stays as it is: it subclasses libraries that are not compiled, holds what the compiler has no word for (memoryview, an
exception of such a library), or is not on the way of an event."""

OPEN = {
    "protocol/coordinates.py": ("Vivaldi",),
    "protocol/forwarding.py": ("Forwarding",),
    "protocol/gossip/machine.py": ("Gossip",),
    "protocol/gossip/reader.py": ("GossipReader",),
    "protocol/node/machine.py": ("Node",),
    "protocol/records/envelope.py": ("RecordReader",),
    "protocol/records/packing.py": ("RecordPacker",),
    "sim/world.py": ("World",),
}
"""Classes that the simulator's hostile peers and its shared reader refine: the compiler has to be told that they may be."""

LOOSE = {
    "sim/process.py": (
        ("import TYPE_CHECKING\n", "import TYPE_CHECKING, Any\n"),
        ("node: Node =", "node: Any ="),
        ("Sequencer], Node]", "Sequencer], Any]"),
    )
}
"""Fields that may hold what behaves as it should and is of no such class (a core on a clock of its own, a sybil)."""

_SLOTS = re.compile(r"^(@dataclass\(.*?)(, slots=True|slots=True, |slots=True)", re.MULTILINE)
"""How a data class asks for slots: that makes the class anew, and what comes out of it is no compiled class; those have no
dictionary anyway."""

OPTIONS = {"MYPYC_OPT_LEVEL": "2", "MYPYC_DEBUG_LEVEL": "0"}
"""The C compiler's options: without debugging symbols it takes two thirds of the time."""

CONFIG = "[mypy]\nignore_missing_imports = True\n"
"""The compiler's own configuration: the project's checks have run before."""

COMPILE_S = 900.0
"""Seconds after which a compilation is given up: ten times what it takes on one slow core."""


def sources() -> Iterator[Path]:
    """Every source of the packages, as a path below the root, in order."""
    for package in PACKAGES:
        yield from sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))


def fingerprint() -> str:
    """A hash of the sources, of this script and of the interpreter they are compiled for."""
    digest = hashlib.sha256(sysconfig.get_config_var("EXT_SUFFIX").encode())
    for path in (Path(__file__).resolve().relative_to(ROOT), *sources()):
        digest.update(f"{path}\0".encode() + (ROOT / path).read_bytes())
    return digest.hexdigest()


def missing() -> str:
    """What would have to be installed to compile, in words; empty when all is there."""
    if shutil.which(os.environ.get("CC", "cc")) is None and shutil.which("gcc") is None:
        return "a C compiler (Debian: gcc)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "Python's headers (Debian: python3-dev)"
    probe = subprocess.run([sys.executable, "-c", "import mypyc, setuptools"], check=False, capture_output=True)
    return "" if probe.returncode == 0 else "mypy (make setup)"


def compile_all(made_from: str) -> None:
    """Copies the packages and compiles them where the copies lie; raises CalledProcessError with the compiler's words printed."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for path in sources():
        (TARGET / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, TARGET / path)
    for schema in (ROOT / "protocol" / "schemas").glob("*"):
        (TARGET / "protocol" / "schemas").mkdir(exist_ok=True)
        shutil.copyfile(schema, TARGET / "protocol" / "schemas" / schema.name)
    (TARGET / "mypy.ini").write_text(CONFIG)
    chosen = [str(path) for path in sources() if str(path).startswith(COMPILED) and not str(path).startswith(LEFT)]
    for module in chosen:
        source = _loosened(module, _SLOTS.sub(r"\1", (ROOT / module).read_text()))
        (TARGET / module).write_text(_opened(source, OPEN.get(module, ())))
    command = [sys.executable, "-c", "from mypyc.__main__ import main; main()", *chosen]
    print(f"compiling {len(chosen)} modules, once for these sources (about a minute)", file=sys.stderr, flush=True)
    done = subprocess.run(
        command, cwd=TARGET, env={**os.environ, **OPTIONS}, check=False, capture_output=True, text=True, timeout=COMPILE_S
    )
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        done.check_returncode()
    STAMP.write_text(made_from)


def _loosened(module: str, source: str) -> str:
    """A module whose field may hold anything."""
    for told, meant in LOOSE.get(module, ()):
        if source.count(told) != 1:
            raise ValueError(f"{told!r} was looked for in {module} and found {source.count(told)} times")
        source = source.replace(told, meant)
    return source


def _opened(source: str, names: tuple[str, ...]) -> str:
    """A module whose classes of these names may have subclasses that are not compiled."""
    for name in names:
        attribute = "from mypy_extensions import mypyc_attr\n@mypyc_attr(allow_interpreted_subclasses=True)\n"
        source, found = re.subn(rf"^class {name}\b", f"{attribute}class {name}", source, flags=re.MULTILINE)
        if found != 1:
            raise ValueError(f"class {name} was looked for and found {found} times")
    return source


def main(arguments: list[str]) -> int:
    """Compiles where need be, then becomes the module that is to run."""
    lacking = missing()
    environment = dict(os.environ)
    if lacking:
        print(f"not compiled: {lacking} is missing; running as it is, two to three times as slow", file=sys.stderr)
    else:
        made_from = fingerprint()
        if not STAMP.exists() or STAMP.read_text() != made_from:
            compile_all(made_from)
        environment["PYTHONPATH"] = os.pathsep.join([str(TARGET), str(ROOT)])
        environment["PYTHONSAFEPATH"] = "1"  # the working directory's sources must not come first
    if not arguments:
        return 0
    return os.execve(sys.executable, [sys.executable, *arguments], environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
