"""How often an issuer's invitations were used, and by whom.

A use is bound to the peer: whoever joined by an invitation may join by it again, which uses nothing up. What is counted is kept
by the caller before anything is granted. Invitations that are over are forgotten, and a clock that is set back revives none: what
expired before the latest one forgotten is refused.

Spec: docs/spec/09-admission.md, section "Joining".
"""

from dataclasses import dataclass

from protocol.admission.values import Token
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId

USES_COUNTED_MAX = 20_000
"""Uses that are kept of all invitations together, a count: a file of 2 MB, and more machines than one owner has."""


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A peer may join; `is_new` says that the count has changed and must be kept first. `admitted_s` is when it did first."""

    admitted_s: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Used:
    """The uses of one invitation: who joined, and when."""

    token_id: bytes
    expires_s: int
    peers: tuple[tuple[PeerId, int], ...]


class Invites:
    """The count; see the module's docstring."""

    def __init__(self, tokens_max: int, kept: tuple[Used, ...] = (), forgotten_s: int = 0) -> None:
        """Begins with what was kept.

        Args:
            tokens_max: invitations that are counted at a time.
            kept: their uses.
            forgotten_s: up to which expiry invitations were forgotten.
        """
        self.forgotten_s = forgotten_s
        self._tokens_max = tokens_max
        self._used = {used.token_id: used for used in kept}

    @property
    def used(self) -> tuple[Used, ...]:
        """What is to be kept."""
        return tuple(self._used.values())

    def redeem(self, token: Token, peer_id: PeerId, wall_s: float) -> Redeemed:
        """Count a use of a verified invitation.

        Raises:
            RemoteProtocolError: EXPIRED, or TOKEN_REFUSED when it is used up or too many are counted.
        """
        self._forget(wall_s)
        if wall_s >= token.expires_s or token.expires_s <= self.forgotten_s:
            raise RemoteProtocolError(ErrorCode.EXPIRED, "the invitation is over")
        used = self._used.get(token.token_id, Used(token.token_id, token.expires_s, ()))
        for known, admitted_s in used.peers:
            if known == peer_id:
                return Redeemed(admitted_s, is_new=False)
        if len(used.peers) >= token.uses:
            raise RemoteProtocolError(ErrorCode.TOKEN_REFUSED, f"the invitation was for {token.uses} and is used up")
        if sum(len(known.peers) for known in self._used.values()) >= USES_COUNTED_MAX:
            raise RemoteProtocolError(ErrorCode.TOKEN_REFUSED, f"{USES_COUNTED_MAX} uses are counted, the most kept")
        if not used.peers and len(self._used) >= self._tokens_max:
            raise RemoteProtocolError(ErrorCode.TOKEN_REFUSED, f"{self._tokens_max} invitations are open, the most counted")
        admitted_s = int(wall_s)
        self._used[token.token_id] = Used(token.token_id, token.expires_s, (*used.peers, (peer_id, admitted_s)))
        return Redeemed(admitted_s, is_new=True)

    def undo(self, token: Token, peer_id: PeerId) -> None:
        """Take back a use that could not be kept."""
        used = self._used.get(token.token_id)
        if used is None:
            return
        peers = tuple(item for item in used.peers if item[0] != peer_id)
        if peers:
            self._used[token.token_id] = Used(token.token_id, used.expires_s, peers)
        else:
            del self._used[token.token_id]

    def _forget(self, wall_s: float) -> None:
        for used in [used for used in self._used.values() if wall_s >= used.expires_s]:
            del self._used[used.token_id]
            self.forgotten_s = max(self.forgotten_s, used.expires_s)
