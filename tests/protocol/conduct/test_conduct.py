"""Accounts stay within their limits, bans end, and whoever keeps an honest pace is never turned away."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.budget import Verdict
from protocol.conduct import (
    Account,
    Allowance,
    BanExpired,
    Conduct,
    ConductConfig,
    PeerBanned,
    PrefixBanned,
    prefix_of,
    prefix_text,
)
from protocol.conduct.machine import FAULTS
from protocol.errors import ErrorCode
from protocol.identity import PeerId

CONFIG = ConductConfig(
    wasted_bytes=Allowance(100.0, 1000.0, 500.0),
    frames=Allowance(10.0, 20.0, 20.0),
    streams=Allowance(5.0, 10.0),
    verifications=Allowance(2.0, 30.0, 10.0),
    work=Allowance(1.0, 4.0, 2.0),
    cpu=Allowance(0.2, 1.0),
    peers_max=3,
    bans_max=2,
    prefix_bans_max=2,
    ban_s=600.0,
)
HOME, AWAY = prefix_of("203.0.113.5"), prefix_of("2001:db8:1:200::9")


def peer(number: int) -> PeerId:
    return PeerId(bytes([number]) * 38)


def facts(conduct: Conduct) -> list:
    found = []
    while (fact := conduct.next_output()) is not None:
        found.append(fact)
    return found


def banned(now: float = 0.0, config: ConductConfig = CONFIG) -> Conduct:
    conduct = Conduct(config)
    conduct.connected(peer(1), HOME, now)
    for _ in range(4):
        conduct.fault(peer(1), ErrorCode.MALFORMED, now)
    return conduct


charges = st.tuples(
    st.sampled_from(Account),
    st.integers(0, 4),
    st.floats(0.0, 2000.0),
    st.floats(0.0, 50.0),
    st.sampled_from(["charge", "give", "fault"]),
)


@given(st.lists(charges, max_size=80))
def test_every_account_is_within_its_limits_at_each_step(steps):
    conduct, now = Conduct(CONFIG), 100.0
    for account, who, amount, pause_s, what in steps:
        now += pause_s
        match what:
            case "charge":
                conduct.charge(peer(who), account, amount, now)
            case "give":
                conduct.give_back(peer(who), account, amount, now)
            case "fault":
                conduct.fault(peer(who), min(FAULTS), now)
        conduct.handle_timer(now)
        assert len(conduct._peers) <= CONFIG.peers_max
        assert conduct.n_banned <= CONFIG.bans_max
        assert len(conduct._prefixes) <= CONFIG.prefix_bans_max
        for known, kept in conduct._peers.items():
            for each in kept.budgets:
                allowance = CONFIG.allowance(each)
                assert -allowance.debt_max - 1e-9 <= conduct.left(known, each, now) <= allowance.burst + 1e-9


@given(st.lists(charges, max_size=60))
def test_every_ban_ends(steps):
    conduct, now = Conduct(CONFIG), 100.0
    told = []
    for account, who, amount, pause_s, what in steps:
        now += pause_s
        conduct.handle_timer(now)
        if what == "fault":
            conduct.fault(peer(who), ErrorCode.MALFORMED, now)
        else:
            conduct.charge(peer(who), account, amount, now)
        told += facts(conduct)
    for who in range(5):
        assert not conduct.is_banned(peer(who), now + CONFIG.ban_s)
    while (due := conduct.next_timer()) is not None:
        assert due <= now + CONFIG.ban_s
        conduct.handle_timer(due)
    told += facts(conduct)
    began = [fact for fact in told if isinstance(fact, PeerBanned | PrefixBanned)]
    assert len([fact for fact in told if isinstance(fact, BanExpired)]) == len(began)
    assert conduct.n_banned == 0


@settings(max_examples=50)
@given(st.sampled_from(Account), st.lists(st.floats(0.001, 1.0), min_size=1, max_size=200))
def test_an_honest_pace_is_never_refused(account, shares):
    """Whoever takes no more than the rate since last time, in pieces no larger than the burst, is granted all of it."""
    conduct, now = Conduct(CONFIG), 0.0
    allowance = CONFIG.allowance(account)
    for share in shares:
        amount = share * allowance.burst
        now += amount / allowance.rate_per_s
        assert conduct.charge(peer(1), account, amount * (1 - 1e-9), now) is Verdict.GRANTED
    assert facts(conduct) == []


def test_what_is_beyond_the_burst_is_refused_and_beyond_the_debt_a_fault():
    conduct = Conduct(CONFIG)
    verdicts = [conduct.charge(peer(1), Account.WORK, 1, 0.0) for _ in range(7)]
    assert verdicts == [Verdict.GRANTED] * 4 + [Verdict.REFUSED] * 2 + [Verdict.FLOODED]
    assert not conduct.is_banned(peer(1), 0.0)


def test_the_fourth_fault_bans_and_the_ban_ends():
    conduct = banned(now=50.0)
    assert facts(conduct) == [PeerBanned(peer(1), ErrorCode.MALFORMED, 600.0)]
    assert conduct.is_banned(peer(1), 649.9)
    assert conduct.next_timer() == 650.0
    conduct.handle_timer(650.0)
    assert facts(conduct) == [BanExpired(peer(1))]
    assert not conduct.is_banned(peer(1), 650.0)


def test_faults_far_apart_are_forgiven():
    conduct = Conduct(CONFIG)
    for number in range(20):
        assert not conduct.fault(peer(1), ErrorCode.MALFORMED, 130.0 * number)


@pytest.mark.parametrize("code", sorted(set(ErrorCode) - FAULTS))
def test_what_happens_to_honest_peers_is_no_fault(code):
    conduct = Conduct(CONFIG)
    assert not any(conduct.fault(peer(1), code, 0.0) for _ in range(100))


def test_a_used_up_cpu_account_bans_at_once():
    conduct = Conduct(CONFIG)
    now = 0.0
    while conduct.charge(peer(1), Account.CPU, 0.01, now) is Verdict.GRANTED:
        now += 0.02  # half of a core
    assert now <= 5.0
    assert conduct.is_banned(peer(1), now)


def test_a_fifth_of_a_core_is_granted_for_ever():
    conduct = Conduct(CONFIG)
    assert all(conduct.charge(peer(1), Account.CPU, 0.00199, step * 0.01) is Verdict.GRANTED for step in range(10_000))


def test_coming_again_brings_no_new_allowance():
    conduct = Conduct(CONFIG)
    conduct.connected(peer(1), HOME, 0.0)
    while conduct.charge(peer(1), Account.STREAMS, 1, 0.0) is Verdict.GRANTED:
        pass
    conduct.disconnected(peer(1))
    conduct.connected(peer(1), HOME, 0.0)
    assert conduct.charge(peer(1), Account.STREAMS, 1, 0.0) is Verdict.FLOODED


def test_the_accounts_of_connected_peers_do_not_give_way():
    conduct = Conduct(CONFIG)
    conduct.connected(peer(1), HOME, 0.0)
    conduct.charge(peer(1), Account.STREAMS, 9, 0.0)
    for number in range(2, 30):
        conduct.connected(peer(number), HOME, 0.0)
        conduct.disconnected(peer(number))
    assert conduct.left(peer(1), Account.STREAMS, 0.0) == 1.0


def test_several_banned_peers_of_one_prefix_ban_it_and_no_other():
    conduct = Conduct(ConductConfig())
    for number in range(1, 5):
        conduct.connected(peer(number), HOME, 0.0)
        assert not conduct.is_banned_prefix(HOME, 0.0)
        conduct.ban(peer(number), ErrorCode.FLOODING, 0.0)
    assert conduct.is_banned_prefix(HOME, 0.0)
    assert not conduct.is_banned_prefix(AWAY, 0.0)
    assert not conduct.is_banned_prefix(None, 0.0)
    assert PrefixBanned(HOME, 600.0) in facts(conduct)
    assert not conduct.is_banned_prefix(HOME, 600.0)


def test_peers_in_the_owners_own_networks_ban_no_prefix():
    conduct = Conduct(ConductConfig())
    for number in range(1, 9):
        conduct.connected(peer(number), prefix_of("127.0.0.1"), 0.0)
        conduct.ban(peer(number), ErrorCode.FLOODING, 0.0)
    assert not any(isinstance(fact, PrefixBanned) for fact in facts(conduct))


def test_the_ban_that_ends_soonest_gives_way_to_newer_ones():
    conduct = Conduct(CONFIG)
    for number in range(1, 4):
        conduct.ban(peer(number), ErrorCode.FLOODING, float(number))
    assert [conduct.is_banned(peer(number), 5.0) for number in range(1, 4)] == [False, True, True]
    assert BanExpired(peer(1)) in facts(conduct)


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("203.0.113.5", "203.0.113.5/32"),
        ("2001:db8:1:2ff::9", "2001:db8:1:200::/56"),
        ("::ffff:203.0.113.5", "203.0.113.5/32"),
        ("127.0.0.1", None),
        ("10.1.2.3", None),
        ("fe80::1%eth0", None),
        ("::1", None),
    ],
)
def test_prefixes(host, text):
    prefix = prefix_of(host)
    assert (None if prefix is None else prefix_text(prefix)) == text


def test_an_owner_may_say_which_networks_are_not_counted():
    assert prefix_of("203.0.113.5", ("203.0.113.0/24",)) is None
    assert prefix_of("127.0.0.1", ()) == b"\x7f\0\0\x01"


def test_all_that_a_mesh_of_5000_nodes_has_to_tell_is_read_at_once_and_its_gossip_for_ever():
    """Cards, edges and verdicts of 1 KB a node in messages of 60 KB; then 160 records a second, each in a message of its own."""
    conduct = Conduct()
    for _ in range(5_000 * 1_000 // 60_000):
        assert conduct.charge(peer(1), Account.VERIFICATIONS, 1 + 60_000 // 256, 0.0) is Verdict.GRANTED
    for step in range(3600):
        now = step / 10
        assert all(conduct.charge(peer(1), Account.VERIFICATIONS, 1 + 500 // 256, now) is Verdict.GRANTED for _ in range(6))
    assert facts(conduct) == []
