"""Peers that ask for much and read little: who costs memory is cut off, and who has only paused is not."""

import pytest
from hostile import Hostile
from quic_pair import DIALLER, LISTENER, Pair

from protocol.errors import ErrorCode
from protocol.quic.events import ConnectionClosed, ConnectionEstablished, StreamOpened, StreamWritable

STREAM_CREDIT_BYTES = 2048
ANSWER_BYTES = 128 * 1024
STREAMS = 16


@pytest.fixture(params=["a", "q"], ids=["aioquic", "qh3"])
def engine(request):
    return request.param


@pytest.fixture(params=["aa", "aq", "qa", "qq"], ids="-".join)
def engines(request):
    return request.param


class SlowReader(Hostile):
    """It gives each stream a little credit and no more, and acknowledges and speaks as an honest peer does."""

    def __init__(self, engine):
        super().__init__(engine, max_stream_data=STREAM_CREDIT_BYTES)
        self.client._write_stream_limits = lambda *_, **__: None
        self.client._write_connection_limits = lambda *_, **__: None
        self.exchange()
        assert self.of(ConnectionEstablished)
        self.handle = self.of(ConnectionEstablished)[0].connection

    def asked(self) -> list[int]:
        """Open the streams, and let the victim write an answer on each."""
        for number in range(STREAMS):
            self.client.send_stream_data(4 * number, b"?")
        self.exchange(2)
        streams = [output.stream for output in self.of(StreamOpened)]
        assert len(streams) == STREAMS
        for stream in streams:
            self.victim.send(self.handle, stream, bytes(ANSWER_BYTES), True)
        return streams

    def live(self, until: float, tell=None) -> float | None:
        """Pass the time in small steps; return when the victim closed the connection."""
        while self.now < until:
            if tell is not None:
                tell()
            for data in self.drain():
                self.client.receive_datagram(data, LISTENER, self.now)
            for data, _ in self.client.datagrams_to_send(self.now):
                self.victim.handle_datagram(data, DIALLER, self.now)
            if self.of(ConnectionClosed):
                return self.now
            self.now += 0.01
            timer = self.client.get_timer()
            if timer is not None and timer <= self.now:
                self.client.handle_timer(self.now + 1e-6)
            timer = self.victim.next_timer()
            if timer is not None and timer <= self.now:
                self.victim.handle_timer(self.now)
        return None


def test_a_peer_that_gives_no_credit_for_much_is_cut_within_five_seconds(engine):
    reader = SlowReader(engine)
    began = reader.now
    reader.asked()
    ended = reader.live(began + 20.0)
    assert ended is not None
    assert reader.of(ConnectionClosed)[0].code is ErrorCode.FLOODING
    assert ended - began <= 5.0


def test_taking_a_few_bytes_now_and_then_is_no_reading(engine):
    """The victim says something small on a new stream every second, as gossip does, and that is taken."""
    reader = SlowReader(engine)
    began = told_at = reader.now
    reader.asked()

    def tell():
        nonlocal told_at
        if reader.now >= told_at + 1.0:
            told_at = reader.now
            stream = reader.victim.open_stream(reader.handle, reader.now)
            reader.victim.send(reader.handle, stream, b"something small", False)

    ended = reader.live(began + 20.0, tell)
    assert ended is not None
    assert ended - began <= 5.0


# Honest peers


def test_an_honest_peer_whose_reader_has_paused_is_not_cut(engines):
    """A long answer whose client stands still for a minute: it waits, all the way back, and goes on when it is read."""
    pair = Pair(engines)
    pair.connect()
    stream = pair.open()
    pair.write(pair.dialler, stream, b"?")
    pair.run(0.1)
    # A reader with qh3 gives up a stream of which 2 MiB are unread (chapter 2, "Engines"); one with aioquic grants no credit.
    n_bytes = (3072 if engines[0] == "a" else 1536) * 1024
    answer = memoryview(bytes(n_bytes))
    pair.dialler.reads = False
    endpoint, handle = pair.listener.endpoint, pair.listener.established
    answer = answer[endpoint.send(handle, stream, answer, True) :]
    for _ in range(600):
        pair.dialler.endpoint.send_datagram(pair.dialler.established, b"alive")
        pair.run(0.1)
        if answer and pair.listener.of(StreamWritable):
            pair.listener.outputs.clear()
            answer = answer[endpoint.send(handle, stream, answer, True) :]
    assert pair.listener.of(ConnectionClosed) == pair.dialler.of(ConnectionClosed) == []
    pair.dialler.reads = True
    pair.read(pair.dialler)
    if answer:
        pair.write(pair.listener, stream, answer, end=True)
    pair.run(10.0, until=lambda: stream in pair.dialler.ended)
    assert len(pair.dialler.received[stream]) == n_bytes


@pytest.mark.parametrize("engines", ["aa", "qq"])
def test_a_peer_on_a_slow_path_that_takes_much_slowly_is_not_cut(engines):
    """Four answers of a megabyte over 40 kB/s: they wait long, and are taken all the while."""
    pair = Pair(engines, delay_s=0.05)
    pair.connect()
    streams = [pair.open() for _ in range(4)]
    for stream in streams:
        pair.write(pair.dialler, stream, b"?")
    pair.run(0.2)
    narrow(pair, bytes_per_s=40_000)
    for stream in streams:
        pair.listener.endpoint.send(pair.listener.established, stream, bytes(1024 * 1024), True)
    pair.run(60.0)
    assert pair.listener.of(ConnectionClosed) == pair.dialler.of(ConnectionClosed) == []
    taken = sum(map(len, pair.dialler.received.values()))
    assert taken > 1_000_000


def narrow(pair, bytes_per_s: int) -> None:
    """Let what the listener sends leave one after another at a pace; what would wait for over half a second is lost."""
    free_at, send, delay_s = pair.now, pair.send, pair.delay_s

    def queued(data, source, destination):
        nonlocal free_at
        if source != LISTENER:
            send(data, source, destination)
            return
        waits_s = max(0.0, free_at - pair.now)
        if waits_s > 0.5:
            return
        free_at = max(free_at, pair.now) + len(data) / bytes_per_s
        pair.delay_s = delay_s + waits_s
        send(data, source, destination)
        pair.delay_s = delay_s

    pair.send = queued
