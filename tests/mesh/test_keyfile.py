"""Key files: made private, refused when others can read them, and never told in messages."""

import os
import re
import stat
from pathlib import Path

import pytest

from mesh.keyfile import KEYS_MAX, KeyFileError, KeyRing, open_key_file, read_keys

KEY = "iso_0123456789abcdef"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_first_use_makes_a_private_file_with_a_key_of_256_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys"
    old = os.umask(0)
    try:
        ring = open_key_file(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    ((name, key),) = read_keys(path)
    assert name == "owner"
    assert re.fullmatch(r"iso_[\w-]{43}", key)
    assert ring.owner_of(key.encode()) == "owner"
    assert open_key_file(path).owner_of(key.encode()) == "owner"
    assert read_keys(path) == [(name, key)]
    open_key_file(tmp_path / "other")
    assert read_keys(tmp_path / "other") != [(name, key)]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_file_that_others_can_read_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "keys", f"owner {KEY}\n", mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:04o}.*chmod 600 {path}"):
        open_key_file(path)
    path.chmod(0o600)
    assert open_key_file(path).owner_of(KEY.encode()) == "owner"


def test_comments_and_several_keys_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "keys", f"# mine\n\nowner {KEY}\n  guest\t{KEY}2  \n")
    ring = open_key_file(path)
    assert ring.owner_of(f"{KEY}2".encode()) == "guest"
    assert ring.owner_of(KEY.encode()) == "owner"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        ("owner\n", "line 1"),
        ("owner short\n", "line 1"),
        (f"# x\nowner {KEY} more\n", "line 2"),
        (f"Owner! {KEY}\n", "line 1"),
        (f"owner {KEY}\nowner {KEY}2\n", "twice"),
        (f"owner {KEY}\x1b[2J\n", "line 1"),
        ("x" * 70_000, "larger than"),
        ("".join(f"k{index} {KEY}\n" for index in range(KEYS_MAX + 1)), f"at most {KEYS_MAX}"),
    ],
)
def test_damaged_file_is_refused_without_telling_what_is_in_it(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(KeyFileError, match=said) as caught:
        open_key_file(write(tmp_path / "keys", text))
    assert KEY not in str(caught.value)
    assert "short" not in str(caught.value)


def test_directory_and_pipe_are_no_key_files(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=str(tmp_path)):
        open_key_file(tmp_path)
    with pytest.raises(KeyFileError, match="regular file"):
        open_key_file(Path("/dev/null"))


def test_ring_finds_whose_key_it_is_and_nothing_near_it() -> None:
    ring = KeyRing([("a", KEY), ("b", KEY + "b")])
    assert ring.owner_of(KEY.encode()) == "a"
    for near in (b"", KEY[:-1].encode(), KEY.encode() + b"c", KEY.upper().encode(), b" " + KEY.encode(), KEY.encode() + b"\0"):
        assert ring.owner_of(near) is None
