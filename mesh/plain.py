"""Text that others chose, made fit to be shown: it steers no terminal, starts no line of a log and ends no element of a picture.

Peers name their models, engines and addresses, and models say what they like. What is shown of it to people keeps its printable
characters alone; what is written to a log keeps the others as escapes, since there they may be what somebody looks for.

Source: CWE-150 (escape and control sequences), CWE-117 (forged log entries); Trojan Source (CVE-2021-42574) on characters that
turn the direction of text.
"""

from html import escape


def printable(text: str, keep: str = "") -> str:
    """Return `text` without characters that are not printed, but for those in `keep`."""
    return "".join(character for character in text if character.isprintable() or character in keep)


def escaped(text: str, keep: str = "") -> str:
    """Return `text` with characters that are not printed written as in Python, but for those in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def markup(text: str) -> str:
    """Return `text` as it stands in HTML and SVG, in an element or between quotes."""
    return escape(printable(text))
