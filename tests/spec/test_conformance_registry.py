"""The conformance suite is whole: every MUST has a case, every case names a sentence, and the index is that of the documents."""

import ast
from functools import cache
from pathlib import Path

import pytest

from mesh.conformance import cases
from mesh.conformance.index import Sentence, encode, load, read_chapters
from mesh.conformance.registry import CASES, INSIDE

ROOT = Path(__file__).parent.parent.parent
INDEX = ROOT / "mesh" / "conformance" / "data" / "sentences.json"
SENTENCES = {sentence.id: sentence for sentence in load()}
NAMED = {name for case in CASES for name in case.sentences} | set(INSIDE)

assert cases


def test_the_index_is_that_of_the_documents() -> None:
    fresh = encode(read_chapters(ROOT / "docs" / "spec"))
    assert INDEX.read_text() == fresh, "docs/spec has changed: run `python -m scripts.spec_index`"


@pytest.mark.parametrize(
    "sentence",
    [sentence for sentence in SENTENCES.values() if sentence.level == "MUST"],
    ids=lambda sentence: sentence.id,
)
def test_every_must_has_a_case(sentence: Sentence) -> None:
    assert sentence.id in NAMED, (
        f"nothing tries {sentence.id} ({sentence.text[:100]}...): write a function under @case({sentence.id!r}) in the module of "
        "its chapter in mesh/conformance/cases, which sends over the wire what shows it; only where nothing shows it from "
        f"outside, write inside({sentence.id!r}, 'why', 'tests/...::test_...') in mesh/conformance/cases/inside_tests.py "
        "(CONTRIBUTING.md, 'The specification')"
    )


def test_every_case_names_sentences_that_exist() -> None:
    unknown = sorted(NAMED - set(SENTENCES))
    assert unknown == [], "these sentences are not in docs/spec: mend the ids of their cases"
    assert [case.name for case in CASES if not case.sentences] == []


def test_names_of_cases_are_unique_and_their_purpose_is_told() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert [case.name for case in CASES if not (case.run.__doc__ or "").strip()] == []


@cache
def functions_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("entry", INSIDE.values(), ids=lambda entry: entry.sentence)
def test_what_is_not_seen_from_outside_has_tests_that_exist(entry) -> None:
    for test in entry.tests:
        path, _, name = test.partition("::")
        assert name.startswith("test_")
        assert name in functions_in(path), f"{entry.sentence}: {test} does not exist (any more)"
