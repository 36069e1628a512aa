import math
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.store import (
    FILE_BYTES_MAX,
    FLOORS_FILE,
    FLOORS_MAX,
    KEY_FILE,
    PEER_ADDRESSES_MAX,
    PEERS_FILE,
    PEERS_MAX,
    SEQUENCE_FILE,
    KnownPeer,
    StateError,
    Store,
    StoreFault,
    floors_from_text,
    floors_text,
)
from protocol.identity import Identity, peer_id_text
from protocol.multiaddr import parse_multiaddr
from protocol.table import Floor, RecordKey, TableConfig

ROOT = Path(__file__).parents[2]
WALL_S = 1_700_000_000.0
SEED = bytes(range(32))
BLOCK = 1000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "state") as opened:
        yield opened


def reserve_block(store: Store, wall_s: float = 0.0) -> range:
    """What a node does at start: continue behind everything, and reserve before use."""
    start = store.reserved(wall_s)
    store.reserve(start + BLOCK)
    return range(start + 1, start + BLOCK + 1)


def known(number: int, addresses: int = 1) -> KnownPeer:
    identity = Identity.from_seed(number.to_bytes(32, "big"))
    multiaddrs = tuple(parse_multiaddr(f"/ip4/192.0.2.{i}/udp/4001/quic-v1") for i in range(addresses))
    return KnownPeer(identity.peer_id, multiaddrs, float(number))


def test_key_is_made_once_and_private(store: Store) -> None:
    identity = store.identity()
    assert (store.path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert store.path.stat().st_mode & 0o777 == 0o700
    assert store.identity().peer_id == identity.peer_id
    assert sorted(path.name for path in store.path.iterdir()) == [KEY_FILE, "lock"]


def test_key_file_is_pem_that_other_tools_read(store: Store) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    identity = store.identity(lambda size: SEED[:size])
    text = (store.path / KEY_FILE).read_bytes()
    key = load_pem_private_key(text, None)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.private_bytes_raw() == SEED == identity.seed
    assert peer_id_text(identity.peer_id).encode() in text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_key_that_others_can_read_is_refused_with_the_command_that_helps(store: Store, mode: int) -> None:
    store.identity()
    path = store.path / KEY_FILE
    path.chmod(mode)
    with pytest.raises(StateError, match=f"chmod 600 {path}"):
        store.identity()
    path.chmod(0o400)
    store.identity()


def flipped(text: str) -> str:
    index = text.index("MC4CAQ") + 40
    return text[:index] + ("A" if text[index] != "A" else "B") + text[index + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-40],
        lambda text: text[40:].partition("\n")[2].partition("\n")[2],
        flipped,
        lambda text: text.replace("MC4CAQ", "MC4CAR"),
        lambda text: text.replace("MC4CAQ", "M!4CAQ"),
        lambda text: "\0" * len(text),
        lambda text: text + "more\n",
    ],
    ids=["empty", "cut", "no peer id", "bit flip", "other type", "not base64", "zeros", "trailing"],
)
def test_damaged_key_stops_the_node_and_is_never_replaced(store: Store, damage) -> None:
    store.identity()
    path = store.path / KEY_FILE
    damaged = damage(path.read_text())
    path.write_text(damaged)
    with pytest.raises(StateError, match="never replaced"):
        store.identity()
    assert path.read_text() == damaged


def test_key_that_is_no_file_is_refused(store: Store) -> None:
    (store.path / KEY_FILE).mkdir()
    with pytest.raises(StateError, match="never replaced"):
        store.identity()


def test_lost_key_of_a_used_directory_is_not_made_anew(store: Store) -> None:
    store.identity()
    reserve_block(store)
    (store.path / KEY_FILE).unlink()
    with pytest.raises(StateError, match="restore the key"):
        store.identity()
    assert not (store.path / KEY_FILE).exists()


def test_sequences_grow_across_restarts_without_a_clock(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        first, second = reserve_block(store), reserve_block(store)
    with Store(tmp_path) as store:
        third = reserve_block(store)
    assert first.stop <= second.start < second.stop <= third.start


def test_killed_node_never_reuses_a_sequence(tmp_path: Path) -> None:
    """A process is killed at an arbitrary point, over and over; whatever it had announced stays below what the next one gets."""
    program = (
        "import sys, pathlib; from mesh.store import Store\n"
        "store = Store(pathlib.Path(sys.argv[1]))\n"
        "while True: upto = store.reserved(0.0) + 1000; store.reserve(upto); print(upto, flush=True)\n"
    )
    highest = 0
    for lines_before_kill in (1, 7, 30):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        with process.stdout as output:
            for _ in range(lines_before_kill):
                seen = int(output.readline())
                assert seen > highest
            process.send_signal(signal.SIGKILL)
            highest = max(seen, *(int(line) for line in output if line.endswith("\n")), 0)
        assert process.wait() == -signal.SIGKILL
    with Store(tmp_path) as store:
        assert reserve_block(store).start > highest


def test_lost_or_restored_sequence_file_continues_from_the_wall_clock(store: Store) -> None:
    used = reserve_block(store, WALL_S)
    (store.path / SEQUENCE_FILE).unlink()
    store.close()
    with Store(store.path) as again:
        assert reserve_block(again, WALL_S + 2.0).start >= used.stop


@pytest.mark.parametrize("text", ["", "isochrone-sequence 1 17 00000000\n", "x" * 50, "isochrone-sequence 2 17 00000000\n"])
def test_damaged_sequence_file_heals_and_says_so(store: Store, text: str) -> None:
    (store.path / SEQUENCE_FILE).write_text(text)
    assert store.reserved(WALL_S) == int(WALL_S * 1000)
    assert any("damaged" in finding for finding in store.findings)


def test_clock_set_back_does_not_lower_the_sequence(store: Store) -> None:
    later = reserve_block(store, WALL_S)
    assert reserve_block(store, WALL_S - 1e6).start == later.stop


def test_lower_reservation_changes_nothing(store: Store) -> None:
    store.reserve(5000)
    store.reserve(4000)
    store.close()
    with Store(store.path) as again:
        assert again.reserved(0.0) == 5000


def test_exhausted_sequence_is_refused(store: Store) -> None:
    with pytest.raises(StateError, match="no sequence numbers"):
        store.reserved(2.0**53)


def test_second_node_in_one_directory_is_refused_and_the_first_named(store: Store) -> None:
    with pytest.raises(StateError, match=rf"another node \(process {os.getpid()}\).*--state-dir"):
        Store(store.path)
    store.close()
    with Store(store.path) as again:
        again.identity()


def test_lock_of_a_killed_node_is_free(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from mesh.store import Store; s = Store(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StateError, match=f"process {process.pid}"):
            Store(tmp_path)
        process.kill()
        process.wait()
    Store(tmp_path).close()


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--state-dir"):
        Store(tmp_path / "file" / "state")


def test_peers_come_back_newest_first_and_bounded(store: Store) -> None:
    assert store.save_peers(known(number, PEER_ADDRESSES_MAX + 1) for number in range(PEERS_MAX + 5)) is None
    loaded = store.load_peers(WALL_S)
    assert [peer.last_seen_s for peer in loaded] == [float(number) for number in range(PEERS_MAX + 4, 4, -1)]
    assert loaded[0].addresses == known(PEERS_MAX + 4, PEER_ADDRESSES_MAX).addresses
    assert loaded[0].peer_id == known(PEERS_MAX + 4).peer_id


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-9],
        lambda content: content.replace(b"192.0.2.0", b"192.0.2.9"),
        lambda content: b"\xff" * 100,
        lambda content: b"{}" * (1 << 20),
        lambda content: content + b"\n".join(content.splitlines()[1:2] * (PEERS_MAX + 1)),
    ],
    ids=["empty", "cut", "changed", "not text", "too large", "too many"],
)
def test_damaged_peer_file_is_put_aside_and_counts_as_empty(store: Store, damage) -> None:
    store.save_peers([known(1), known(2)])
    path = store.path / PEERS_FILE
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    assert store.load_peers(WALL_S) == ()
    assert (store.path / f"{PEERS_FILE}.corrupt-{int(WALL_S)}").read_bytes() == damaged
    assert store.findings
    assert store.save_peers([known(3)]) is None
    assert len(store.load_peers(WALL_S)) == 1


def test_absent_peer_file_is_no_finding(store: Store) -> None:
    assert store.load_peers(WALL_S) == ()
    assert store.findings == []


def test_write_that_fails_comes_back_as_a_value_and_keeps_the_old_content(store: Store) -> None:
    """A limit on file size makes the kernel refuse the write as a full disk does, in a process of its own."""
    store.save_peers([known(1)])
    block = reserve_block(store)
    store.close()
    program = (
        "import resource, signal, sys, pathlib; from mesh.store import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = Store(pathlib.Path(sys.argv[1])); peers = store.load_peers(0.0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "print(store.save_peers(peers))\n"
        "try: store.reserve(store.reserved(0.0) + 1000)\n"
        "except OSError as error: print(error)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(store.path)], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.splitlines()
    assert len(output) == 2
    assert all("was not written" in line for line in output)
    with Store(store.path) as again:
        assert [peer.peer_id for peer in again.load_peers(WALL_S)] == [known(1).peer_id]
        assert reserve_block(again).start == block.stop
        assert not list(store.path.glob("*.new"))


def test_key_that_cannot_be_written_stops_the_first_start(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        (tmp_path / f"{KEY_FILE}.new").mkdir()
        with pytest.raises(StateError, match="was not written"):
            store.identity()


def test_fault_says_what_was_not_written() -> None:
    assert str(StoreFault(Path("/x/peers"), "No space left on device")) == "/x/peers was not written: No space left on device"


# Floors


def floor(index: int, least: int = 7) -> Floor:
    return Floor(RecordKey(index.to_bytes(8, "big")), least, WALL_S + index)


def test_floors_are_kept_as_they_were(store: Store) -> None:
    assert store.load_floors(WALL_S) == ()
    kept = [floor(1), floor(2**40, 2**63 - 1), Floor(RecordKey(b"\xff" * 8), 1, WALL_S + 0.5)]
    assert store.save_floors(kept) is None
    assert store.load_floors(WALL_S) == (*kept[:2], Floor(RecordKey(b"\xff" * 8), 1, float(math.ceil(WALL_S + 0.5))))
    assert (store.path / FLOORS_FILE).stat().st_mode & 0o777 == 0o600
    assert store.save_floors([]) is None
    assert store.load_floors(WALL_S) == ()
    assert store.findings == []


def test_as_many_floors_as_there_can_be_fit_the_file(store: Store) -> None:
    many = [Floor(RecordKey(index.to_bytes(8, "big")), 2**63 - 1, 1e13 - 1) for index in range(FLOORS_MAX + 5)]
    assert store.save_floors(many) is None
    assert (store.path / FLOORS_FILE).stat().st_size <= FILE_BYTES_MAX
    assert store.load_floors(WALL_S) == tuple(many[:FLOORS_MAX])
    assert TableConfig().tombstones_max <= FLOORS_MAX


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-9],
        lambda content: content.replace(b" 7 ", b" 6 "),
        lambda content: content + b"00 7 1\n",
        lambda content: b"\xff" * 100,
        lambda content: content * 40_000,
        lambda content: content.replace(b"isochrone-floors 1", b"isochrone-floors 2"),
    ],
    ids=["empty", "cut", "changed", "longer", "not text", "too large", "another version"],
)
def test_damaged_floors_are_put_aside_and_count_as_none(store: Store, damage) -> None:
    store.save_floors([floor(1), floor(2)])
    path = store.path / FLOORS_FILE
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    assert store.load_floors(WALL_S) == ()
    assert (store.path / f"{FLOORS_FILE}.corrupt-{int(WALL_S)}").read_bytes() == damaged
    assert store.findings
    assert store.save_floors([floor(3)]) is None
    assert store.load_floors(WALL_S) == (floor(3),)


@given(st.text() | st.text().map(lambda text: f"isochrone-floors 1 {zlib.crc32(text.encode()):08x}\n{text}"))
def test_any_text_is_floors_or_a_value_error(text: str) -> None:
    try:
        floors = floors_from_text(text)
    except (ValueError, UnicodeEncodeError):
        return
    assert floors_from_text(floors_text(floors)) == floors


def test_lock_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    state = tmp_path / "state"
    state.mkdir()
    (state / "lock").symlink_to(precious)
    with pytest.raises(StateError, match="cannot be used as state directory"):
        Store(state)
    assert precious.read_text() == "precious"


def test_links_beside_the_files_are_replaced_and_not_followed(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in (PEERS_FILE, f"{PEERS_FILE}.new", FLOORS_FILE, f"{FLOORS_FILE}.new"):
        (store.path / name).symlink_to(precious)
    assert store.save_peers([known(1)]) is None
    assert store.save_floors([floor(1)]) is None
    assert precious.read_text() == "precious"
    assert store.load_floors(WALL_S) == (floor(1),)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_directory_that_others_can_write_is_told(tmp_path: Path, mode: int) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(mode)
    with Store(state) as opened:
        assert any(f"chmod 700 {state}" in finding for finding in opened.findings)
    state.chmod(0o755)
    with Store(state) as opened:
        assert opened.findings == []


def test_directory_and_every_file_in_it_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Store(tmp_path / "state") as opened:
            opened.identity()
            reserve_block(opened)
            opened.save_peers([known(1)])
            opened.save_floors([floor(1)])
    finally:
        os.umask(old)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "state").iterdir()} == {0o600}
