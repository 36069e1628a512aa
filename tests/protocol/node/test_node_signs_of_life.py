"""A peer that was lost shows by what it says, or has signed, that it lives."""

from world import Member, World

from protocol.gossip.messages import Keep, encode_message, records_messages
from protocol.membership import Standing
from protocol.probe import SendDatagram
from protocol.records import Verdict, seal


def three(after_s: float) -> tuple[World, Member, Member, Member]:
    """Three nodes, of which the second dies at ten seconds, as the first sees it so much later."""
    world = World(seed=1)
    first = world.add()
    others = [world.add(bootstrap=[first.address]) for _ in range(2)]
    world.run(10.0)
    world.kill(others[0])
    world.run(10.0 + after_s)
    return world, first, *others


def probes_sent(node: Member, to: Member, until: float) -> int:
    """How many probes a core sends by itself."""
    sent = 0
    while node.node.next_timer() <= until:
        node.node.handle_timer(node.node.next_timer())
        while (output := node.node.next_output()) is not None:
            sent += isinstance(output, SendDatagram) and output.peer == to.peer_id
    return sent


def test_peer_that_was_given_up_is_back_with_the_first_record_that_it_signed_since() -> None:
    world, node, lost, third = three(80.0)
    membership, now = node.node.membership, world.now
    assert membership.standing(lost.peer_id, now)[0] is Standing.GONE
    assert not membership.is_connected(lost.peer_id)
    for sequence, issued_at, standing in ((1000, 15.0, Standing.GONE), (1001, now - 1.0, Standing.ALIVE)):
        wall_s = node.node.wall(issued_at)
        config = node.config
        record = seal(
            lost.identity,
            config.network_id,
            Verdict(()),
            sequence,
            wall_s,
            wall_s + config.verdict_lifetime_s,
            config.table.records,
        )
        for message in records_messages([record.envelope]):
            node.node.handle_message(third.peer_id, message, now)
        assert membership.standing(lost.peer_id, now)[0] is standing


def test_silent_peer_whose_message_comes_is_probed_at_once() -> None:
    world, node, lost, _ = three(30.0)
    now, probe = world.now, node.config.probe
    assert node.node.membership.is_connected(lost.peer_id)
    assert node.node.membership.standing(lost.peer_id, now)[0] is Standing.GONE
    node.node.handle_message(lost.peer_id, encode_message(Keep(True)), now)
    assert probes_sent(node, lost, now + probe.burst_probes * probe.burst_interval_s) == probe.burst_probes
