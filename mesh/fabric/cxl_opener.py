"""Opens fabrics by a pool: a node's membership of it, kept as long as it runs, and how two members find each other.

Each tells the other by QUIC which slot it has, with the nonce that it has drawn for it, and looks for that nonce in the slot. Who
maps another pool, or a copy of this one, does not find it.

Spec: docs/spec/11-fabric.md, section "Pools".
"""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import trio

from mesh.fabric.base import Opening, Session
from mesh.fabric.cxl import CxlSession, Membership
from mesh.fabric.owner import Owner, carry_out, claim_slot
from mesh.fabric.pool import Pool, PoolError, open_pool
from protocol.encoding import Luck
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import CXL, Advert, Kind, Match, Way
from protocol.fabric.messages import NONCE_BYTES, SECRET_BYTES, Door, Hello, encode_opening
from protocol.fabric.owners import BEAT_S
from protocol.fabric.pools import Enter, Entered, Token, decode_token, decode_word, encode_token, encode_word

RETRY_S = 5.0
"""How long a node waits before it tries again to become a member, in seconds: until a pool is made, or a slot is free."""


class CxlOpener:
    """A node's membership of one pool."""

    kind = Kind.CXL
    keeps_stream = True

    def __init__(self, path: Path, name: str, entropy: Callable[[int], bytes], luck: Luck) -> None:
        """Begins without having looked at the pool: `run` does.

        Args:
            path: of the pool.
            name: what the node calls itself in it, for people.
            entropy: draws so many bytes.
            luck: for the places where nodes should not all begin alike.
        """
        self.path = path
        self._name, self._entropy, self._luck = name, entropy, luck
        self._absent = f"{path} is being opened"
        self._member: Membership | None = None
        self._sessions: list[CxlSession] = []

    @property
    def absent(self) -> str:
        """Why the pool cannot be used; empty where it can."""
        return self._absent

    def advert(self) -> Advert:
        """The pool's id."""
        return Advert() if self._member is None else Advert(pools=(self._member.pool.layout.pool_id,))

    def way(self, match: Match) -> Way:
        """The same for all peers."""
        del match
        return CXL

    def figures(self) -> dict[str, object]:
        """The pool, and this node's place in it."""
        if self._member is None:
            return {}
        pool, owner = self._member.pool, self._member.owner
        return {
            "pool": str(self.path),
            "pool_id": str(UUID(bytes=pool.layout.pool_id)),
            "slot": owner.slot,
            "epoch": owner.head.epoch,
            "memory": pool.flusher.words,
            "free_bytes": owner.free_slabs * pool.layout.slab_bytes,
            "tagged": self._member.is_tagged,
        }

    # Membership

    async def run(self, changed: Callable[[], None]) -> None:
        """Become a member and stay one, until cancelled; try again where that does not work out."""
        while True:
            try:
                await self._be_member(changed)
            except (PoolError, OSError, ValueError) as error:
                self._absent = str(error)
            changed()
            await trio.sleep(RETRY_S)

    async def _be_member(self, changed: Callable[[], None]) -> None:
        """Claim a slot and keep it.

        Raises:
            PoolError: the pool cannot be used, or the slot is lost.
            OSError: the system refuses.
        """
        pool = await trio.to_thread.run_sync(open_pool, self.path)  # it may have to compile
        try:
            owner = Owner(pool, self._name, self._entropy, self._luck, trio.current_time)
            await self._claim(owner, pool)
            self._member, self._absent = Membership(pool, owner), ""
            changed()
            try:
                while True:
                    await trio.sleep(BEAT_S)
                    await self._beat(pool, owner, self._member)
            finally:
                self._end()
                owner.leave()
        finally:
            pool.close()

    async def _claim(self, owner: Owner, pool: Pool) -> None:
        """Claim a slot; where all are taken, wait for one whose owner is dead.

        Raises:
            PoolError: there is none.
        """
        try:
            await claim_slot(owner, pool)
        except PoolError as error:
            self._absent = str(error)
            freed = False
            while not freed:
                await trio.sleep(BEAT_S)
                for slot in owner.watch():
                    freed = await carry_out(owner.reaping(slot)) or freed
            await claim_slot(owner, pool)

    async def _beat(self, pool: Pool, owner: Owner, member: Membership) -> None:
        pool.check()
        if not owner.beat():
            raise PoolError("this node was taken for dead, and its slot has another owner; it takes another one")
        member.sweep()
        for slot in owner.watch():
            await carry_out(owner.reaping(slot))

    def _end(self) -> None:
        """Close all sessions: nothing is wrong with the peers, and they may be opened again."""
        sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.close("")
        if self._member is not None:
            self._member.sweep()
        self._member = None

    # Opening

    async def knock(self, opening: Opening, door: Door, own_nonce: bytes) -> Session:
        """Find the peer in the pool, and have it find this node.

        Raises:
            RemoteProtocolError: it is not there.
        """
        del own_nonce  # who asks is proved by the stream
        member = self._membership()
        theirs = self._found(member, door.place)
        await opening.control.send(encode_word(Enter(encode_token(member.owner.token))))
        if decode_word(await opening.control.expect()) != Entered():
            raise RemoteProtocolError(ErrorCode.MALFORMED, "something else where a peer says that this node has entered")
        return self._session(opening, member, theirs)

    async def admit(self, opening: Opening, hello: Hello) -> Session:
        """Tell a peer where this node is in the pool, and find the peer there.

        Raises:
            RemoteProtocolError: it is not there.
        """
        del hello
        member, entropy = self._membership(), opening.entropy
        place = encode_token(member.owner.token)
        door = Door(Kind.CXL, place, entropy(SECRET_BYTES), entropy(NONCE_BYTES))
        await opening.control.send(encode_opening(door))
        word = decode_word(await opening.control.expect())
        if not isinstance(word, Enter):
            raise RemoteProtocolError(ErrorCode.MALFORMED, "something else where a peer says who it is in the pool")
        theirs = self._found(member, word.token)
        opening.control.say(encode_word(Entered()))
        return self._session(opening, member, theirs)

    def _membership(self) -> Membership:
        if self._member is None:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, self._absent or "this node is in no pool")
        return self._member

    def _found(self, member: Membership, token: bytes) -> Token:
        """A peer by its token, once its nonce was found in the slot that it says is its own."""
        theirs = decode_token(token, member.pool.layout)
        if theirs.slot == member.owner.slot or not member.owner.is_owner(theirs):
            raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"slot {theirs.slot} of the pool is not the peer's")
        return theirs

    def _session(self, opening: Opening, member: Membership, theirs: Token) -> CxlSession:
        if member is not self._member:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this node has lost its slot meanwhile")
        session = CxlSession(opening.peer, opening.config, opening.control, member, theirs, opening.on_closed)
        self._sessions = [known for known in self._sessions if not known.closed]
        self._sessions.append(session)
        return session
