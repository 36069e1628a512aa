"""Opens fabrics by pools: a node's membership of each, kept as long as it runs, and how two members find each other.

Each tells the other by QUIC which slot of which pool it has, with the nonce that it has drawn for it, and looks for that nonce in
the slot. Who maps another pool, or a copy of this one, does not find it.

Spec: docs/spec/11-fabric.md, section "Pools".
"""

from collections.abc import Callable, Sequence
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
from protocol.fabric.pools import Enter, Entered, Token, decode_token, decode_word, encode_token, encode_word, pool_of_token

RETRY_S = 5.0
"""How long a node waits before it tries again to become a member, in seconds: until a pool is made, or a slot is free."""


class PoolMember:
    """A node's membership of one pool."""

    def __init__(self, path: Path, name: str, entropy: Callable[[int], bytes], luck: Luck) -> None:
        """Begins without having looked at the pool: `run` does; arguments as of `CxlOpener`."""
        self.path = path
        self.absent = f"{path} is being opened"
        self.member: Membership | None = None
        self._name, self._entropy, self._luck = name, entropy, luck
        self._sessions: list[CxlSession] = []

    def figures(self) -> dict[str, object]:
        """The pool, and this node's place in it."""
        if self.member is None:
            return {"pool": str(self.path), "absent": self.absent}
        pool, owner = self.member.pool, self.member.owner
        return {
            "pool": str(self.path),
            "pool_id": str(UUID(bytes=pool.layout.pool_id)),
            "slot": owner.slot,
            "epoch": owner.head.epoch,
            "memory": pool.flusher.words,
            "free_bytes": owner.free_slabs * pool.layout.slab_bytes,
            "tagged": self.member.is_tagged,
        }

    def session(self, opening: Opening, member: Membership, theirs: Token) -> CxlSession:
        """The fabric with a peer that was found in the pool.

        Raises:
            RemoteProtocolError: this node is not the member any more that has found it.
        """
        if member is not self.member:
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "this node has lost its slot meanwhile")
        session = CxlSession(opening.peer, opening.config, opening.control, member, theirs, opening.on_closed)
        self._sessions = [known for known in self._sessions if not known.closed]
        self._sessions.append(session)
        return session

    async def run(self, changed: Callable[[], None], is_known: Callable[[bytes], bool]) -> None:
        """Become a member and stay one, until cancelled; try again where that does not work out.

        Args:
            changed: is called when this node has become a member, or is none any more.
            is_known: whether this node is a member of the pool of this id by another path.
        """
        while True:
            try:
                await self._be_member(changed, is_known)
            except (PoolError, OSError, ValueError) as error:
                self.absent = str(error)
            changed()
            await trio.sleep(RETRY_S)

    async def _be_member(self, changed: Callable[[], None], is_known: Callable[[bytes], bool]) -> None:
        """Claim a slot and keep it.

        Raises:
            PoolError: the pool cannot be used, or the slot is lost.
            OSError: the system refuses.
        """
        pool = await trio.to_thread.run_sync(open_pool, self.path)  # it may have to compile
        try:
            self._check_new(pool, is_known)
            owner = Owner(pool, self._name, self._entropy, self._luck, trio.current_time)
            await self._claim(owner, pool)
            try:
                self._check_new(pool, is_known)  # all paths are looked at at the same time
                self.member, self.absent = Membership(pool, owner), ""
                changed()
                while True:
                    await trio.sleep(BEAT_S)
                    await self._beat(pool, owner, self.member)
            finally:
                self._end()
                owner.leave()
        finally:
            pool.close()

    def _check_new(self, pool: Pool, is_known: Callable[[bytes], bool]) -> None:
        if is_known(pool.layout.pool_id):
            raise PoolError(f"{self.path} is a pool that another path of this node names too")

    async def _claim(self, owner: Owner, pool: Pool) -> None:
        """Claim a slot; where all are taken, wait for one whose owner is dead.

        Raises:
            PoolError: there is none.
        """
        try:
            await claim_slot(owner, pool)
        except PoolError as error:
            self.absent = str(error)
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
        if self.member is not None:
            self.member.sweep()
        self.member = None


class CxlOpener:
    """The pools of a node."""

    kind = Kind.CXL
    keeps_stream = True

    def __init__(self, paths: Sequence[Path], name: str, entropy: Callable[[int], bytes], luck: Luck) -> None:
        """Begins without having looked at the pools: `run` does.

        Args:
            paths: of the pools, `POOLS_MAX` at the most.
            name: what the node calls itself in them, for people.
            entropy: draws so many bytes.
            luck: for the places where nodes should not all begin alike.
        """
        self.pools = tuple(PoolMember(path, name, entropy, luck) for path in paths)

    @property
    def absent(self) -> str:
        """Why no pool can be used; empty where one can."""
        return "" if self._members() else "; ".join(pool.absent for pool in self.pools)

    def advert(self) -> Advert:
        """The ids of the pools that this node is a member of."""
        return Advert(pools=tuple(member.pool.layout.pool_id for member in self._members()))

    def way(self, match: Match) -> Way:
        """The same for all pools and peers."""
        del match
        return CXL

    def figures(self) -> dict[str, object]:
        """The pools, and this node's place in each."""
        return {"pools": [pool.figures() for pool in self.pools]}

    async def run(self, changed: Callable[[], None]) -> None:
        """Become a member of all pools and stay one, until cancelled."""
        async with trio.open_nursery() as nursery:
            for pool in self.pools:
                nursery.start_soon(pool.run, changed, self._is_known)

    def _members(self) -> list[Membership]:
        return [pool.member for pool in self.pools if pool.member is not None]

    def _is_known(self, pool_id: bytes) -> bool:
        return any(member.pool.layout.pool_id == pool_id for member in self._members())

    # Opening

    async def knock(self, opening: Opening, door: Door, own_nonce: bytes) -> Session:
        """Find the peer in the pool that it names, and have it find this node.

        Raises:
            RemoteProtocolError: it is not there.
        """
        del own_nonce  # who asks is proved by the stream
        pool, member = self._membership(pool_of_token(door.place))
        theirs = _found(member, door.place)
        await opening.control.send(encode_word(Enter(encode_token(member.owner.token))))
        if decode_word(await opening.control.expect()) != Entered():
            raise RemoteProtocolError(ErrorCode.MALFORMED, "something else where a peer says that this node has entered")
        return pool.session(opening, member, theirs)

    async def admit(self, opening: Opening, hello: Hello) -> Session:
        """Tell a peer where this node is in a pool that both have, and find the peer there.

        Raises:
            RemoteProtocolError: it is not there.
        """
        del hello
        entropy = opening.entropy
        pool, member = self._membership(opening.match.pool)
        place = encode_token(member.owner.token)
        door = Door(Kind.CXL, place, entropy(SECRET_BYTES), entropy(NONCE_BYTES))
        await opening.control.send(encode_opening(door))
        word = decode_word(await opening.control.expect())
        if not isinstance(word, Enter):
            raise RemoteProtocolError(ErrorCode.MALFORMED, "something else where a peer says who it is in the pool")
        theirs = _found(member, word.token)
        opening.control.say(encode_word(Entered()))
        return pool.session(opening, member, theirs)

    def _membership(self, pool_id: bytes) -> tuple[PoolMember, Membership]:
        for pool in self.pools:
            if pool.member is not None and pool.member.pool.layout.pool_id == pool_id:
                return pool, pool.member
        raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, self.absent or "this node is not in that pool")


def _found(member: Membership, token: bytes) -> Token:
    """A peer by its token, once its nonce was found in the slot that it says is its own.

    Raises:
        RemoteProtocolError: STALE_LEASE, it is not there; or what it tells is no token of this pool.
    """
    theirs = decode_token(token, member.pool.layout)
    if theirs.slot == member.owner.slot or not member.owner.is_owner(theirs):
        raise RemoteProtocolError(ErrorCode.STALE_LEASE, f"slot {theirs.slot} of the pool is not the peer's")
    return theirs
