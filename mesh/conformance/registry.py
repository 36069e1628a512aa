"""The cases: what is tried for which sentence, and what is said where nothing can be tried from outside.

A case is an async function that is given a `ScriptedPeer`; it returns when the node did as the sentence says, raises `Unmet`
when it did not, and `NotApplicable` when there is nothing to try on this node. A sentence that cannot be seen from outside has an
`inside` entry, which names the tests of the project that hold it.

Spec: docs/spec/README.md, section "The conformance suite".
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.conformance.peer import ScriptedPeer

Run = Callable[["ScriptedPeer"], Awaitable[None]]


class Unmet(Exception):  # noqa: N818  (the suite's word for a sentence that is not kept)
    """The node did something else than the sentence says."""

    def __init__(self, expected: str, seen: object) -> None:
        super().__init__(f"expected {expected}; seen: {seen}")
        self.expected = expected
        self.seen = seen


class NotApplicable(Exception):  # noqa: N818  (an outcome, no fault)
    """There is nothing to try here, for the reason given."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is tried on a node.

    Attributes:
        name: the function's name, which says what the node does.
        sentences: the ids of the sentences that it tries.
        run: the function.
        alone: nothing else runs meanwhile, because others would disturb it or it them.
        slow: it waits for a timer of the specification, and runs only when asked for.
        uninvited: it needs no connection, and so runs also on a node of a private network that lets the suite in by nothing.
    """

    name: str
    sentences: tuple[str, ...]
    run: Run
    alone: bool = False
    slow: bool = False
    uninvited: bool = False


@dataclass(frozen=True, slots=True)
class Inside:
    """Why a sentence cannot be tried from outside, and which tests of the project hold it.

    Attributes:
        sentence: its id.
        why: one clause for a person.
        tests: `path::name` of each test.
    """

    sentence: str
    why: str
    tests: tuple[str, ...]


CASES: list[Case] = []
"""Every case, in the order in which the modules of `cases` are imported."""

INSIDE: dict[str, Inside] = {}
"""What cannot be tried from outside, by the id of the sentence."""


def case(*sentences: str, alone: bool = False, slow: bool = False, uninvited: bool = False) -> Callable[[Run], Run]:
    """Register the function below as a case for these sentences."""

    def register(run: Run) -> Run:
        CASES.append(Case(getattr(run, "__name__", "case"), sentences, run, alone, slow, uninvited))
        return run

    return register


def inside(sentence: str, why: str, *tests: str) -> None:
    """Say that a sentence cannot be tried from outside, why, and which tests of the project hold it."""
    assert tests, f"{sentence}: name at least one test"
    assert sentence not in INSIDE, f"{sentence} stands there twice"
    INSIDE[sentence] = Inside(sentence, why, tests)


def expect(holds: object, expected: str, seen: object) -> None:
    """Go on if something holds.

    Raises:
        Unmet: it does not.
    """
    if not holds:
        raise Unmet(expected, seen)
