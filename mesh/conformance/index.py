"""The sentences of the specification, as package data: id, how strictly it binds, chapter, text.

`scripts/spec_index.py` writes `data/sentences.json` from `docs/spec/*.md` by what is here; a test holds that the two agree. So an
installed program knows its specification without the documents.

Spec: docs/spec/00-conventions.md, section "Rules and their ids".
"""

import json
import re
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

Level = Literal["MUST", "SHOULD", "MAY", "none"]
"""The strictest key word of a sentence; "none" where it defines a word that others use."""

_RULE = re.compile(r"^- \*\*(ISO-[A-Z]+-\d{3})\*\* (.*?)(?=^- \*\*|^\s*$|\Z)", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^# (?:\d+\.? )?(.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One rule of the specification.

    Attributes:
        id: its name for ever, such as ISO-GOS-014.
        level: the strictest key word in it.
        chapter: the title of its chapter.
        text: the sentence in one line.
    """

    id: str
    level: Level
    chapter: str
    text: str


def read_chapters(folder: Path) -> list[Sentence]:
    """Read the sentences of all chapters, in the order in which they stand."""
    sentences: list[Sentence] = []
    for path in sorted(folder.glob("[0-9]*.md")):
        document = path.read_text()
        title = _TITLE.search(document)
        chapter = title.group(1) if title else path.stem
        for name, text in _RULE.findall(document):
            plain = " ".join(text.split())
            sentences.append(Sentence(name, _level(plain), chapter, plain))
    return sentences


def encode(sentences: list[Sentence]) -> str:
    """Return the text of the data file."""
    return json.dumps([asdict(sentence) for sentence in sentences], indent=1, ensure_ascii=False) + "\n"


def load() -> list[Sentence]:
    """Return the sentences that this program was built with."""
    data = resources.files("mesh.conformance").joinpath("data/sentences.json").read_text()
    return [Sentence(**row) for row in json.loads(data)]


def _level(text: str) -> Level:
    words: tuple[Level, ...] = ("MUST", "SHOULD", "MAY")
    return next((word for word in words if re.search(rf"\b{word}\b", text)), "none")
