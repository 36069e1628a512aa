"""Virtual time and an ordered stream between two ends, as QUIC's: nothing is lost, and all of it may be late."""

import heapq
import random
from collections.abc import Callable

from protocol.encoding import FrameDecoder, encode_frame


class Clock:
    """Events in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Does something later."""
        self.at(self.now + delay_s, call)

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Does something at a time; what is due at the same time happens in the order in which it was asked for."""
        self.events += 1
        heapq.heappush(self._heap, (time_s, self.events, call))

    def run(self, until_s: float) -> None:
        """Lets everything happen until then."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = until_s


class Pipe:
    """One direction of a stream: whole frames as bytes, in order, each at its own pace but never before the one before it."""

    def __init__(self, clock: Clock, luck: random.Random, delay_s: float, hiccup_share: float) -> None:
        self._clock, self._luck = clock, luck
        self._delay_s, self._hiccup_share = delay_s, hiccup_share
        self._free_at = 0.0
        self._decoder = FrameDecoder(1 << 21)
        self.taker: Callable[[bytes], None] = lambda _frame: None
        self.on_send: Callable[[], None] = lambda: None

    def send(self, payload: bytes) -> None:
        """Sends one frame; sometimes everything is held up by a lost packet."""
        self.on_send()
        wait_s = self._delay_s * (1.0 + self._luck.random())
        if self._luck.random() < self._hiccup_share:
            wait_s += self._luck.choice((0.05, 0.2, 1.0))
        self._free_at = max(self._free_at, self._clock.now + wait_s)
        framed = encode_frame(payload)
        self._clock.at(self._free_at, lambda: self._arrive(framed))

    def stand(self, wait_s: float) -> None:
        """What is sent from now on is held up."""
        self._free_at = max(self._free_at, self._clock.now) + wait_s

    def _arrive(self, framed: bytes) -> None:
        self._decoder.receive(framed)
        while (frame := self._decoder.next_frame()) is not None:
            self.taker(frame)
