"""Wrong behaviours of a node on gossipsub, each by name, for the suite to catch."""

import os
from contextlib import suppress
from dataclasses import replace

from transport_faults import fault

import mesh.strangers
import protocol.node.strangers
import protocol.pubsub.router
from mesh.transport import ConnectionLost, StreamReset
from protocol.pubsub.messages import Prune, Rpc, decode_rpc, encode_rpc


def rpcs(service, change) -> None:
    """Have `change` decide what RPCs the node says."""
    post = service.driver.strangers.post

    def say(peer_id, payload):
        said = change(decode_rpc(payload))
        if said is not None:
            post(peer_id, encode_rpc(said))

    service.driver.strangers.post = say


@fault("opens gossipsub to members", "ISO-PUBSUB-001")
def _(service, patch):
    greeted = service.driver._greeted

    def and_open(peer_id):
        greeted(peer_id)
        connection = service.transport.connections.get(peer_id)
        if connection is not None:
            service.driver._start(open_one, connection)

    async def open_one(connection):
        with suppress(StreamReset, ConnectionLost):
            async with await connection.open_stream("/meshsub/1.2.0") as stream:
                await stream.confirmed()

    service.driver._greeted = and_open


@fault("speaks an older version than both know", "ISO-PUBSUB-002")
def _(service, patch):
    version = mesh.strangers.Version
    serve = service.driver.strangers._serve
    service.driver.strangers._serve = lambda connection, _newest: serve(connection, version.V10)


@fault("serves any number of strangers", "ISO-PUBSUB-004")
def _(service, patch):
    router = service.node.strangers.router
    router._config = replace(router._config, peers_max=10_000)


@fault("publishes cards without verifying their stamps", "ISO-PUBSUB-006", "ISO-GOS-041")
def _(service, patch):
    patch.setattr(protocol.node.strangers, "is_signed", lambda _message: True)


@fault("does not publish its own cards", "ISO-PUBSUB-005", "ISO-PUBSUB-007", "ISO-PUBSUB-008")
def _(service, patch):
    own = bytes(service.node.peer_id)

    def without_own(rpc: Rpc):
        return replace(rpc, messages=tuple(message for message in rpc.messages if message.author != own))

    rpcs(service, without_own)


@fault("signs its messages wrongly", "ISO-PUBSUB-005")
def _(service, patch):
    def spoilt(rpc: Rpc):
        return replace(rpc, messages=tuple(replace(message, signature=os.urandom(64)) for message in rpc.messages))

    rpcs(service, spoilt)


@fault("passes on whatever is published", "ISO-PUBSUB-009")
def _(service, patch):
    strangers = service.node.strangers
    strangers._judge = lambda _peer_id, _message, _now: protocol.node.strangers.Judgement.ACCEPT
    patch.setattr(protocol.pubsub.router, "is_signed", lambda _message: True)


@fault("keeps the cards of strangers to itself", "ISO-PUBSUB-011")
def _(service, patch):
    judge = service.node.strangers._judge

    def ignore(peer_id, message, now):
        return protocol.node.strangers.Judgement.IGNORE if message.author else judge(peer_id, message, now)

    service.node.strangers._judge = ignore


@fault("knows no ids without the header", "ISO-PUBSUB-018")
def _(service, patch):
    patch.setattr(protocol.pubsub.router, "whole_id", lambda name: name)


@fault("does not say for how long a link is given back", "ISO-PUBSUB-012")
def _(service, patch):
    def untold(rpc: Rpc):
        return replace(rpc, prunes=tuple(Prune(prune.topic, None) for prune in rpc.prunes))

    rpcs(service, untold)


@fault("asks for all that it is told of", "ISO-PUBSUB-014")
def _(service, patch):
    router = service.node.strangers.router
    router._config = replace(router._config, ihaves_max=10_000)


@fault("takes no notice of IDONTWANT", "ISO-PUBSUB-015")
def _(service, patch):
    router = service.node.strangers.router
    handle = router.handle_rpc

    def without(peer_id, payload, now):
        try:
            payload = encode_rpc(replace(decode_rpc(payload), idontwants=()))
        finally:
            handle(peer_id, payload, now)

    router.handle_rpc = without


@fault("forgets the score of who leaves", "ISO-PUBSUB-016")
def _(service, patch):
    scores = service.node.strangers.router.scores
    patch.setattr(type(scores), "handle_disconnected", lambda self, peer_id, _now: self._forget(peer_id))


@fault("bears any flood of strangers", "ISO-PUBSUB-017")
def _(service, patch):
    router = service.node.strangers.router
    router._within = lambda *_args: True


@fault("bears RPCs that do not decode", "ISO-PUBSUB-003")
def _(service, patch):
    router = service.node.strangers.router
    router._blame = lambda _peer_id, _peer, _code: None
