"""Joining by an invitation over real sockets: counted, bound to the key, kept before it is given; a guest may do nothing else."""

import time

import pytest
import trio
from admitted_nodes import AdmittedNode, Owner, lone, running, until

from mesh.admission import files
from mesh.admission.asking import ask_to_join
from mesh.admission.joining import join_network
from mesh.nodefile import ClientError
from mesh.transport import ConnectionLost, Door, StreamReset
from protocol.admission import Admission, Granted, JoinRequest, Refused, Token, encode_guest, sign_token
from protocol.errors import ErrorCode
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.identity import Identity
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.wire.inference import PROTOCOL_ID

OWNER = Owner(1)
GUEST, SECOND = (Identity.from_seed(bytes([number]) * 32) for number in (90, 91))
DAY_S = 86_400


def invitation(node, *, uses=1, lasts_s=600, owner="lab2", number=1, issuer=None, root=None) -> bytes:
    now_s = int(time.time())
    signer = issuer or node.identity
    key = (root or OWNER.root).public_key
    address = node.address.with_peer(None)
    token = Token(key, bytes([number]) * 16, uses, now_s - 60, now_s - 60 + lasts_s, owner, ("gpu",), signer.peer_id, (address,))
    return sign_token(signer, token)


def guest_door(data: bytes) -> Door:
    admission = Admission(OWNER.root.public_key)

    def check(peer_id, proof):
        admission.check(peer_id, proof, time.time())
        return False

    return Door(lambda: encode_guest(data), check)


@pytest.fixture
async def issuer(tmp_path):
    node = AdmittedNode(tmp_path / "issuer", lambda identity: OWNER.membership(identity, delegated=True))
    async with running(node):
        yield node


async def refusal(data: bytes, identity=GUEST) -> str:
    with trio.fail_after(20):
        try:
            await join_network(data, identity, "")
        except* ClientError as errors:
            text = str(errors.exceptions[0])
        else:
            raise AssertionError("it was let in")
    return text


async def test_a_guest_becomes_a_member_by_an_invitation(issuer, tmp_path) -> None:
    before = issuer.state()
    membership, owner = await join_network(invitation(issuer), GUEST, "work")
    assert owner == "lab2"
    assert membership.name == "work"
    await until(lambda: issuer.state() == before)
    member = Admission(OWNER.root.public_key).check(GUEST.peer_id, membership.shown, time.time())
    assert (member.owner, member.roles) == ("lab2", ("gpu",))
    node = AdmittedNode(tmp_path / "node", lambda identity: OWNER.membership(identity), bootstrap=(issuer.address,))
    async with running(node):
        await until(lambda: issuer.knows(node.peer_id))


async def test_a_use_is_counted_once_for_each_key_and_kept_over_a_restart(issuer, tmp_path) -> None:
    data = invitation(issuer)
    first, _ = await join_network(data, GUEST, "")
    again, _ = await join_network(data, GUEST, "")
    assert first.root == again.root
    assert "token_refused" in await refusal(data, SECOND)
    kept = files.read_invites(issuer.config.state_dir, 10)
    assert [peers for used in kept.used for peers, _ in used.peers] == [GUEST.peer_id]
    await issuer.stop()
    restarted = AdmittedNode(issuer.config.state_dir, lambda identity: OWNER.membership(identity, delegated=True))
    async with running(restarted):
        moved = invitation(restarted)
        assert "token_refused" in await refusal(moved, SECOND)
        await join_network(moved, GUEST, "")


async def test_invitations_that_are_over_foreign_or_another_issuers_are_refused_before_anybody_is_dialled(issuer) -> None:
    assert "expired" in await refusal(invitation(issuer, lasts_s=30))
    broken = bytearray(invitation(issuer))
    broken[-1] ^= 1
    assert "refused" in await refusal(bytes(broken))


async def test_the_node_refuses_what_only_it_can_know(issuer) -> None:
    other = Owner(2)
    for data, code in (
        (invitation(issuer, root=other.root), ErrorCode.WRONG_NETWORK),
        (invitation(issuer, lasts_s=30), ErrorCode.EXPIRED),
        (invitation(issuer, issuer=SECOND), ErrorCode.NOT_ADMITTED),
    ):
        async with lone(GUEST, guest_door(data)) as caller:
            with pytest.raises(ConnectionLost) as caught:
                await caller.dial(issuer.address)
            assert caught.value.code is code
    assert files.read_invites(issuer.config.state_dir, 10).used == ()


async def test_a_guest_may_join_and_nothing_else(issuer) -> None:
    before = issuer.state()
    async with lone(GUEST, guest_door(invitation(issuer))) as caller:
        connection = await caller.dial(issuer.address)
        for protocol_id in (GOSSIP_PROTOCOL, PROTOCOL_ID, PING_PROTOCOL, "/isochrone/notices/1.0.0"):
            with pytest.raises(StreamReset) as caught:
                async with await connection.open_stream(protocol_id) as stream:
                    await stream.confirmed()
            assert caught.value.code is ErrorCode.UNSUPPORTED
        refused = await ask_to_join(connection, JoinRequest())
        assert isinstance(refused, Refused)
        assert refused.code is ErrorCode.NOT_ADMITTED
        assert issuer.state()[:-1] == before[:-1]
        assert isinstance(await ask_to_join(connection, JoinRequest(invitation(issuer))), Granted)
    await until(lambda: issuer.state() == before)


async def test_a_member_that_may_not_admit_refuses(tmp_path) -> None:
    node = AdmittedNode(tmp_path / "node", OWNER.membership)
    async with running(node):
        assert "does not let this one in" in await refusal(invitation(node))
        async with lone(GUEST, OWNER.door(GUEST)) as friend:
            answer = await ask_to_join(await friend.dial(node.address), JoinRequest())
            assert isinstance(answer, Refused)
            assert "no issuer" in answer.detail


async def test_no_certificate_leaves_before_its_use_is_on_the_disk(issuer) -> None:
    folder = issuer.config.state_dir
    (folder / (files.INVITES_FILE + ".new")).mkdir()  # what is written beside its place cannot be
    assert "cannot keep the use" in await refusal(invitation(issuer))
    (folder / (files.INVITES_FILE + ".new")).rmdir()
    await join_network(invitation(issuer), GUEST, "")


async def test_a_damaged_count_of_uses_stops_the_start(tmp_path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / files.INVITES_FILE).write_text("isochrone-invites 1 00000000\n{}\n")
    node = AdmittedNode(folder, OWNER.membership)
    with pytest.raises(ExceptionGroup) as caught:
        async with running(node):
            pass
    assert "invites is damaged" in str(caught.value.exceptions[0])
