"""The gate of a running node: who is let in, who is put out, and how this node stays a member.

In the handshake the transport asks `check`. Everything else follows once a second: what the commands have written is taken over,
connections of peers that are members no more are closed, peers that have not heard the newest notices are told them, and the
node's own certificate is renewed in good time, by itself where it is an issuer and otherwise by an issuer it is connected to or
knows the address of.

Spec: docs/spec/09-admission.md.
"""

from collections.abc import Callable
from pathlib import Path

import trio

from mesh.admission import files
from mesh.admission.asking import JOIN_TIMEOUT_S, ask_to_join, one_frame
from mesh.admission.entering import delegated_anew
from mesh.admission.files import Membership
from mesh.config import StartError
from mesh.machine import Machine
from mesh.outbox import read_frames
from mesh.store import StateError
from mesh.telemetry import Telemetry
from mesh.transport import Connection, ConnectionLost, Door, Stream, StreamReset, Transport
from protocol.admission import (
    JOIN_PROTOCOL,
    NOTICE_FRAME_BYTES_MAX,
    NOTICES_PROTOCOL,
    Admission,
    Granted,
    Issuer,
    JoinAnswer,
    JoinRequest,
    Member,
    Refused,
    decode_join_request,
    decode_notice_frame,
    encode_join_answer,
    encode_notice_frame,
    open_token,
    renewal_due_s,
)
from protocol.budget import Budget, Verdict
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, PeerId, peer_id_text
from protocol.libp2p.identify import IDENTIFY_PROTOCOL
from protocol.multiaddr import Multiaddr
from protocol.node import Node, expel

LOOK_S = 1.0
"""Seconds between two looks at connections and files: a peer that is put out is gone within two seconds."""

SWEEP_S = 30.0
"""Seconds between two looks at everybody known, connected or not: their certificates end by days, and revocations are acted on
at once."""

RENEW_RETRY_MIN_S, RENEW_RETRY_MAX_S = 2.0, 300.0
"""Pause in seconds before issuers are asked again, twice as long each time: a node that just started is connected to none yet,
and a third of a certificate's validity is days."""

RENEW_GAIN_S_MIN = 600
"""A certificate that lasts less than so many seconds longer than the one before is no renewal: its issuer's delegation ends."""

PROVEN_MAX = 1024
"""Proofs of connections remembered, a count: twice the connections of a node, for those that come and go."""

NOTICES_PER_S, NOTICES_BURST, NOTICES_DEBT = 1.0, 128.0, 256.0
"""Notices taken of one peer, a second and at once, and how many more are refused before it is hung up on: whoever connects tells
all that stand, and each costs up to three verifications."""

TURNED_AWAY = (ErrorCode.NOT_ADMITTED, ErrorCode.REVOKED, ErrorCode.EXPIRED, ErrorCode.WRONG_NETWORK)
"""Codes by which peers say that this node is no member."""

TELLING_MAX = 16
"""Peers that are told notices at a time."""


class Gate:
    """Admission of one node; see the module's docstring.

    Attributes:
        admission: the checks.
        membership: what this node was given.
        moved: set when the node was made a member of another network, and has to begin anew.
        renewal_fault: why the node's certificate was not renewed though it is time; empty while all is well.
        away: who turned this node away last, and why; empty while it is connected to anybody.
    """

    def __init__(
        self,
        state_dir: Path,
        identity: Identity,
        membership: Membership,
        telemetry: Telemetry,
        machine: Machine,
        network_dir: Path | None = None,
    ) -> None:
        """Takes what is kept on disk.

        Args:
            state_dir: the node's.
            identity: the node's key.
            membership: what it was given.
            telemetry: for log lines.
            machine: its clocks and its luck.
            network_dir: the user's, where the network's key may lie.

        Raises:
            StateError: it is damaged.
        """
        self.admission = Admission(membership.root)
        self.membership = membership
        self.moved = trio.Event()
        self.renewal_fault = ""
        self.away = ""
        self._state_dir = state_dir
        self._network_dir = network_dir
        self._identity = identity
        self._telemetry = telemetry
        self._machine = machine
        self._proven: dict[tuple[PeerId, bytes], Member] = {}
        self._working: dict[str, int] = {}  # requests under way of federated networks
        self._issuer: tuple[bytes, Issuer | None] | None = None  # by the delegation it was made of
        self._stamps: dict[Path, int] = {}
        self._told: dict[PeerId, int] = {}
        self._version = 1
        self._ask_at = self._delegate_at = float("-inf")
        self._retry_s = RENEW_RETRY_MIN_S
        self._sweep_at = float("-inf")
        self._telling = trio.CapacityLimiter(TELLING_MAX)
        self._budgets: dict[PeerId, Budget] = {}
        self._invites = files.read_invites(state_dir, self.admission.config.tokens_max)
        self._node: Node | None = None
        self._settle: Callable[[], None] = lambda: None
        self._transport: Transport | None = None
        self._membership_stamp = files.stamp_of(state_dir / files.MEMBERSHIP_FILE)
        self._take_files()
        self._take_files()  # notices of federated networks, which are let in by those before

    @property
    def network_id(self) -> str:
        """The network that this node belongs to."""
        return self.admission.network_id

    @property
    def door(self) -> Door:
        """What the transport asks."""
        return Door(lambda: self.membership.shown, self.check, frozenset((JOIN_PROTOCOL, IDENTIFY_PROTOCOL)))

    @property
    def issuer(self) -> Issuer | None:
        """What this node may sign with, None where nothing was delegated to it or no more."""
        delegation = self.membership.delegation
        if self._issuer is None or self._issuer[0] != delegation:  # each call would verify a signature
            self._issuer = (delegation, self._issuer_by(delegation))
        issuer = self._issuer[1]
        return issuer if issuer is not None and issuer.delegation.not_after_s > self._machine.wall() else None

    def _issuer_by(self, delegation: bytes) -> Issuer | None:
        if not delegation:
            return None
        try:
            return Issuer(self._identity, delegation)
        except RemoteProtocolError as fault:
            self._telemetry.log.warning(
                "what was delegated to this node cannot be used", code=fault.code.name, detail=fault.detail
            )
            return None

    def own(self) -> Member | None:
        """What this node is, None once its certificate has ended or was taken back."""
        try:
            return self.admission.check(self._identity.peer_id, self.membership.shown, self._machine.wall())
        except RemoteProtocolError:
            return None

    def attach(self, node: Node, transport: Transport, settle: Callable[[], None]) -> None:
        """Takes the parts that it watches over; `settle` drains the core."""
        self._node, self._transport, self._settle = node, transport, settle
        node.handle_membership(self.membership.shown)
        transport.add_handler(JOIN_PROTOCOL, self._serve_join)
        transport.add_handler(NOTICES_PROTOCOL, self._serve_notices)

    # The handshake

    def check(self, peer_id: PeerId, proof: bytes) -> bool:
        """Let a member in, or a guest with an invitation of this node; says whether it is a guest.

        Raises:
            RemoteProtocolError: it is neither.
        """
        wall_s = self._machine.wall()
        try:
            member = self._member(peer_id, proof, wall_s)
        except RemoteProtocolError as fault:
            if fault.code is not ErrorCode.NOT_ADMITTED or not proof or self.issuer is None:
                self._telemetry.log.info(
                    "peer not admitted", peer=peer_id_text(peer_id), code=fault.code.name, detail=fault.detail
                )
                raise
            self.admission.check_guest(self._identity.peer_id, peer_id, proof, wall_s)
            return True
        self._proven.pop((peer_id, member.issuer), None)
        self._proven[peer_id, member.issuer] = member
        if len(self._proven) > PROVEN_MAX:
            del self._proven[next(iter(self._proven))]
        return False

    def _member(self, peer_id: PeerId, proof: bytes, wall_s: float) -> Member:
        """Check a proof; where the quota of its network is used up, places that nobody sits on are freed first.

        Whoever copies the certificates of others into handshakes of its own fills places, and is not let in.
        """
        try:
            return self.admission.check(peer_id, proof, wall_s)
        except RemoteProtocolError as fault:
            if fault.code is not ErrorCode.NOT_ADMITTED or not self._free_places():
                raise
        return self.admission.check(peer_id, proof, wall_s)

    def _free_places(self) -> bool:
        """Forget members of other networks who are neither connected nor known; whether there were any."""
        assert self._node is not None
        assert self._transport is not None
        idle = [
            peer_id
            for peer_id in self.admission.foreign()
            if self._node.table.heard_at(peer_id) is None and peer_id not in self._transport.connections
        ]
        for peer_id in idle:
            self.admission.forget(peer_id)
        return bool(idle)

    def fault_of(self, peer_id: PeerId) -> RemoteProtocolError | None:
        """Why a connected peer is a member no more, None while it is one."""
        wall_s = self._machine.wall()
        if self.admission.member(peer_id, wall_s) is not None:
            return None
        fault = RemoteProtocolError(ErrorCode.NOT_ADMITTED, "nothing is known of its certificate any more")
        for (proven, _), member in self._proven.items():
            if proven == peer_id:
                standing = self.admission.standing(member, wall_s)
                if standing is None:
                    return None
                fault = standing
        return fault

    def turned_away(self, who: str, code: int) -> None:
        """Notes that somebody says that this node is no member."""
        if code in TURNED_AWAY:
            self.away = f"{who}: {ErrorCode(code).name.lower()}"

    # Requests of federated networks

    def begin_request(self, peer_id: PeerId) -> str | None:
        """Count a request of a peer of another network.

        Returns:
            What to end it by; empty for peers of this network, which are not counted; None where the quota is used up.
        """
        wall_s = self._machine.wall()
        member = self.admission.member(peer_id, wall_s)
        if member is None or (most := self.admission.requests_max(member, wall_s)) is None:
            return ""
        n_working = self._working.get(member.network_id, 0)
        if n_working >= most:
            return None
        self._working[member.network_id] = n_working + 1
        return member.network_id

    def end_request(self, network_id: str) -> None:
        """A counted request is over."""
        left = self._working.get(network_id, 0) - 1
        if left > 0:
            self._working[network_id] = left
        else:
            self._working.pop(network_id, None)

    # Once a second

    async def run(self) -> None:
        """Keeps watch until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self.look()
                self._renew_delegation()
                await self._tell_all(nursery)
                if self._wants_renewal():
                    nursery.start_soon(self._renew)
                await trio.sleep(LOOK_S)

    def look(self) -> None:
        """Take over what was written, and put out who is a member no more."""
        assert self._node is not None
        assert self._transport is not None
        self._take_membership()
        if self._transport.connections:
            self.away = ""
        if self._take_files():
            self._sweep_at = float("-inf")
        now = self._transport.now()
        for connection in list(self._transport.connections.values()):
            fault = self.fault_of(connection.peer_id)
            if fault is not None:
                self._put_out(connection.peer_id, fault, connection)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            for peer_id in self._node.table.peers():
                if peer_id != self._node.peer_id and (gone := self.fault_of(peer_id)) is not None:
                    self._put_out(peer_id, gone, None)
            self._free_places()
        for known in [peer_id for peer_id in self._told if peer_id not in self._transport.connections]:
            del self._told[known]
            self._budgets.pop(known, None)

    def _put_out(self, peer_id: PeerId, fault: RemoteProtocolError, connection: Connection | None) -> None:
        """Forget a peer, and close its connection with the reason."""
        assert self._node is not None
        assert self._transport is not None
        self._telemetry.log.warning("peer put out", peer=peer_id_text(peer_id), code=fault.code.name, detail=fault.detail)
        if connection is not None:
            self._transport.endpoint.close(connection.handle, fault.code, fault.detail, self._transport.now())
            self._transport.pump()
        expel(self._node, peer_id, self._transport.now())
        self.admission.forget(peer_id)
        self._settle()

    def _take_membership(self) -> None:
        """Take over a membership that a command has written."""
        stamp = files.stamp_of(self._state_dir / files.MEMBERSHIP_FILE)
        if stamp == self._membership_stamp or not stamp:
            return
        self._membership_stamp = stamp
        try:
            written = files.read_membership(self._state_dir)
        except StateError as error:
            self._telemetry.log.warning("membership", reason=str(error))
            return
        if written is None or written == self.membership:
            return
        if written.root != self.membership.root:
            self._telemetry.log.warning("this node was made a member of another network; it begins anew", network=written.name)
            self.moved.set()
            return
        self.membership = written
        assert self._node is not None
        assert self._transport is not None
        self._node.add_bootstrap(written.issuers, self._transport.now())  # an invitation taken while the node runs names more
        self._show_anew()

    def _take_files(self) -> bool:
        """Take over notices that a command has written; whether any was news."""
        news = False
        stamps = files.notice_stamps(self._state_dir)
        for path, stamp in stamps.items():
            if self._stamps.get(path) == stamp:
                continue
            try:
                data, delegation = files.read_notice(path)
                news = self._take_notice(data, delegation, keep=False) or news
            except StateError as error:
                self._telemetry.log.warning("notice", reason=str(error))
            except RemoteProtocolError as fault:
                if fault.code is ErrorCode.WRONG_NETWORK:
                    continue  # of a network that is let in no more, or not yet: looked at again
                self._telemetry.log.warning("notice not taken", file=str(path), code=fault.code.name, detail=fault.detail)
            self._stamps[path] = stamp
        return news

    def _take_notice(self, data: bytes, delegation: bytes, *, keep: bool) -> bool:
        """Take a notice; whether it was news. It is on the disk before anybody hears of it.

        Raises:
            RemoteProtocolError: it is refused.
        """
        taken = self.admission.take(data, delegation, self._machine.wall())
        if taken is None:
            return False
        if keep:
            fault = files.write_notice(self._state_dir, taken.notice)
            if fault is not None:
                self._telemetry.log.warning("a notice was not kept", reason=str(fault))
        self._version += 1
        self._sweep_at = float("-inf")
        return True

    # Notices

    async def _tell_all(self, nursery: trio.Nursery) -> None:
        """Tell the notices to connected members that have not heard the newest."""
        assert self._transport is not None
        if not self.admission.notices():
            return
        for peer_id, connection in list(self._transport.connections.items()):
            if self._told.get(peer_id) != self._version:
                self._told[peer_id] = self._version
                nursery.start_soon(self._tell, connection, self._version)

    async def _tell(self, connection: Connection, version: int) -> None:
        try:
            async with self._telling:
                with trio.move_on_after(JOIN_TIMEOUT_S):
                    async with await connection.open_stream(NOTICES_PROTOCOL) as stream:
                        for notice in self.admission.notices():
                            await stream.send_all(encode_frame(encode_notice_frame(notice.data, notice.delegation)))
                        await stream.send_eof()
                        while await stream.receive_some():
                            pass
                        return
        except (StreamReset, ConnectionLost) as fault:
            if isinstance(fault, StreamReset) and fault.code is ErrorCode.UNSUPPORTED:
                return  # it never will
        if self._told.get(connection.peer_id) == version:
            del self._told[connection.peer_id]  # again at the next look

    async def _serve_notices(self, stream: Stream) -> None:
        """Take the notices of a member."""

        def take(frame: bytes) -> None:
            budget = self._budgets.setdefault(
                stream.peer_id, Budget(NOTICES_PER_S, NOTICES_BURST, NOTICES_DEBT, self._machine.clock())
            )
            match budget.take(1, self._machine.clock()):
                case Verdict.FLOODED:
                    raise RemoteProtocolError(ErrorCode.FLOODING, "too many notices")
                case Verdict.REFUSED:
                    return
                case Verdict.GRANTED:
                    pass
            data, delegation = decode_notice_frame(frame)
            try:
                self._take_notice(data, delegation, keep=True)
            except RemoteProtocolError as fault:
                if fault.code in (ErrorCode.MALFORMED, ErrorCode.TOO_LARGE, ErrorCode.BAD_SIGNATURE):
                    raise
                self._telemetry.log.debug("notice not taken", code=fault.code.name, detail=fault.detail)

        try:
            await read_frames(stream, NOTICE_FRAME_BYTES_MAX, take, self._machine.clock)
        except RemoteProtocolError as fault:
            self._telemetry.peer_faulted(stream.peer_id, fault.code, fault.detail)
            if self._transport is not None:
                self._transport.fault(stream.peer_id, fault.code)
            await stream.connection.close(fault.code, fault.detail)
        except (StreamReset, ConnectionLost):
            return
        self.look()

    # Joining and renewing, as an issuer

    async def _serve_join(self, stream: Stream) -> None:
        """Answer one request for a certificate."""
        with trio.move_on_after(JOIN_TIMEOUT_S):
            frame = await one_frame(stream)
            try:
                answer: JoinAnswer = Granted(self._grant(stream.peer_id, decode_join_request(frame)))
            except (RemoteProtocolError, LocalProtocolError) as fault:
                answer = Refused(fault.code, fault.detail)
            self._telemetry.log.info(
                "asked for a certificate",
                peer=peer_id_text(stream.peer_id),
                answer="granted" if isinstance(answer, Granted) else f"{answer.code.name}: {answer.detail}",
            )
            await stream.send_all(encode_frame(encode_join_answer(answer)), end=True)
            return
        raise RemoteProtocolError(ErrorCode.IDLE, "no request came, or its answer was not taken")

    def _grant(self, peer_id: PeerId, request: JoinRequest) -> bytes:
        """What the peer shows from now on.

        Raises:
            RemoteProtocolError: it is refused.
            LocalProtocolError: its roles or its owner go into no certificate.
        """
        wall_s = self._machine.wall()
        issuer = self.issuer
        if issuer is None:
            raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, "this node is no issuer")
        serial = int.from_bytes(self._machine.entropy(8), "big") >> 1
        if not request.token:
            member = self.admission.member(peer_id, wall_s)
            if member is None:
                raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, "only members renew")
            return issuer.renew(member, self.admission, serial, wall_s)
        token = open_token(request.token)
        self.admission.check_token(token, self._identity.peer_id, peer_id, wall_s)
        if not issuer.may_admit(token.owner, wall_s):
            raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, f"this issuer may not admit nodes of owner {token.owner!r} now")
        redeemed = self._invites.redeem(token, peer_id, wall_s)
        if redeemed.is_new:
            fault = files.write_invites(self._state_dir, self._invites)
            if fault is not None:
                self._invites.undo(token, peer_id)
                raise RemoteProtocolError(ErrorCode.INTERNAL, "the issuer cannot keep the use of the invitation now")
        return issuer.join(token, peer_id, redeemed.admitted_s, serial, wall_s)

    # Renewing, as a member

    def _wants_renewal(self) -> bool:
        """Whether the node's own certificate is to be renewed now."""
        member = self.own()
        wall_s = self._machine.wall()
        if member is not None and wall_s < renewal_due_s(member, self.admission.config.renew_share):
            self.renewal_fault = ""
            return False
        return self._machine.clock() >= self._ask_at

    async def _renew(self) -> None:
        """Get the next certificate, from oneself or from any issuer that gives it."""
        assert self._transport is not None
        self._ask_at = self._machine.clock() + self._retry_s
        self._retry_s = min(2.0 * self._retry_s, RENEW_RETRY_MAX_S)
        wall_s = self._machine.wall()
        own, issuer = self.own(), self.issuer
        faults: list[str] = []
        if issuer is not None and own is not None:
            serial = int.from_bytes(self._machine.entropy(8), "big") >> 1
            try:
                self._take_shown(issuer.own(own.owner, own.roles, own.admitted_s, serial, wall_s))
            except (RemoteProtocolError, LocalProtocolError) as fault:
                faults.append(fault.detail)
            else:
                return
        targets: list[Connection | Multiaddr] = [
            connection
            for peer_id, connection in self._transport.connections.items()
            if (member := self.admission.member(peer_id, wall_s)) is not None and member.is_issuer
        ]
        for target in [*targets, *self.membership.issuers]:
            try:
                with trio.fail_after(JOIN_TIMEOUT_S):
                    connection = await self._transport.dial(target) if isinstance(target, Multiaddr) else target
                    answer = await ask_to_join(connection, JoinRequest())
                if isinstance(answer, Granted):
                    self._take_shown(answer.shown)
                    return
                faults.append(f"{peer_id_text(connection.peer_id)}: {answer.code.name.lower()}: {answer.detail}")
            except (StreamReset, ConnectionLost, RemoteProtocolError, LocalProtocolError, trio.TooSlowError) as error:
                faults.append(f"{target if isinstance(target, Multiaddr) else target.remote}: {error or 'no answer'}")
        self.renewal_fault = "; ".join(faults) or "no issuer is connected and none is known"
        ends_s = own.ends_s if own is not None else wall_s
        self._telemetry.log.warning(
            "the certificate of this node was not renewed",
            days_left=round((ends_s - wall_s) / 86_400, 1),
            reason=self.renewal_fault,
        )

    def _renew_delegation(self) -> None:
        """Renew what was delegated to this node, where the network's key lies in the user's directory and it is time."""
        if self._network_dir is None or not self.membership.is_home or self._machine.clock() < self._delegate_at:
            return
        wall_s, issuer = self._machine.wall(), self.issuer
        if issuer is not None:
            given = issuer.delegation
            share = self.admission.config.renew_share
            if wall_s < given.not_after_s - share * (given.not_after_s - given.not_before_s):
                return
        try:
            membership = delegated_anew(self._network_dir, self.membership, self._identity, wall_s, self._machine.entropy)
        except StartError as error:
            self._delegate_at = self._machine.clock() + RENEW_RETRY_MAX_S
            self._telemetry.log.warning("what was delegated to this node was not renewed", reason=str(error))
            return
        if membership is not None:
            self._telemetry.log.info("what was delegated to this node was renewed with the network's key")
            self._keep(membership)

    def _take_shown(self, shown: bytes) -> None:
        """Keep and show a new certificate, after it was checked as everybody will check it.

        Raises:
            RemoteProtocolError: nobody would let it in, or it ends as soon as the one before.
        """
        before = self.own()
        member = self.admission.check(self._identity.peer_id, shown, self._machine.wall())
        if before is not None and member.ends_s < before.ends_s + RENEW_GAIN_S_MIN:
            raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, "the delegation behind the next certificate ends as soon")
        self._keep(files.shown_anew(self.membership, shown))

    def _keep(self, membership: Membership) -> None:
        """Show a membership with a new certificate from now on."""
        self.membership = membership
        fault = files.write_membership(self._state_dir, membership)
        if fault is not None:
            self._telemetry.log.warning("the new certificate was not kept", reason=str(fault))
        self._membership_stamp = files.stamp_of(self._state_dir / files.MEMBERSHIP_FILE)
        self.renewal_fault = ""
        self._retry_s = RENEW_RETRY_MIN_S
        self._show_anew()

    def _show_anew(self) -> None:
        assert self._node is not None
        assert self._transport is not None
        self._transport.show_anew()
        self._node.handle_membership(self.membership.shown)
        self._node.handle_timer(self._transport.now())
        self._settle()
