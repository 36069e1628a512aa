"""Joining a network by an invitation: dial the node that made it, show it, and take what it gives.

The invitation names one node by its peer id. Nobody else is spoken to, and that node shows first that it belongs to the network
of the invitation; only then is anything taken from it.

Spec: docs/spec/09-admission.md, section "Joining".
"""

import time

import trio

from mesh.admission.asking import JOIN_TIMEOUT_S, ask_to_join
from mesh.admission.files import Membership
from mesh.nodefile import ClientError
from mesh.transport import ConnectionLost, Door, StreamReset, Transport
from protocol.admission import Admission, Granted, JoinRequest, Refused, Token, encode_guest, network_id_of, open_token
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import Identity, PeerId, peer_id_text

ADVICE = {
    ErrorCode.TOKEN_REFUSED: "ask for a new invitation",
    ErrorCode.EXPIRED: "ask for a new invitation, and look whether this machine's clock is right",
    ErrorCode.NOT_YET_VALID: "this machine's clock is late: set it",
    ErrorCode.REVOKED: "this node was put out of the network; its owner can invite it anew",
    ErrorCode.BAD_SIGNATURE: "somebody changed it on its way: ask for it again on another one",
}
"""What a person does about a refusal."""


async def join_network(data: bytes, identity: Identity, name: str) -> tuple[Membership, str]:
    """Get a certificate by an invitation.

    Args:
        data: the invitation.
        identity: this node's key.
        name: what the network is called here; its id where empty.

    Returns:
        What to keep, and whose machine this is now.

    Raises:
        ClientError: the invitation or its issuer does not let this node in; the text says what to do.
    """
    try:
        token = open_token(data)
        admission = Admission(token.root)
        admission.check_token(token, token.issuer, identity.peer_id, time.time())
    except RemoteProtocolError as fault:
        raise _refused(fault.code, fault.detail) from fault
    if not token.addresses:
        raise ClientError("the invitation does not say where its node answers: ask for one that was made with --address")
    answer = await _ask(data, token, identity, admission)
    if isinstance(answer, Refused):
        raise _refused(answer.code, answer.detail)
    try:
        member = admission.check(identity.peer_id, answer.shown, time.time())
    except RemoteProtocolError as fault:
        raise ClientError(f"what {peer_id_text(token.issuer)} gave is no certificate of this node ({fault.detail})") from fault
    issuers = tuple(address.with_peer(token.issuer) for address in token.addresses)
    return Membership(token.root, name or network_id_of(token.root), answer.shown, issuers=issuers), member.owner


async def _ask(data: bytes, token: Token, identity: Identity, admission: Admission) -> Granted | Refused:
    """Ask the one node that may answer, at each of its addresses."""

    def check(peer_id: PeerId, proof: bytes) -> bool:
        admission.check(peer_id, proof, time.time())
        return False

    shown = encode_guest(data)
    transport = Transport(identity, door=Door(lambda: shown, check))
    faults: list[str] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        for address in token.addresses:
            try:
                with trio.fail_after(JOIN_TIMEOUT_S):
                    connection = await transport.dial(address.with_peer(token.issuer))
                    answer = await ask_to_join(connection, JoinRequest(data))
                    await transport.aclose()
                    return answer
            except (ConnectionLost, StreamReset, RemoteProtocolError, trio.TooSlowError) as error:
                faults.append(f"{address}: {error or 'no answer'}")
        await transport.aclose()
    raise ClientError(
        f"the node that made the invitation ({peer_id_text(token.issuer)}) does not let this one in: {'; '.join(faults)}; see "
        "that it runs and that its UDP port can be reached from here"
    )


def _refused(code: ErrorCode, detail: str) -> ClientError:
    advice = ADVICE.get(code)
    return ClientError(f"the invitation is refused ({code.name.lower()}): {detail}{f'; {advice}' if advice else ''}")
