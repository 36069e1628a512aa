"""Wrong behaviours of a node in inference, each by name, for the suite to catch."""

import os
from dataclasses import replace

import trio
from transport_faults import fault

import mesh.inference.client
import mesh.inference.server
import mesh.transport.stream
import protocol.forwarding
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed
from protocol.wire.inference import encode_reply


@fault("refuses every request with INTERNAL", "ISO-INFER-006", "ISO-INFER-007", "ISO-INFER-008", "ISO-INFER-001")
def _(service, patch):
    patch.setattr(mesh.inference.server, "Failed", lambda _code, message: Failed(ErrorCode.INTERNAL, message))


@fault("resets a stream whose request it cannot read", "ISO-INFER-015", "ISO-INFER-006", "ISO-INFER-008")
def _(service, patch):
    async def reset(self, failed):
        self.reset_code = failed.code

    patch.setattr(mesh.inference.server._Serving, "_finish", reset)


@fault("takes any file identifier", "ISO-INFER-001")
def _(service, patch):
    decode = mesh.inference.server.decode_request
    patch.setattr(
        mesh.inference.server, "decode_request", lambda message: decode(bytes(message[:4]) + b"ISIQ" + bytes(message[8:]))
    )


@fault("goes on after data behind a request", "ISO-INFER-016")
def _(service, patch):
    async def listen(self, _work):
        pass

    patch.setattr(mesh.inference.server._Serving, "_listen", listen)


@fault("works on for who has gone", "ISO-INFER-012", "ISO-INFER-016")
def _(service, patch):
    async def listen(self, _work):
        pass

    patch.setattr(mesh.inference.server._Serving, "_listen", listen)


@fault("accepts twice", "ISO-INFER-009")
def _(service, patch):
    twice = encode_frame(encode_reply(Accepted()))
    frame = mesh.inference.server.frame_reply
    patch.setattr(mesh.inference.server, "frame_reply", lambda reply: (twice, twice, *frame(reply)))


@fault("does not end the stream behind an answer", "ISO-INFER-009", "ISO-INFER-015")
def _(service, patch):
    send = mesh.inference.server._Serving._send

    async def endless(self, frames, *, end=False, **when):
        await send(self, frames, **when)

    async def stay(_self):
        await trio.sleep(60.0)

    patch.setattr(mesh.inference.server._Serving, "_send", endless)
    patch.setattr(mesh.inference.server._Serving, "see_off", stay)


@fault("holds a streamed answer back until its end", "ISO-INFER-017")
def _(service, patch):
    pass_on = mesh.inference.server._Serving._pass_on

    def held(self, replies, *, hold, at_hand):
        return pass_on(self, replies, hold=True, at_hand=at_hand)

    patch.setattr(mesh.inference.server._Serving, "_pass_on", held)


def passing_on(patch, change) -> None:
    """Have `change` decide what request the node passes on."""
    ask = mesh.inference.client.Answer.ask
    patch.setattr(mesh.inference.client.Answer, "ask", lambda self, request: ask(self, change(request)))


@fault("passes a request on with all its hops", "ISO-INFER-020")
def _(service, patch):
    passing_on(patch, lambda request: replace(request, hops_left=request.hops_left + 1))


@fault("passes a request on under an id of its own", "ISO-INFER-020")
def _(service, patch):
    passing_on(patch, lambda request: replace(request, request_id=os.urandom(16)))


@fault("passes a request on without its needs", "ISO-INFER-020")
def _(service, patch):
    passing_on(patch, lambda request: replace(request, memory_bytes=0, output_tokens=0))


@fault("passes on what may go no further", "ISO-INFER-020")
def _(service, patch):
    rank, submit = service.node.rank, service.node.submit
    service.node.rank = lambda request, *args: rank(replace(request, hops_left=1), *args)
    service.node.submit = lambda request, *args: submit(replace(request, hops_left=1), *args)


@fault("asks peers with too little memory", "ISO-INFER-024")
def _(service, patch):
    rank = service.node.rank
    service.node.rank = lambda request, *args: rank(replace(request, memory_bytes=0), *args)


@fault("asks another after any failure", "ISO-INFER-022")
def _(service, patch):
    patch.setattr(protocol.forwarding, "RETRYABLE", frozenset(ErrorCode))


@fault("cancels with a code of its own", "ISO-INFER-012", "ISO-INFER-016", "ISO-INFER-023")
def _(service, patch):
    reset = mesh.transport.stream.Stream.reset

    def other(self, code=ErrorCode.CANCELLED):
        reset(self, ErrorCode.INTERNAL if code == ErrorCode.CANCELLED else code)

    patch.setattr(mesh.transport.stream.Stream, "reset", other)


@fault("calls every reset of a peer internal", "ISO-INFER-014")
def _(service, patch):
    patch.setattr(mesh.inference.client, "_FAILURES", {})


@fault("takes a request twice", "ISO-INFER-021")
def _(service, patch):
    admit = service.dispatcher._admit

    def again(ticket, from_peer, now):
        ticket.request = replace(ticket.request, request_id=os.urandom(16))
        admit(ticket, from_peer, now)

    service.dispatcher._admit = again
