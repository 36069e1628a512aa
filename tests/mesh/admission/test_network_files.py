"""What is kept on disk: round trips, damage that is never taken for nothing, and how a node enters its network when it starts."""

import os
import time
from dataclasses import replace

import pytest
from admitted_nodes import Owner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.admission import files
from mesh.admission.entering import enter
from mesh.admission.files import Membership
from mesh.config import StartError
from mesh.store import StateError
from protocol.admission import Admission, Invites, Issuer, NoticeKind, Revocation, Token, sign_notice
from protocol.errors import RemoteProtocolError
from protocol.identity import Identity
from protocol.multiaddr import parse_multiaddr

OWNER = Owner(1)
NODE, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (60, 61))
ADDRESS = parse_multiaddr("/ip4/192.0.2.7/udp/4001/quic-v1").with_peer(NODE.peer_id)
DAY_S = 86_400


def admitted(membership: Membership, identity: Identity, wall_s: float | None = None):
    return Admission(membership.root).check(identity.peer_id, membership.shown, time.time() if wall_s is None else wall_s)


@pytest.mark.parametrize("delegated", [True, False])
def test_membership_round_trips(tmp_path, delegated) -> None:
    value = replace(OWNER.membership(NODE, delegated=delegated), issuers=(ADDRESS,))
    assert files.write_membership(tmp_path, value) is None
    assert files.read_membership(tmp_path) == value
    assert (tmp_path / files.MEMBERSHIP_FILE).stat().st_mode & 0o777 == 0o600


def test_no_membership_is_none(tmp_path) -> None:
    assert files.read_membership(tmp_path) is None


def used_invites() -> Invites:
    invites = Invites(4)
    now_s = int(time.time())
    token = Token(OWNER.root.public_key, bytes(16), 2, now_s, now_s + 100, "", (), NODE.peer_id, ())
    invites.redeem(token, OTHER.peer_id, now_s)
    return invites


def test_uses_and_notices_round_trip(tmp_path) -> None:
    invites = used_invites()
    assert files.write_invites(tmp_path, invites) is None
    assert files.read_invites(tmp_path, 4).used == invites.used
    now_s = int(time.time())
    entry = Revocation(OTHER.peer_id, now_s, now_s + 10, "x")
    notice = sign_notice(NODE, OWNER.root.public_key, OWNER.delegate(NODE), 3, now_s, (entry,), NoticeKind.REVOCATIONS)
    assert files.write_notice(tmp_path, notice) is None
    (path,) = files.notice_stamps(tmp_path)
    assert files.read_notice(path) == (notice.data, notice.delegation)


@given(st.integers(0, 2000), st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_never_taken_for_nothing(tmp_path, position, change) -> None:
    files.write_membership(tmp_path, OWNER.membership(NODE))
    files.write_invites(tmp_path, used_invites())
    for name, read in (
        (files.MEMBERSHIP_FILE, files.read_membership),
        (files.INVITES_FILE, lambda at: files.read_invites(at, 4)),
    ):
        path = tmp_path / name
        content = bytearray(path.read_bytes())
        content[position % (len(content) - 1)] ^= change
        path.write_bytes(content)
        with pytest.raises(StateError, match="is damaged"):
            read(tmp_path)


# Entering


def enter_at(folder, network, identity=NODE, wall_s=None):
    folder.mkdir(exist_ok=True, parents=True)
    return enter(folder, network, identity, time.time() if wall_s is None else wall_s, os.urandom)


def test_the_nodes_of_a_user_belong_together_with_nothing_to_set_up(tmp_path) -> None:
    one = enter_at(tmp_path / "one", tmp_path / "network")
    two = enter_at(tmp_path / "two", tmp_path / "network", OTHER)
    assert one.root == two.root
    assert admitted(one, NODE).is_issuer
    admitted(two, OTHER)
    assert (tmp_path / "network" / files.ROOT_FILE).stat().st_mode & 0o777 == 0o600
    again = enter_at(tmp_path / "one", tmp_path / "network")
    assert again.root == one.root
    assert again.shown != one.shown
    assert admitted(again, NODE).admitted_s == admitted(one, NODE).admitted_s
    assert enter_at(tmp_path / "three", tmp_path / "another").root != one.root


def test_a_key_that_lies_elsewhere_is_not_needed_while_the_delegation_lasts(tmp_path) -> None:
    network = tmp_path / "network"
    first = enter_at(tmp_path / "one", network)
    (network / files.ROOT_FILE).rename(tmp_path / "offline.pem")
    later = enter_at(tmp_path / "one", network)
    assert later.delegation == first.delegation
    assert later.shown != first.shown
    month_s = time.time() + 40 * DAY_S
    assert admitted(enter_at(tmp_path / "one", network, wall_s=month_s), NODE, month_s).ends_s > month_s
    with pytest.raises(StartError, match=r"no member of network.*isochrone join TOKEN"):
        enter_at(tmp_path / "one", network, wall_s=time.time() + 400 * DAY_S)
    with pytest.raises(StartError, match=r"has no key here.*isochrone join TOKEN"):
        enter_at(tmp_path / "two", network, OTHER)


def test_a_joined_network_comes_before_the_users_own(tmp_path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    files.write_membership(folder, OWNER.membership(NODE))
    assert enter_at(folder, tmp_path / "network").root == OWNER.root.public_key
    assert not (tmp_path / "network").exists()
    with pytest.raises(StartError, match=r"expired.*isochrone join TOKEN.*isochrone network leave"):
        enter_at(folder, tmp_path / "network", wall_s=time.time() + 2 * DAY_S)
    with pytest.raises(StartError, match="another peer"):
        enter_at(folder, tmp_path / "network", OTHER)


def test_an_issuer_goes_on_by_its_delegation(tmp_path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    files.write_membership(folder, OWNER.membership(NODE, delegated=True, end_s=10))
    later_s = time.time() + 3600
    membership = enter_at(folder, tmp_path / "network", wall_s=later_s)
    assert admitted(membership, NODE, later_s).ends_s > later_s
    assert Issuer(NODE, membership.delegation).network_id == OWNER.network_id


def test_a_damaged_network_directory_makes_no_new_network(tmp_path) -> None:
    network = tmp_path / "network"
    enter_at(tmp_path / "one", network)
    (network / files.NETWORK_FILE).write_text("rubbish")
    with pytest.raises(StartError, match="cannot be read"):
        enter_at(tmp_path / "one", network)
    (network / files.NETWORK_FILE).unlink()
    with pytest.raises(StartError, match="exists already"):
        enter_at(tmp_path / "one", network)


def test_the_key_of_another_network_is_noticed(tmp_path) -> None:
    enter_at(tmp_path / "one", tmp_path / "a")
    enter_at(tmp_path / "two", tmp_path / "b", OTHER)
    (tmp_path / "b" / files.ROOT_FILE).replace(tmp_path / "a" / files.ROOT_FILE)
    with pytest.raises(StartError, match="is not the key of the network"):
        enter_at(tmp_path / "one", tmp_path / "a")
    with pytest.raises(RemoteProtocolError):
        admitted(files.read_membership(tmp_path / "one"), OTHER)
