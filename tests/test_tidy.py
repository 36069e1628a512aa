"""The house rules that no linter knows: sizes, docstrings, sourced constants."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE_LINES_MAX = 600  # past that it is two modules
FUNCTION_LINES_MAX = 70  # a function fits a screen
FOLDERS = ("protocol", "mesh", "sim")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if "generated" not in path.parts]
SOURCES += [path for path in [ROOT / "node.py"] if path.exists()]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_module_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "the module has no docstring"


def public_definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public classes and functions of a module and public methods of its classes; functions inside functions are helpers."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_fit_a_screen_and_public_ones_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"
    for definition in public_definitions(tree.body):
        assert ast.get_docstring(definition), f"{definition.name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_numeric_constants_say_why(path: Path) -> None:
    """A module-level number in capitals has a comment above or beside it, or a docstring below."""
    text = path.read_text()
    lines = text.splitlines()
    body = ast.parse(text).body
    for index, node in enumerate(body):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if not (isinstance(target, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", target.id)):
            continue
        if not isinstance(node.value, ast.Constant | ast.BinOp) or (
            isinstance(node.value, ast.Constant) and not isinstance(node.value.value, int | float)
        ):
            continue
        below = body[index + 1] if index + 1 < len(body) else None
        documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
        commented = lines[node.lineno - 2].lstrip().startswith("#") or "#" in lines[node.lineno - 1]
        assert documented or commented, f"{target.id} gives neither unit nor reason"


def test_nothing_names_the_machine_it_was_written_on() -> None:
    pattern = re.compile(r"/(work|root|farm)/")
    for path in [*SOURCES, *(ROOT / "docs").rglob("*.md"), *(ROOT / "scripts").rglob("*"), ROOT / "README.md"]:
        if path.is_file():
            assert not pattern.search(path.read_text(errors="ignore")), path


def test_any_selection_of_test_folders_can_be_collected() -> None:
    """Tests are no packages, so that their modules share one room: names stand once, and none imports a `conftest`."""
    modules = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    names = [path.stem for path in modules]
    assert sorted(names) == sorted(set(names))
    for path in (ROOT / "tests").rglob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(re.search(r"\bconftest\b", ast.unparse(node)) for node in imports), path
