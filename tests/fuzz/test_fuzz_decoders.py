"""Every decoder has a harness or a reason to have none, every harness reaches what it claims, and the corpus passes the oracle.

The fuzzer itself runs in `make fuzz`; here its corpus is run again without it, and without a clock: lines of Python are counted
in the place of milliseconds.
"""

import ast
import time
from functools import cache
from pathlib import Path

import pytest
from fuzz_apart import APART
from fuzz_decoders import HARNESSES
from fuzz_live import chunks, joined
from fuzz_oracle import INPUT_BYTES_MAX, LINES_MAX, MEMORY_BYTES_MAX, Harness, either, judge, lines_of, peak_bytes, reached_by
from fuzz_scan import ROOMS, ROOT, decoders

CORPUS = Path(__file__).parent / "corpus"
CORPUS_BYTES_MAX = 2 << 20

named = pytest.mark.parametrize("harness", HARNESSES, ids=lambda harness: harness.name)


@cache
def found() -> list[str]:
    """All decoders: the sources are looked through once, since every harness asks."""
    return decoders()


def inputs(harness: Harness) -> list[bytes]:
    """Everything that a harness is run with here."""
    kept = [path.read_bytes() for path in sorted((CORPUS / harness.name).glob("*"))]
    return [seed[:INPUT_BYTES_MAX] for seed in harness.seeds()] + kept


def covered(decoder: str, claims: set[str]) -> bool:
    """Whether a claim names a decoder, by itself or, where it is private, with its module."""
    module, _, name = decoder.partition(":")
    return decoder in claims or (name.rpartition(".")[2].startswith("_") and f"{module}:*" in claims)


def test_every_decoder_has_a_harness_or_a_reason() -> None:
    claims = {claim for harness in HARNESSES for claim in harness.covers}
    missing = [decoder for decoder in found() if not covered(decoder, claims) and decoder not in APART]
    assert missing == [], "give these a harness in tests/fuzz, or a reason in APART (docs/fuzzing.md)"


def test_the_list_names_nothing_that_is_gone() -> None:
    there_are = set(found())
    modules = {decoder.partition(":")[0] for decoder in there_are}
    claims = {claim for harness in HARNESSES for claim in harness.covers}
    assert [claim for claim in sorted(claims) if claim not in there_are and not claim.endswith(":*")] == []
    assert [claim for claim in sorted(claims) if claim.endswith(":*") and claim[:-2] not in modules] == []
    assert [name for name in APART if name not in there_are] == []
    assert [name for name in APART if covered(name, claims)] == []


@named
def test_a_harness_reaches_what_it_claims(harness: Harness) -> None:
    reached = reached_by(harness, inputs(harness))
    claims = set(harness.covers)
    wanted = [decoder for decoder in found() if covered(decoder, claims)]
    assert [decoder for decoder in wanted if decoder not in reached and decoder not in APART] == []


@named
def test_the_corpus_passes_the_oracle(harness: Harness) -> None:
    for data in inputs(harness):
        assert len(data) <= INPUT_BYTES_MAX
        assert peak_bytes(harness, data) <= MEMORY_BYTES_MAX, data[:64].hex()
        assert lines_of(harness, data) <= LINES_MAX, data[:64].hex()


def test_the_corpus_is_small_and_belongs_to_harnesses() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= CORPUS_BYTES_MAX
    assert {path.parent.name for path in files} <= {harness.name for harness in HARNESSES}
    assert {path.name for path in CORPUS.iterdir()} == {harness.name for harness in HARNESSES}


def squeezes(path: Path) -> bool:
    """Whether a module uses a library that decompresses, for more than a checksum."""
    tree = ast.parse(path.read_text())
    squeezers = {"zlib", "gzip", "bz2", "lzma", "brotli", "brotlicffi", "zstandard", "zipfile", "tarfile"}
    if any(isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in squeezers for node in ast.walk(tree)):
        return True
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in squeezers
        and node.attr != "crc32"
        for node in ast.walk(tree)
    )


def test_nothing_that_others_send_is_decompressed() -> None:
    users = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py") if squeezes(path)}
    assert users == {
        "protocol/records/packing.py",  # records in this node's own memory
        "mesh/testnet/matrix.py",  # a file that the owner names, on the owner's command line
    }
    middleware = [path for path in (ROOT / "mesh" / "gateway").rglob("*.py") if "GZip" in path.read_text()]
    assert middleware == []


def test_no_accessor_of_flatbuffers_is_used_on_foreign_bytes() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            if "generated" not in path.parts:
                assert "GetRootAs" not in path.read_text(), f"{path}: read_message verifies and reads in one"


# The oracle itself


def harness_of(run) -> Harness:
    return Harness("made", run, (KeyError,), list, ())


def burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_the_oracle_finds_what_is_not_declared() -> None:
    def raises(_state, data):
        raise KeyError if data == b"known" else ValueError("odd")

    assert judge(harness_of(raises), b"known").fault == ""
    assert judge(harness_of(raises), b"other").fault == "raises ValueError: odd"


def test_the_oracle_finds_what_is_slow_and_what_is_large() -> None:
    assert "processor time" in judge(harness_of(lambda _state, _data: burn(0.02)), b"").fault
    assert "MiB" in judge(harness_of(lambda _state, _data: len(bytes(5 << 20))), b"").fault, "a peak that is gone again"
    assert judge(harness_of(lambda _state, _data: len(bytes(1 << 20))), b"").fault == ""


def test_each_step_has_a_clock_and_a_count_of_its_own() -> None:
    def steps(_state, _data):
        for _ in range(5):
            burn(0.004)
            yield

    def lines(_state, data):
        for _ in data:
            for _ in range(100):
                pass
            yield

    assert judge(harness_of(steps), b"").fault == ""
    assert lines_of(harness_of(lines), b"12345") < 2 * lines_of(harness_of(lines), b"1")


def test_the_fuzzer_sees_a_choice_of_harnesses_as_one() -> None:
    one = Harness("one", lambda _state, data: data, (), lambda: [b"a"], ("x",))
    other = Harness("other", lambda _state, data: data[5], (IndexError,), lambda: [b"b"], ("y",))
    both = either("both", one, other)
    assert both.seeds() == [b"\x00a", b"\x01b"]
    assert both.covers == ("x", "y")
    assert both.run(None, b"\x00q") == b"q"
    assert isinstance(both.run(None, b"\x01q"), IndexError)


def test_pieces_of_an_input_are_read_as_they_were_joined() -> None:
    pieces = [b"a", b"bb", bytes(1200)]
    assert chunks(joined(pieces)) == pieces
    assert chunks(b"\xff\xff") == []
