"""What each connection costs, charged to its peer: bytes before they are handed to the library, the CPU time right after.

What sending and timers take is charged, too, beyond what they take of honest peers: a library that has much to look through
before it sends one datagram has it from this peer.

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
from protocol.quic.seam import Address

CHARGE_STEP_S = 0.01
"""Time of a core in seconds that is charged at once: to look what was acknowledged costs a look at every stream that writes."""


TURN_S = 0.0001
"""Time of a core in seconds that is free of charge for a timer that fires, for a look whether something is to be sent, and for
each datagram that is: aioquic takes 40 to 80 µs for one."""


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

    def fire(self, connection: Connection, now: float) -> None:
        """Let a connection's timers fire, and charge its peer for what that took out of the ordinary."""
        if (clock := self._clock) is None:
            connection.handle_timer(now)
            return
        started_s = clock()
        connection.handle_timer(now)
        self._charge_excess(connection, clock() - started_s - TURN_S, now)

    def transmits(self, connection: Connection, now: float) -> list[tuple[bytes, Address]]:
        """Build what a connection may send, and charge its peer for what that took out of the ordinary."""
        if (clock := self._clock) is None:
            return connection.engine.transmits(now)
        started_s = clock()
        sent = connection.engine.transmits(now)
        spent_s = clock() - started_s
        free_s = TURN_S * (1 + len(sent))
        if spent_s > free_s:
            free_s += sum(len(data) for data, _ in sent) * self._conduct.config.cpu_s_per_byte
            self._charge_excess(connection, spent_s - free_s, now)
        return sent

    def _charge_excess(self, connection: Connection, excess_s: float, now: float) -> None:
        """Charge time that no data in the other direction explains, in steps."""
        if excess_s <= 0.0 or connection.peer_id is None:
            return
        connection.unexplained_s += excess_s
        if connection.unexplained_s >= CHARGE_STEP_S:
            self._charge_step(connection, connection.peer_id, now)

    def _charge_time(self, connection: Connection, peer_id: PeerId, n_datagrams: int, excess_s: float, now: float) -> None:
        """Charge the time that the data in some datagrams does not explain, unless the data they acknowledge do."""
        conduct = self._conduct
        slow_s = conduct.config.slow_s * n_datagrams
        if excess_s > slow_s:
            excess_s -= connection.newly_taken_bytes() * conduct.config.cpu_s_per_byte
            if excess_s > slow_s and conduct.charge(peer_id, Account.SLOW, n_datagrams, now) is Verdict.FLOODED:
                connection.close(ErrorCode.FLOODING, "too many datagrams hold the loop for long", now)
        connection.unexplained_s += max(0.0, excess_s)
        if connection.unexplained_s >= CHARGE_STEP_S:
            self._charge_step(connection, peer_id, now)

    def _charge_step(self, connection: Connection, peer_id: PeerId, now: float) -> None:
        """Charge what has come together, unless the data that the peer has taken since the last time explain it."""
        conduct = self._conduct
        excess_s = connection.unexplained_s - connection.newly_taken_bytes() * conduct.config.cpu_s_per_byte
        connection.unexplained_s = 0.0
        if (
            excess_s > 0.0
            and conduct.charge(peer_id, Account.CPU, excess_s, now) is Verdict.FLOODED
            and connection.closed is None
        ):
            connection.close(ErrorCode.BANNED, "what this peer sends takes too much of a core", now)
