"""The rules of the specification: every id stands once, in a sentence that binds or recommends.

An id is kept for ever; a rule that comes later stands where it belongs, with the next number.
"""

import re
from pathlib import Path

import pytest

SPEC = Path(__file__).parent.parent.parent / "docs" / "spec"
CHAPTERS = sorted(SPEC.glob("[0-9]*.md"))
RULE = re.compile(r"^- \*\*ISO-([A-Z]+)-(\d{3})\*\* (.*?)(?=^- \*\*|^\s*$|\Z)", re.MULTILINE | re.DOTALL)


def rules(path: Path) -> list[tuple[str, int, str]]:
    return [(name, int(number), text) for name, number, text in RULE.findall(path.read_text())]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_rule_ids_are_unique(path: Path) -> None:
    by_name: dict[str, list[int]] = {}
    for name, number, _ in rules(path):
        by_name.setdefault(name, []).append(number)
    assert by_name, "the chapter has no rules"
    for numbers in by_name.values():
        assert len(numbers) == len(set(numbers))


def test_no_two_chapters_share_a_rule() -> None:
    ids = [(name, number) for path in CHAPTERS for name, number, _ in rules(path)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_rule_binds(path: Path) -> None:
    idle = [f"{name}-{number:03}" for name, number, text in rules(path) if not re.search(r"\b(MUST|SHOULD|MAY)\b", text)]
    if path.stem in {"05-coordinates", "07-membership"}:
        idle = [rule for rule in idle if rule not in {"COORD-002", "MEMBER-005"}]  # definitions that other rules build on
    assert idle == []


def test_short_names_are_declared() -> None:
    declared = (SPEC / "00-conventions.md").read_text()
    used = {name for path in CHAPTERS for name, _, _ in rules(path)}
    for name in used:
        assert re.search(rf"\b{name}\b", declared), name


def test_every_chapter_stands_in_the_index() -> None:
    index = (SPEC / "README.md").read_text()
    for path in CHAPTERS:
        assert f"]({path.name})" in index
