"""Nodes of a private network: they find each other, and others get nowhere and leave nothing behind."""

import functools
import time
from dataclasses import replace

import pytest
from admitted_nodes import AdmittedNode, Owner, lone, running, until
from mesh_nodes import PlannedEngine, text_of

from mesh.admission import files
from mesh.transport import ConnectionLost, Door, StreamReset
from protocol.admission import (
    NOTICES_PROTOCOL,
    Federated,
    Notice,
    NoticeKind,
    Revocation,
    encode_notice_frame,
    open_delegation,
    sign_notice,
)
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.identity import Identity
from protocol.records import RecordKind

OWNER, OTHER = Owner(1), Owner(2)
STRANGER = Identity.from_seed(bytes([77]) * 32)
DAY_S = 86_400


def member(**changes):
    return functools.partial(OWNER.membership, **changes)


def revocations(*peer_ids, owner=OWNER, sequence=1) -> Notice:
    now_s = int(time.time())
    entries = tuple(Revocation(peer_id, now_s, now_s + DAY_S, "lost") for peer_id in peer_ids)
    return sign_notice(owner.root, owner.root.public_key, b"", sequence, now_s, entries, NoticeKind.REVOCATIONS)


def federation(other=OTHER, owner=OWNER, nodes=4, requests=2) -> Notice:
    now_s = int(time.time())
    entries = (Federated(other.root.public_key, "them", nodes, requests, now_s + DAY_S),)
    return sign_notice(owner.root, owner.root.public_key, b"", 1, now_s, entries, NoticeKind.FEDERATION)


@pytest.mark.parametrize("quic_engine", ["aioquic", "qh3"])
async def test_members_answer_for_each_other(tmp_path, quic_engine) -> None:
    one = AdmittedNode(tmp_path / "one", member(), quic_engine=quic_engine, engines=(PlannedEngine(),))
    async with running(one):
        two = AdmittedNode(tmp_path / "two", member(owner="ben"), bootstrap=(one.address,), quic_engine=quic_engine)
        async with running(two):
            await until(lambda: one.knows(two.peer_id) and two.knows(one.peer_id))
            answer = await two.chat()
            assert answer.headers["x-mesh-node"] == one.name
            assert text_of(answer)
            (row,) = one.service.dispatcher.peers()
            assert (row["owner"], row["network"]) == ("ben", OWNER.network_id)
            told = one.service.dispatcher.status()["membership"]
            assert (told["standing"], told["network"]) == ("member", OWNER.network_id)
            assert not one.service.fabrics.is_trusted(two.peer_id)
            third = AdmittedNode(tmp_path / "third", member(), bootstrap=(one.address,), quic_engine=quic_engine)
            async with running(third):
                await until(lambda: one.knows(third.peer_id))
                assert one.service.fabrics.is_trusted(third.peer_id), "RDMA is for nodes of one owner"


@pytest.mark.parametrize("quic_engine", ["aioquic", "qh3"])
@pytest.mark.parametrize(
    ("proof", "told"),
    [
        (b"", ErrorCode.NOT_ADMITTED),
        (b"rubbish", ErrorCode.BAD_CERTIFICATE),
        (OTHER.shown(STRANGER), ErrorCode.WRONG_NETWORK),
        (OWNER.shown(STRANGER, start_s=-200, end_s=-100), ErrorCode.EXPIRED),
        (OWNER.shown(STRANGER, start_s=1000), ErrorCode.NOT_ADMITTED),
        (OWNER.shown(OTHER.issuer), ErrorCode.BAD_CERTIFICATE),
    ],
    ids=["nothing", "rubbish", "foreign", "expired", "too early", "another's"],
)
async def test_who_is_no_member_is_refused_by_an_alert_and_leaves_nothing(tmp_path, quic_engine, proof, told) -> None:
    node = AdmittedNode(tmp_path / "node", member(delegated=True), quic_engine=quic_engine)
    async with running(node):
        friend = AdmittedNode(tmp_path / "friend", member(), quic_engine=quic_engine, bootstrap=(node.address,))
        async with running(friend), lone(STRANGER, OWNER.door(STRANGER, proof)) as stranger:
            await until(lambda: node.knows(friend.peer_id))
            before = node.state()
            with pytest.raises(ConnectionLost) as caught:
                await stranger.dial(node.address)
            assert caught.value.code is told
            assert node.state() == before
            assert STRANGER.peer_id not in node.known
            assert node.service.transport.endpoint.n_strangers == 0


async def test_a_member_lets_no_stranger_answer_its_dial(tmp_path) -> None:
    """Both sides check: a member that dials finds out who is none, and says so."""
    async with lone() as stranger, lone(OWNER.issuer, OWNER.door(OWNER.issuer)) as dialler:
        with pytest.raises(ConnectionLost) as caught:
            await dialler.dial(stranger.addresses[0])
        assert caught.value.code is ErrorCode.NOT_ADMITTED
        assert not dialler.connections


async def test_who_is_revoked_while_connected_is_put_out_by_all(tmp_path) -> None:
    first = AdmittedNode(tmp_path / "first", member())
    async with running(first):
        second = AdmittedNode(tmp_path / "second", member(), bootstrap=(first.address,))
        third = AdmittedNode(tmp_path / "third", member(), bootstrap=(first.address,))
        async with running(second, third):
            nodes = (first, second, third)
            await until(lambda: all(a.knows(b.peer_id) for a in nodes for b in nodes if a is not b))
            assert files.write_notice(first.config.state_dir, revocations(third.peer_id)) is None
            await until(lambda: third.peer_id not in first.connected | second.connected | first.known | second.known)
            assert {line["code"] for line in third.logged("peer disconnected")} <= {"REVOKED", "revoked", 17}
            assert list((second.config.state_dir / files.NOTICES_FOLDER).iterdir())
            assert first.service.node.table.get(third.peer_id, RecordKind.CARD) is None
            assert second.knows(first.peer_id)
        async with lone(third.identity, OWNER.door(third.identity)) as again:
            with pytest.raises(ConnectionLost) as caught:
                await again.dial(first.address)
            assert caught.value.code is ErrorCode.REVOKED


async def test_a_revocation_stands_after_a_restart_and_an_older_list_changes_nothing(tmp_path) -> None:
    revoked = Identity.from_seed(bytes([78]) * 32)
    folder = tmp_path / "node"
    folder.mkdir()
    assert files.write_notice(folder, revocations(revoked.peer_id, sequence=5)) is None
    for _ in range(2):
        node = AdmittedNode(folder, member())
        async with running(node):
            async with lone(revoked, OWNER.door(revoked)) as caller:
                with pytest.raises(ConnectionLost) as caught:
                    await caller.dial(node.address)
                assert caught.value.code is ErrorCode.REVOKED
            old = revocations(sequence=4)
            async with lone(OWNER.issuer, OWNER.door(OWNER.issuer)) as friend:
                connection = await friend.dial(node.address)
                async with await connection.open_stream(NOTICES_PROTOCOL) as stream:
                    frame = encode_frame(encode_notice_frame(old.data, old.delegation))
                    await stream.send_all(frame, end=True)
                    while await stream.receive_some():
                        pass
                assert node.gate.admission.notice_of(NoticeKind.REVOCATIONS, OWNER.root.peer_id).sequence == 5
            await node.stop()


async def test_a_forged_notice_ends_the_connection_of_who_tells_it(tmp_path) -> None:
    node = AdmittedNode(tmp_path / "node", member())
    notice = revocations(OWNER.issuer.peer_id)
    forged = notice.data[:70] + bytes([notice.data[70] ^ 1]) + notice.data[71:]
    async with running(node), lone(OWNER.issuer, OWNER.door(OWNER.issuer)) as liar:
        connection = await liar.dial(node.address)
        stream = await connection.open_stream(NOTICES_PROTOCOL)
        await stream.send_all(encode_frame(encode_notice_frame(forged, b"")), end=True)
        await until(lambda: connection.lost is not None)
        assert connection.lost.code in (ErrorCode.BAD_SIGNATURE, ErrorCode.MALFORMED)
        assert node.gate.admission.notices() == ()


async def test_a_certificate_that_ends_while_connected_ends_the_connection(tmp_path) -> None:
    node = AdmittedNode(tmp_path / "node", member())
    short = OWNER.shown(STRANGER, end_s=3)
    async with running(node), lone(STRANGER, OWNER.door(STRANGER, short)) as caller:
        connection = await caller.dial(node.address)
        await until(lambda: connection.lost is not None)
        assert connection.lost.code is ErrorCode.EXPIRED
        assert STRANGER.peer_id not in node.connected


async def test_a_member_renews_in_time_and_shows_the_new_certificate(tmp_path) -> None:
    issuer = AdmittedNode(tmp_path / "issuer", member(delegated=True))
    async with running(issuer):
        node = AdmittedNode(tmp_path / "node", member(start_s=-100, end_s=25), bootstrap=(issuer.address,))
        async with running(node):
            first = node.gate.membership.shown
            await until(lambda: node.gate.membership.shown != first)
            own = node.gate.own()
            assert own is not None
            assert own.ends_s > time.time() + DAY_S / 2
            assert files.read_membership(node.config.state_dir).shown == node.gate.membership.shown
            await until(lambda: node.knows(issuer.peer_id))
            card = lambda: issuer.service.node.table.get(node.peer_id, RecordKind.CARD)  # noqa: E731
            await until(lambda: card() is not None and card().payload.membership == node.gate.membership.shown)
            assert node.peer_id in issuer.connected
            async with lone(OWNER.issuer, OWNER.door(OWNER.issuer)) as other:
                await other.dial(node.address)


async def test_a_renewal_that_fails_is_told(tmp_path) -> None:
    node = AdmittedNode(tmp_path / "node", member(start_s=-100, end_s=40))
    async with running(node):
        await until(lambda: node.gate.renewal_fault)
        assert "no issuer" in node.service.dispatcher.status()["membership"]["renewal_failed"]
        assert node.logged("the certificate of this node was not renewed")


async def test_the_key_in_the_network_directory_renews_what_was_delegated(tmp_path) -> None:
    owner, directory = Owner(4, days_ago=10), tmp_path / "network"
    with files.locked(directory):
        files.write_network(directory, owner.root, "test", directory / files.ROOT_FILE)
    key = (directory / files.ROOT_FILE).rename(tmp_path / "offline.pem")

    def membership(peer):
        return replace(owner.membership(peer, delegated=True), is_home=True)

    node = AdmittedNode(tmp_path / "node", membership, network_dir=directory)
    async with running(node):
        given, shown = node.gate.membership.delegation, node.gate.membership.shown
        node.gate._renew_delegation()
        assert node.gate.membership.delegation == given, "the key is not here"
        key.rename(directory / files.ROOT_FILE)
        await until(lambda: node.gate.membership.delegation != given)
        assert open_delegation(node.gate.membership.delegation).not_after_s > time.time() + 360 * DAY_S
        assert node.gate.membership.shown != shown
        assert files.read_membership(node.config.state_dir) == node.gate.membership
        again = node.gate.membership
        node.gate.look()
        node.gate._renew_delegation()
        assert node.gate.membership is again, "once is enough"


async def test_where_a_node_was_invited_from_it_joins_at_every_start_and_when_told_while_it_runs(tmp_path) -> None:
    first = AdmittedNode(tmp_path / "first", member())
    async with running(first):
        two = AdmittedNode(tmp_path / "two", lambda peer: replace(OWNER.membership(peer), issuers=(first.address,)))
        three = AdmittedNode(tmp_path / "three", member())
        async with running(two, three):
            await until(lambda: first.knows(two.peer_id))
            assert not three.connected
            written = replace(three.gate.membership, issuers=(first.address,))
            assert files.write_membership(three.config.state_dir, written) is None
            await until(lambda: first.knows(three.peer_id))


async def test_who_is_put_out_says_so_and_who_puts_out_does_too(tmp_path) -> None:
    first = AdmittedNode(tmp_path / "first", member())
    async with running(first):
        second = AdmittedNode(tmp_path / "second", member(), bootstrap=(first.address,))
        async with running(second):
            await until(lambda: second.knows(first.peer_id) and first.knows(second.peer_id))
            assert files.write_notice(first.config.state_dir, revocations(second.peer_id)) is None
            told = lambda node: node.service.dispatcher.status()["membership"]  # noqa: E731
            await until(lambda: "turned_away" in told(second))
            assert told(second)["turned_away"].endswith(": revoked")
            assert told(first)["revoked"] == [f"{second.name}: lost"]
            assert "turned_away" not in told(first)


async def test_federated_members_meet_within_their_quota_of_requests(tmp_path) -> None:
    ours = AdmittedNode(tmp_path / "ours", member(), engines=(PlannedEngine(),))
    async with running(ours):
        theirs = AdmittedNode(tmp_path / "theirs", OTHER.membership, bootstrap=(ours.address,))
        async with running(theirs):
            await until(lambda: theirs.logged("address cannot be reached; it is tried again from time to time"))
            assert not ours.connected
            files.write_notice(ours.config.state_dir, federation(requests=1))
            files.write_notice(theirs.config.state_dir, federation(other=OWNER, owner=OTHER))
            await until(lambda: ours.knows(theirs.peer_id) and theirs.knows(ours.peer_id))
            assert (await theirs.chat()).headers["x-mesh-node"] == ours.name
            assert ours.gate.begin_request(theirs.peer_id) == OTHER.network_id
            assert ours.gate.begin_request(theirs.peer_id) is None
            with pytest.raises(Exception, match="quota of requests"):
                await theirs.chat(deadline_s=5)
            ours.gate.end_request(OTHER.network_id)
            assert (await theirs.chat()).headers["x-mesh-node"] == ours.name
            (row,) = ours.service.dispatcher.peers()
            assert row["network"] == OTHER.network_id


async def test_copied_certificates_hold_no_place_of_a_federated_network(tmp_path) -> None:
    """Whoever shows the certificates of others in handshakes that it cannot finish keeps nobody out."""
    node = AdmittedNode(tmp_path / "node", member())
    async with running(node):
        files.write_notice(node.config.state_dir, federation(nodes=1))
        await until(lambda: node.gate.admission.networks(time.time()))
        copied, genuine = Identity.from_seed(bytes([80]) * 32), Identity.from_seed(bytes([81]) * 32)
        node.gate.check(copied.peer_id, OTHER.shown(copied))
        async with lone(genuine, Door(lambda: OTHER.shown(genuine), lambda _peer, _proof: False)) as caller:
            await caller.dial(node.address)
            assert genuine.peer_id in node.connected
            with pytest.raises(RemoteProtocolError):
                node.gate.check(copied.peer_id, OTHER.shown(copied))


async def test_a_certificate_that_cannot_be_longer_is_no_renewal(tmp_path) -> None:
    """An issuer whose delegation ends soon says that nobody gives it a longer certificate, and keeps the one it has."""
    owner = Owner(3, days_ago=10)
    node = AdmittedNode(tmp_path / "node", lambda peer: owner.membership(peer, delegated=True, start_s=-3 * DAY_S))
    async with running(node):
        shown = node.gate.membership.shown
        await until(lambda: node.gate.renewal_fault)
        assert "ends as soon" in node.gate.renewal_fault
        assert node.gate.membership.shown == shown


async def test_members_speak_the_mesh_and_not_gossip_alone(tmp_path) -> None:
    """A bare transport with a certificate is let in, and may open every protocol."""
    node = AdmittedNode(tmp_path / "node", member())
    async with running(node), lone(OWNER.issuer, OWNER.door(OWNER.issuer)) as friend:
        connection = await friend.dial(node.address)
        async with await connection.open_stream(GOSSIP_PROTOCOL) as stream:
            await stream.confirmed()
        with pytest.raises(StreamReset):
            async with await connection.open_stream("/isochrone/nothing/1.0.0") as stream:
                await stream.confirmed()
