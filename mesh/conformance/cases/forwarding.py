"""Chapter 6: requests that the node passes on to scripted peers, which answer well or badly.

Spec: docs/spec/06-inference.md, sections "Asking", "Answering" and "Attempts".
"""

import os

import trio

from mesh.conformance.gossip import Scribe, card_of, talk
from mesh.conformance.inference import answer, begin, outcome, relay, reply_frame, request
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import case, expect
from mesh.conformance.wire import Stream
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode
from protocol.gossip.messages import Graft
from protocol.inference import Accepted, Failed, Feature, Finished, TextDelta
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.records import ModelOffer
from protocol.wire.generated.layouts import REPLY
from protocol.wire.inference import PROTOCOL_ID as INFER_PROTOCOL
from protocol.wire.inference import REPLY_BYTES_MAX, decode_reply, decode_request
from protocol.wire.writer import write_message

POURED_BYTES_MAX = 8 * 1024 * 1024
"""What a node may take of an answer that nobody reads, in bytes: two streams' credits and buffers, with room to spare."""

PIECE = 60_000
"""Text poured at once, in characters."""


async def _aborted(stream: Stream, code: ErrorCode, what: str, *, stopped: bool = True) -> None:
    """Wait for the node to give up a stream that it has opened."""

    def over() -> bool:
        given_up = stream.reset_code is not None and (stream.stop_code is not None or not stopped)
        return given_up or stream.connection.end is not None

    await stream.connection.until(over, f"a reset with {code.name} {what}", seen=lambda: stream)
    expect(stream.reset_code == code, f"a reset with {code.name} {what}", stream)
    expect(not stopped or stream.stop_code == code, f"STOP_SENDING with {code.name} {what}", stream)


@case("ISO-INFER-020", "ISO-INFER-011", "ISO-INFER-001")
async def a_request_is_passed_on_as_it_must_be(peer: ScriptedPeer) -> None:
    """The same id and needs, one hop less, the time that is left, and nothing behind it while the side stays open."""
    bench = await relay(peer)
    request_id = os.urandom(16)
    stream = await bench.ask(id=request_id, output_tokens=77, memory_bytes=1000, hops_left=1)
    theirs, message = await bench.servers[0].asked()
    passed = decode_request(message)
    expect(message[4:8] == b"ISIQ", "the file identifier ISIQ", message[:12])
    expect(passed.request_id == request_id, "the same id", passed.request_id.hex())
    expect(passed.hops_left == 0, "no hop left of one", passed.hops_left)
    expect((passed.output_tokens, passed.memory_bytes) == (77, 1000), "the same needs", passed)
    expect(0 < passed.deadline_s <= 5.0, "the time that is left", passed.deadline_s)
    await trio.sleep(peer.subject.quiet_s)
    expect(not theirs.data and not theirs.ended, "nothing behind the request, and a side that stays open", theirs)
    theirs.send(reply_frame(Accepted(), TextDelta("all "), TextDelta("well"), Finished(("stop",))), end=True)
    replies = await answer(stream)
    text = "".join(reply.text for reply in replies if isinstance(reply, TextDelta))
    expect(outcome(replies) is ErrorCode.NO_ERROR and text == "all well", "the answer passed back", replies)


@case("ISO-INFER-020")
async def a_request_without_hops_is_not_passed_on(peer: ScriptedPeer) -> None:
    """Where none is left the node answers itself, or says that it cannot."""
    bench = await relay(peer)
    replies = await answer(await bench.ask(hops_left=0, deadline_us=1_500_000))
    expect(outcome(replies) is ErrorCode.MODEL_NOT_FOUND, "MODEL_NOT_FOUND", replies)
    expect(not bench.servers[0].streams, "a request without hops is not passed on", "it was")


@case("ISO-INFER-012", "ISO-INFER-016")
async def who_no_longer_wants_the_answer_stops_the_work(peer: ScriptedPeer) -> None:
    """A reset of the requester reaches whoever works on the request, as a reset and a stop with CANCELLED."""
    bench = await relay(peer)
    stream = await bench.ask()
    theirs, _ = await bench.servers[0].asked()
    theirs.send(reply_frame(Accepted()))
    stream.reset(ErrorCode.CANCELLED)
    stream.stop(ErrorCode.CANCELLED)
    await _aborted(theirs, ErrorCode.CANCELLED, "once the requester has gone")


@case("ISO-INFER-016")
async def a_lost_connection_stops_the_work(peer: ScriptedPeer) -> None:
    """So does the end of the requester's connection."""
    bench = await relay(peer)
    await bench.ask()
    theirs, _ = await bench.servers[0].asked()
    bench.asker.close(ErrorCode.GOODBYE)
    await _aborted(theirs, ErrorCode.CANCELLED, "once the requester's connection is lost")


@case("ISO-INFER-016")
async def data_behind_a_request_stop_the_work(peer: ScriptedPeer) -> None:
    """A requester that sends more is told MALFORMED, and the work is stopped."""
    bench = await relay(peer)
    stream = await bench.ask()
    theirs, _ = await bench.servers[0].asked()
    stream.send(b"more")
    replies = await answer(stream)
    expect(outcome(replies) is ErrorCode.MALFORMED, "MALFORMED", replies)
    await _aborted(theirs, ErrorCode.CANCELLED, "once the request is void")


@case("ISO-INFER-013", "ISO-INFER-006", "ISO-INFER-009")
async def a_broken_answer_is_a_failed_engine(peer: ScriptedPeer) -> None:
    """Junk, an answer without an end, a second Accepted, an end in the middle: ENGINE_FAILED for who asked."""
    broken = {
        "junk": (encode_frame(b"junk"), False, ErrorCode.MALFORMED),
        "an answer without an end": (reply_frame(Accepted(), TextDelta("a")), True, None),
        "Accepted after an output": (reply_frame(TextDelta("a"), Accepted()), False, ErrorCode.MALFORMED),
        "a reply of 9 MiB": (b"\x80\x80\xc0\x04", False, ErrorCode.TOO_LARGE),
    }
    for what, (data, end, code) in broken.items():
        bench = await relay(peer)
        stream = await bench.ask()
        theirs, _ = await bench.servers[0].asked()
        theirs.send(data, end=end)
        replies = await answer(stream, f"the answer after {what}")
        expect(outcome(replies) is ErrorCode.ENGINE_FAILED, f"ENGINE_FAILED after {what}", replies)
        if code is not None:
            await _aborted(theirs, code, f"for {what}", stopped=False)


@case("ISO-INFER-014", "ISO-CONV-010", "ISO-TRANSPORT-031")
async def a_reset_is_the_failure_that_its_code_says(peer: ScriptedPeer) -> None:
    """Codes of requests and INTERNAL stand for themselves, others for a failed engine, unknown ones for INTERNAL."""
    for code, expected in (
        (int(ErrorCode.OVERLOADED), ErrorCode.OVERLOADED),
        (int(ErrorCode.INTERNAL), ErrorCode.INTERNAL),
        (int(ErrorCode.TOO_LARGE), ErrorCode.TOO_LARGE),
        (int(ErrorCode.FLOODING), ErrorCode.ENGINE_FAILED),
        (int(ErrorCode.CANCELLED), ErrorCode.ENGINE_FAILED),
        (0x7777, ErrorCode.INTERNAL),
    ):
        bench = await relay(peer)
        stream = await bench.ask()
        theirs, _ = await bench.servers[0].asked()
        theirs.reset(code)
        replies = await answer(stream)
        expect(outcome(replies) is expected, f"{expected.name} after a reset with 0x{code:x}", replies)


@case("ISO-CONV-010", "ISO-INFER-008")
async def a_failure_with_an_unknown_code_is_internal(peer: ScriptedPeer) -> None:
    """So is the code of a failed answer."""
    bench = await relay(peer)
    stream = await bench.ask()
    theirs, _ = await bench.servers[0].asked()
    theirs.send(encode_frame(write_message(REPLY, ((6, (0x1FF, "later", 0)),))), end=True)
    replies = await answer(stream)
    expect(outcome(replies) is ErrorCode.INTERNAL, "INTERNAL for the code 0x1FF", replies)


@case("ISO-INFER-014")
async def a_lost_peer_is_unreachable(peer: ScriptedPeer) -> None:
    """The end of the connection in the middle of an answer."""
    bench = await relay(peer)
    stream = await bench.ask()
    await bench.servers[0].asked()
    bench.servers[0].connection.close(ErrorCode.INTERNAL)
    replies = await answer(stream)
    expect(outcome(replies) is ErrorCode.UNREACHABLE, "UNREACHABLE", replies)


@case("ISO-INFER-010", "ISO-INFER-014")
async def silence_past_the_deadline_is_told(peer: ScriptedPeer) -> None:
    """A peer that says nothing costs the requester its deadline and no more."""
    bench = await relay(peer)
    stream = await bench.ask(deadline_us=800_000)
    began = trio.current_time()
    theirs, _ = await bench.servers[0].asked()
    replies = await answer(stream)
    took_s = trio.current_time() - began
    expect(outcome(replies) is ErrorCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", replies)
    expect(took_s < 0.8 + 0.5 + peer.subject.rtt_s, "an end within the deadline and a moment", f"{took_s:.2f} s")
    await theirs.connection.until(lambda: theirs.reset_code is not None, "a reset of the stream to the silent peer")


@case("ISO-INFER-017", "ISO-INFER-018", "ISO-INFER-010")
async def an_answer_that_nobody_reads_is_not_made(peer: ScriptedPeer) -> None:
    """The node takes no more of it than credit and buffers hold, and resets the stream when its time is over."""
    bench = await relay(peer)
    reader = await peer.dial(peer.manner(credit_bytes=32 * 1024, frozen=True))
    stream = await begin(reader, request(bench.model, stream=True, deadline_us=3_000_000))
    theirs, _ = await bench.servers[0].asked()
    server = bench.servers[0].connection.quic
    piece = reply_frame(TextDelta("x" * PIECE))
    theirs.send(reply_frame(Accepted()))
    with trio.move_on_after(2.0):
        while server.sent_bytes(theirs.id) <= POURED_BYTES_MAX and theirs.reset_code is None:
            theirs.send(piece)
            await trio.sleep(0.005)
    expect(server.sent_bytes(theirs.id) <= POURED_BYTES_MAX, f"at most {POURED_BYTES_MAX} bytes", server.sent_bytes(theirs.id))
    await reader.until(lambda: stream.reset_code is not None, "a reset of an answer that nobody reads", seen=lambda: stream)
    expect(stream.reset_code in {ErrorCode.DEADLINE_EXCEEDED, ErrorCode.ENGINE_FAILED}, "the code of the failure", stream)


@case("ISO-INFER-017")
async def replies_of_a_streamed_answer_come_as_they_are_made(peer: ScriptedPeer) -> None:
    """Accepted and the first piece of text are not held back."""
    bench = await relay(peer)
    stream = await bench.ask(stream=True)
    theirs, _ = await bench.servers[0].asked()
    for reply in (Accepted(), TextDelta("a"), TextDelta("b")):
        theirs.send(reply_frame(reply))
        seen = decode_reply(await stream.frame(REPLY_BYTES_MAX, f"{type(reply).__name__} as soon as it is made"))
        expect(type(seen) is type(reply), f"{type(reply).__name__}", seen)


@case("ISO-INFER-021")
async def a_request_in_a_circle_is_refused(peer: ScriptedPeer) -> None:
    """The same id a second time while the first is under way."""
    bench = await relay(peer)
    request_id = os.urandom(16)
    await bench.ask(id=request_id)
    await bench.servers[0].asked()
    replies = await answer(await bench.ask(id=request_id))
    expect(outcome(replies) is ErrorCode.HOPS_EXCEEDED, "HOPS_EXCEEDED", replies)


@case("ISO-INFER-022")
async def no_second_candidate_after_the_first_output(peer: ScriptedPeer) -> None:
    """Who has begun to answer is the only one; a code that is not for retry ends it, too."""
    for sent in ((TextDelta("a"), Failed(ErrorCode.ENGINE_FAILED, "")), (Failed(ErrorCode.BAD_REQUEST, ""),)):
        bench = await relay(peer, 2)
        stream = await bench.ask(stream=True)
        await bench.asker.until(lambda bench=bench: any(s.streams for s in bench.servers), "a request passed on")  # type: ignore[misc]
        asked = next(server for server in bench.servers if server.streams)
        other = next(server for server in bench.servers if server is not asked)
        theirs, _ = await asked.asked()
        theirs.send(reply_frame(*sent), end=True)
        last = sent[-1]
        assert isinstance(last, Failed)
        replies = await answer(stream)
        expect(outcome(replies) is last.code, f"{last.code.name} passed on", replies)
        expect(not other.streams, "no second candidate", "another was asked")


@case("ISO-INFER-022")
async def the_next_candidate_is_asked_before_the_first_output(peer: ScriptedPeer) -> None:
    """A code that is marked for retry leads to the other peer that serves the model."""
    bench = await relay(peer, 2)
    stream = await bench.ask()
    await bench.asker.until(lambda: any(server.streams for server in bench.servers), "a request passed on")
    asked = next(server for server in bench.servers if server.streams)
    other = next(server for server in bench.servers if server is not asked)
    theirs, _ = await asked.asked()
    theirs.send(reply_frame(Failed(ErrorCode.OVERLOADED, "")), end=True)
    second, _ = await other.asked()
    second.send(reply_frame(TextDelta("b"), Finished(("stop",))), end=True)
    replies = await answer(stream)
    expect(outcome(replies) is ErrorCode.NO_ERROR, "the answer of the second", replies)


@case("ISO-INFER-023", "ISO-MEMBER-007", "ISO-MEMBER-018", alone=True)
async def who_falls_silent_is_asked_no_more(peer: ScriptedPeer) -> None:
    """The stream to a suspected peer is reset with CANCELLED, and it gets no further work."""
    bench = await relay(peer, 2)
    for server in bench.servers:
        server.gossip.send(Graft())
        await server.gossip.settled()
    stream = await bench.ask(deadline_us=20_000_000)
    await bench.asker.until(lambda: any(server.streams for server in bench.servers), "a request passed on")
    asked = next(server for server in bench.servers if server.streams)
    other = next(server for server in bench.servers if server is not asked)
    theirs, _ = await asked.asked()
    asked.connection.echoes = False
    second, _ = await other.asked(within_s=5.0)
    await _aborted(theirs, ErrorCode.CANCELLED, "to a peer that is suspected")
    second.send(reply_frame(TextDelta("b"), Finished(("stop",))), end=True)
    replies = await answer(stream)
    expect(outcome(replies) is ErrorCode.NO_ERROR, "the answer of the second", replies)
    await bench.ask()
    await other.asked(2)
    expect(len(asked.streams) == 1, "no work for who is suspected", len(asked.streams))


@case("ISO-INFER-024")
async def who_has_too_little_memory_is_not_asked(peer: ScriptedPeer) -> None:
    """The card says a gibibyte; a request for two is refused without asking."""
    bench = await relay(peer)
    replies = await answer(await bench.ask(memory_bytes=2 << 30))
    expect(isinstance(replies[-1], Failed), "a refusal", replies)
    expect(not bench.servers[0].streams, "a candidate with too little memory is not asked", "it was asked")


@case("ISO-MEMBER-007", "ISO-MEMBER-012", alone=True)
async def who_has_said_goodbye_is_asked_no_more(peer: ScriptedPeer) -> None:
    """After GOODBYE the peer is out at once, though its card still says where it can be dialled and what it serves."""
    bench = await relay(peer)
    gossip = bench.servers[0].gossip
    listener = peer.listen(gossip.identity, served=())
    offer = ModelOffer(bench.model, frozenset({Feature.CHAT}))
    scribe = Scribe(gossip.identity, peer.subject)
    gossip.send_records(scribe.seal(card_of([listener.address], [offer]), sequence=2))
    await gossip.settled()
    gossip.connection.close(ErrorCode.GOODBYE)
    await peer.ping(bench.asker)
    replies = await answer(await bench.ask(deadline_us=1_500_000))
    expect(isinstance(replies[-1], Failed), "a refusal", replies)
    opened = [stream.opening for connection in listener.connections for stream in connection.opened]
    expect(not any(INFER_PROTOCOL.encode() in opening for opening in opened), "no work for who has left", "it was asked")


@case("ISO-MEMBER-003")
async def who_speaks_no_gossip_is_given_no_work(peer: ScriptedPeer) -> None:
    """A peer whose card is known and that is connected without gossip is no member."""
    peer.needs_inference()
    herald = await talk(peer)
    identity = peer.stranger()
    model = f"conformance-{os.urandom(4).hex()}"
    silent = await peer.dial(identity=identity, served=(PING_PROTOCOL, INFER_PROTOCOL))
    offer = ModelOffer(model, frozenset({Feature.CHAT}))
    herald.send_records(Scribe(identity, peer.subject).seal(card_of(models=[offer])))
    await herald.settled()
    replies = await answer(await begin(await peer.dial(identity=peer.stranger()), request(model, deadline_us=1_500_000)))
    expect(isinstance(replies[-1], Failed), "a refusal", replies)
    expect(not silent.of(INFER_PROTOCOL), "no work for who speaks no gossip", "it was asked")
    await peer.ping(silent)
