"""What each connection costs, charged to its peer: bytes before they are handed to the library, the CPU time right after.

A stranger has no account yet; it may send so many bytes and cost so much until its handshake is over. A peer's datagrams beyond
its allowance of bytes that bring nothing are dropped, as a full queue would drop them, and a sender that keeps the rules slows
down; far beyond it the connection ends. The time is what the clock that was handed in says; without one (in a simulation)
nothing is charged.

Spec: docs/spec/02-transport.md, section "Conduct".
"""

from collections.abc import Callable, Sequence

from protocol.budget import Verdict
from protocol.conduct import Account, Conduct
from protocol.errors import ErrorCode
from protocol.identity import PeerId
from protocol.quic.connection import Connection
from protocol.quic.events import EndpointConfig, Received

CHARGE_STEP_S = 0.01
"""Time of a core in seconds that is charged at once: to look what was acknowledged costs a look at every stream that writes."""


class Meter:
    """Charges connections for what they receive."""

    def __init__(self, conduct: Conduct, config: EndpointConfig, cpu_clock: Callable[[], float] | None) -> None:
        self._conduct = conduct
        self._config = config
        self._clock = cpu_clock

    def admits(self, connection: Connection, group: Sequence[bytes], now: float) -> bool:
        """Charge for datagrams that have come; False when they are not to be looked at."""
        n_bytes = sum(map(len, group))
        if connection.peer_id is None:
            connection.stranger_bytes += n_bytes
            if connection.is_client or connection.stranger_bytes <= self._config.stranger_bytes_max:
                return True
            connection.close(ErrorCode.FLOODING, "too many bytes before the handshake was over", now)
            return False
        verdict = self._conduct.charge(connection.peer_id, Account.BYTES, n_bytes, now)
        if verdict is Verdict.FLOODED:
            connection.close(ErrorCode.FLOODING, "too many bytes that brought nothing", now)
        return verdict is Verdict.GRANTED

    def receive(self, connection: Connection, group: list[bytes], first: Received, now: float) -> None:
        """Hand datagrams to a connection, and charge its peer for what that took."""
        clock = self._clock
        started_s = clock() if clock is not None else 0.0
        connection.receive(group, first.address, now, first.received_at)
        spent_s = clock() - started_s if clock is not None else 0.0
        n_bytes, connection.delivered_bytes = connection.delivered_bytes, 0
        conduct, peer_id = self._conduct, connection.peer_id
        if peer_id is None:
            connection.stranger_cpu_s += spent_s
            if connection.stranger_cpu_s > self._config.stranger_cpu_s:
                connection.close(ErrorCode.FLOODING, "too much work before the handshake was over", now)
            return
        if n_bytes:
            conduct.give_back(peer_id, Account.BYTES, n_bytes, now)
        self._charge_time(connection, peer_id, len(group), spent_s - n_bytes * conduct.config.cpu_s_per_byte, now)

    def _charge_time(self, connection: Connection, peer_id: PeerId, n_datagrams: int, excess_s: float, now: float) -> None:
        """Charge the time that the data in some datagrams does not explain, unless the data they acknowledge do."""
        conduct = self._conduct
        slow_s = conduct.config.slow_s * n_datagrams
        if excess_s > slow_s:
            excess_s -= connection.newly_taken_bytes() * conduct.config.cpu_s_per_byte
            if excess_s > slow_s and conduct.charge(peer_id, Account.SLOW, n_datagrams, now) is Verdict.FLOODED:
                connection.close(ErrorCode.FLOODING, "too many datagrams hold the loop for long", now)
        connection.unexplained_s += max(0.0, excess_s)
        if connection.unexplained_s < CHARGE_STEP_S:
            return
        excess_s = connection.unexplained_s - connection.newly_taken_bytes() * conduct.config.cpu_s_per_byte
        connection.unexplained_s = 0.0
        if excess_s > 0.0 and conduct.charge(peer_id, Account.CPU, excess_s, now) is Verdict.FLOODED:
            connection.close(ErrorCode.BANNED, "what this peer sends takes too much of a core", now)
