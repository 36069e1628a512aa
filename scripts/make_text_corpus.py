#!/usr/bin/env python3
"""Turns the Jargon File's plain text into the training corpus of the small text model.

The file is cut into entries of the lexicon and sections of the essays. Each becomes one document: a title line, then one line
per paragraph. Hard line breaks, cross-reference braces, pronunciations, tables, drawings and the table of contents go; curly
quotes become straight ones. Documents are separated by an empty line and shuffled with a fixed seed, so that the last twentieth
is a fair held-out set. The result is gzipped without a time stamp: the same input gives the same bytes.

    apt-get download jargon-text && dpkg -x jargon-text_*.deb jargon
    scripts/make_text_corpus.py jargon/usr/share/doc/jargon-text/jargon.txt.gz scripts/data/jargon-corpus.txt.gz

Source: The Jargon File 4.4.7 (public domain), Debian package jargon-text; see mesh/engines/data/README.md.
"""

import gzip
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SEED = 447  # any fixed number: the version of the File
DOCUMENT_BYTES_MIN = 40  # shorter ones are headings without text
TITLES_LEFT_OUT = frozenset({"Glossary", "Revision History", "Bibliography"})  # lists of names and books, not prose
LETTERS_SHARE_MIN = 0.6  # below it a paragraph is a table, a drawing or a listing, not prose

# Curly quotes, the acute accent, the no-break space, the long dash, the ellipsis; braces mark cross-references in the File.
PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\xb4": "'", "\u201c": '"', "\u201d": '"', "\xa0": " ", "\u2014": "-", "\u2026": "..."}
    | {"{": "", "}": ""}
)
HEADWORD = re.compile(r"^:(?P<term>[^:]+(?:::[^:]+)?):(?:\s|$)")


def paragraphs(text: str) -> Iterator[tuple[bool, str]]:
    """The text's paragraphs as one line each, with a flag for those that start at the left margin (headings)."""
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines or any(0x2500 <= ord(character) < 0x25A0 for character in block):
            continue
        is_heading = len(lines) == 1 and not lines[0].startswith(" ")
        indent = min(len(line) - len(line.lstrip()) for line in lines)
        is_prose = indent == 3 and not any(re.search(r"\S {3,}\S", line) for line in lines)
        if is_heading or is_prose:
            yield is_heading, re.sub(r"\s+", " ", " ".join(lines)).strip()


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is mostly words."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return letters >= LETTERS_SHARE_MIN * len(paragraph)


def documents(text: str) -> Iterator[str]:
    """Title and paragraphs of every entry and section, in the order of the File."""
    title, body = "", []
    for is_heading, paragraph in paragraphs(text):
        entry = HEADWORD.match(paragraph)
        if is_heading or entry:
            if body and title not in TITLES_LEFT_OUT:
                yield "\n".join([title, *body])
            title = entry["term"] if entry else re.sub(r"^(Chapter|Appendix) \w+\. ", "", paragraph)
            body = []
        elif title and is_prose(paragraph):
            body.append(paragraph)
    if body and title not in TITLES_LEFT_OUT:
        yield "\n".join([title, *body])


def main() -> None:
    """Read the File, write the corpus, say how large it is."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    text = gzip.decompress(source.read_bytes()).decode().translate(PLAIN)
    text = text[text.index("\nChapter 1. ") :]
    kept = [document for document in documents(text) if len(document.encode()) >= DOCUMENT_BYTES_MIN]
    random.Random(SEED).shuffle(kept)
    joined = "\n\n".join(kept).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(joined, compresslevel=9, mtime=0))
    print(f"{len(kept)} documents, {len(joined)} bytes, {target.stat().st_size} bytes gzipped")


if __name__ == "__main__":
    main()
