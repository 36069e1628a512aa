"""One router and what peers may say to it: every rule of gossipsub, and every bound."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pubsub_strategies import rpcs_about
from pubsub_world import CONFIG, IDENTITIES, SCORED, TOPIC, drained, rpcs_to

from protocol.errors import ErrorCode
from protocol.libp2p.protobuf import encode_bytes, encode_uint
from protocol.pubsub import Judgement, PubsubMisbehaved, PubsubRouter, Version, sign_message
from protocol.pubsub.config import MessageCame, SendRpc
from protocol.pubsub.messages import IHave, Prune, Rpc, Subscription, encode_pubsub_message, encode_rpc

OWN, *OTHERS = IDENTITIES
PEERS = [identity.peer_id for identity in OTHERS]
ONE, TWO = PEERS[:2]
SUBSCRIBED = Rpc(subscriptions=(Subscription(TOPIC),))


def message(number=1, data=b"data", author=OTHERS[40], topic=TOPIC):
    return sign_message(author, data, number, topic)


def router_with(peers=(ONE, TWO), version=Version.V12, config=CONFIG, dialled=False, subscribed=True):
    router = PubsubRouter(config, OWN.peer_id, random.Random(1))
    router.join(TOPIC, 0.0)
    for peer in peers:
        router.handle_connected(peer, version, None, 0.0, is_dialled=dialled)
        if subscribed:
            hear(router, peer, SUBSCRIBED)
    drained(router)
    return router


def hear(router, peer, rpc, now=0.0):
    """What comes out when a peer says something."""
    router.handle_rpc(peer, rpc if isinstance(rpc, bytes) else encode_rpc(rpc), now)
    return drained(router)


def heartbeat(router):
    router.handle_timer(router.next_timer())
    return drained(router)


def accept(router, outputs, judgement=Judgement.ACCEPT, now=0.0):
    for output in outputs:
        if isinstance(output, MessageCame):
            router.handle_judged(output.peer_id, output.message, judgement, now)
    return drained(router)


# Topics


def test_a_peer_is_told_the_subscriptions_when_it_connects_and_when_they_change():
    router = PubsubRouter(CONFIG, OWN.peer_id, random.Random(1))
    router.handle_connected(ONE, Version.V11, None, 0.0, is_dialled=False)
    assert drained(router) == []
    router.join(TOPIC, 0.0)
    assert rpcs_to(drained(router), ONE).subscriptions == (Subscription(TOPIC),)
    router.handle_connected(TWO, Version.V11, None, 0.0, is_dialled=False)
    assert rpcs_to(drained(router), TWO).subscriptions == (Subscription(TOPIC),)
    router.leave(TOPIC)
    assert rpcs_to(drained(router), ONE).subscriptions == (Subscription(TOPIC, subscribes=False),)


def test_leaving_prunes_the_mesh_with_the_short_backoff():
    router = router_with()
    heartbeat(router)
    router.leave(TOPIC)
    assert rpcs_to(drained(router), ONE).prunes == (Prune(TOPIC, 10),)


def test_joining_grafts_those_subscribed():
    router = PubsubRouter(CONFIG, OWN.peer_id, random.Random(1))
    for peer in PEERS[:8]:
        router.handle_connected(peer, Version.V11, None, 0.0, is_dialled=False)
        hear(router, peer, SUBSCRIBED)
    router.join(TOPIC, 0.0)
    assert len(router.mesh(TOPIC)) == CONFIG.degree


def test_who_unsubscribes_leaves_the_mesh():
    router = router_with()
    heartbeat(router)
    assert ONE in router.mesh(TOPIC)
    hear(router, ONE, Rpc(subscriptions=(Subscription(TOPIC, subscribes=False),)))
    assert ONE not in router.mesh(TOPIC)


def test_topics_of_a_peer_are_bounded_but_for_those_of_this_node():
    router = router_with(subscribed=False)
    hear(router, ONE, Rpc(subscriptions=tuple(Subscription(f"t{number}") for number in range(CONFIG.topics_max + 50))))
    hear(router, ONE, SUBSCRIBED)
    assert len(router._peers[ONE].topics) == CONFIG.topics_max + 1
    assert ONE in router.subscribers(TOPIC)


# Messages


def test_a_message_is_judged_then_pushed_to_the_mesh_but_not_back():
    router = router_with(PEERS[:3])
    heartbeat(router)
    outputs = hear(router, ONE, Rpc(messages=(message(),)))
    assert outputs == [MessageCame(ONE, message())]
    outputs = accept(router, outputs)
    assert [output.peer_id for output in outputs] == [peer for peer in router.mesh(TOPIC) if peer != ONE]
    assert rpcs_to(outputs, TWO).messages == (message(),)


def test_a_message_is_not_pushed_to_its_author():
    router = router_with()
    heartbeat(router)
    own_word = message(author=OTHERS[1])
    assert accept(router, hear(router, ONE, Rpc(messages=(own_word,)))) == []


@pytest.mark.parametrize("judgement", [Judgement.IGNORE, Judgement.REJECT])
def test_what_is_not_accepted_is_not_pushed_and_only_a_rejection_costs(judgement):
    router = router_with()
    heartbeat(router)
    before = router.scores.score(ONE)
    assert accept(router, hear(router, ONE, Rpc(messages=(message(),))), judgement) == []
    assert (router.scores.score(ONE) < before) is (judgement is Judgement.REJECT)


def test_a_copy_is_judged_once_and_is_no_second_delivery():
    router = router_with()
    accept(router, hear(router, ONE, Rpc(messages=(message(),))))
    scores = router.scores.score(ONE), router.scores.score(TWO)
    assert hear(router, TWO, Rpc(messages=(message(),))) == []
    assert hear(router, ONE, Rpc(messages=(message(),))) == []
    assert (router.scores.score(ONE), router.scores.score(TWO)) == scores
    assert scores[0] > scores[1]


def test_an_id_is_forgotten_after_two_minutes():
    router = router_with()
    hear(router, ONE, Rpc(messages=(message(),)))
    for _ in range(125):
        heartbeat(router)
    assert hear(router, ONE, Rpc(messages=(message(),)), router.next_timer()) == [MessageCame(ONE, message())]


@pytest.mark.parametrize(
    "wrong",
    [replace(message(), data=b"other"), replace(message(), signature=b""), replace(message(), seqno=b"", signature=b"")],
    ids=["signature", "unsigned", "no number"],
)
def test_a_message_that_is_not_signed_costs_its_bringer_and_hides_no_good_one(wrong):
    router = router_with()
    assert hear(router, ONE, Rpc(messages=(wrong,))) == []
    assert router.scores.score(ONE) < 0.0
    assert hear(router, TWO, Rpc(messages=(message(),))) == [MessageCame(TWO, message())]


def test_messages_of_other_topics_and_of_later_versions_are_left_alone():
    router = router_with()
    later = encode_bytes(2, encode_pubsub_message(message()) + encode_uint(9, 1))
    assert hear(router, ONE, Rpc(messages=(message(topic="another"),))) == []
    assert hear(router, ONE, later) == []
    assert router.scores.score(ONE) == 0.0


def test_own_messages_that_come_back_are_left_alone():
    router = router_with()
    assert hear(router, ONE, Rpc(messages=(message(author=OWN),))) == []
    assert router.scores.score(ONE) == 0.0


def test_own_messages_go_to_all_subscribers_and_others_to_the_mesh():
    router = router_with(PEERS[:20])
    heartbeat(router)
    router.publish(message(1, author=OWN), 0.0, own=True)
    assert len(drained(router)) == 20
    router.publish(message(2), 0.0, own=False)
    assert sorted(output.peer_id for output in drained(router)) == sorted(router.mesh(TOPIC))
    router.publish(message(2), 0.0, own=False)
    assert drained(router) == []


def test_own_messages_are_not_sent_below_the_publish_threshold():
    router = router_with()
    router.scores.set_app_score(ONE, CONFIG.score.publish_threshold - 1.0)
    router.publish(message(author=OWN), 0.0, own=True)
    assert [output.peer_id for output in drained(router)] == [TWO]


def test_without_subscribing_a_few_are_published_to_and_kept_for_a_while():
    config = replace(CONFIG, flood_publish=False)
    router = PubsubRouter(config, OWN.peer_id, random.Random(1))
    for peer in PEERS[:20]:
        router.handle_connected(peer, Version.V11, None, 0.0, is_dialled=False)
        hear(router, peer, SUBSCRIBED)
    router.publish(message(1, author=OWN), 0.0, own=True)
    first = {output.peer_id for output in drained(router)}
    router.publish(message(2, author=OWN), 1.0, own=True)
    assert {output.peer_id for output in drained(router)} == first
    assert len(first) == config.degree
    for _ in range(62):
        heartbeat(router)
    assert router._fanout == {}


# Gossip


def test_what_was_seen_is_told_to_those_outside_the_mesh_for_three_heartbeats_and_kept_for_five():
    router = router_with(PEERS[:20])
    heartbeat(router)
    accept(router, hear(router, ONE, Rpc(messages=(message(),))))
    outside = set(PEERS[:20]) - set(router.mesh(TOPIC))
    for beat in range(5):
        outputs = heartbeat(router)
        told = {output.peer_id for output in outputs if rpcs_to([output], output.peer_id).ihaves}
        assert len(told) == (CONFIG.degree_lazy if beat < 3 else 0)
        assert told <= outside
        asked = hear(router, PEERS[3 + beat], Rpc(iwants=(message().id,)))
        assert len(asked) == (1 if beat < 4 else 0)


def test_what_is_asked_for_is_sent_a_few_times_and_not_where_it_is_not_wanted():
    router = router_with()
    accept(router, hear(router, ONE, Rpc(messages=(message(),))))
    answers = [hear(router, TWO, Rpc(iwants=(message().id, message().id))) for _ in range(5)]
    assert [len(answer) for answer in answers] == [1, 1, 1, 0, 0]
    hear(router, ONE, Rpc(idontwants=(message().id,)))
    assert hear(router, ONE, Rpc(iwants=(message().id,))) == []


def test_what_is_lacking_is_asked_for_once_and_within_bounds():
    router = router_with()
    accept(router, hear(router, TWO, Rpc(messages=(message(),))))
    outputs = hear(router, ONE, Rpc(ihaves=(IHave(TOPIC, (b"a", message().id)), IHave("another", (b"b",)))))
    assert rpcs_to(outputs, ONE).iwants == (b"a",)
    for _ in range(CONFIG.ihaves_max + 5):
        last = hear(router, ONE, Rpc(ihaves=(IHave(TOPIC, (b"c",)),)))
    assert last == []
    heartbeat(router)
    asked = [
        hear(router, ONE, Rpc(ihaves=(IHave(TOPIC, tuple(b"%d-%d" % (turn, n) for n in range(3000))),))) for turn in range(3)
    ]
    assert [len(rpcs_to(outputs, ONE).iwants) for outputs in asked] == [3000, 2000, 0]


def test_a_promise_that_is_not_kept_costs_and_one_that_another_keeps_does_not():
    router = router_with()
    hear(router, ONE, Rpc(ihaves=(IHave(TOPIC, (message(1).id,)),)))
    hear(router, TWO, Rpc(ihaves=(IHave(TOPIC, (message(2).id,)),)))
    hear(router, ONE, Rpc(messages=(message(2),)))
    for _ in range(4):
        heartbeat(router)
    assert router.scores._peers[ONE].behaviour == pytest.approx(1.0, abs=0.01)
    assert router.scores._peers[TWO].behaviour == 0.0


def test_below_the_gossip_threshold_nothing_is_asked_answered_or_told():
    router = router_with(PEERS[:20])
    heartbeat(router)
    accept(router, hear(router, ONE, Rpc(messages=(message(),))))
    for peer in PEERS[:20]:
        router.scores.set_app_score(peer, CONFIG.score.gossip_threshold - 10.0)
    assert hear(router, ONE, Rpc(ihaves=(IHave(TOPIC, (b"a",)),))) == []
    assert hear(router, TWO, Rpc(iwants=(message().id,))) == []
    assert not any(rpcs_to([output], output.peer_id).ihaves for output in heartbeat(router))


def test_below_the_graylist_threshold_nothing_is_read():
    router = router_with()
    router.scores.set_app_score(ONE, CONFIG.score.graylist_threshold - 1.0)
    assert hear(router, ONE, Rpc(messages=(message(),))) == []
    assert hear(router, ONE, b"\xff") == []


# Ids as js-libp2p makes them


def test_ids_without_the_multihash_s_header_name_the_same_messages_and_are_told_back_so():
    router = router_with(PEERS[:20])
    heartbeat(router)
    accept(router, hear(router, TWO, Rpc(messages=(message(1),))))
    bare = [message(number).id[2:] for number in (1, 2)]
    outputs = hear(router, ONE, Rpc(ihaves=(IHave(TOPIC, tuple(bare)),)))
    assert rpcs_to(outputs, ONE).iwants == (bare[1],)
    hear(router, ONE, Rpc(messages=(message(2),)))
    for _ in range(4):
        heartbeat(router)
    assert router.scores._peers[ONE].behaviour == 0.0  # the promise was kept
    assert rpcs_to(hear(router, TWO, Rpc(iwants=(message(2).id[2:],))), TWO).messages == ()  # forgotten by now, but understood
    accept(router, hear(router, TWO, Rpc(messages=(message(3),))))
    assert rpcs_to(hear(router, PEERS[2], Rpc(iwants=(message(3).id[2:],))), PEERS[2]).messages == (message(3),)


def test_a_peer_is_told_bare_ids_once_it_told_one():
    router = router_with((ONE, TWO, PEERS[2]), config=replace(CONFIG, degree=0, degree_min=0, degree_out=0))
    hear(router, ONE, Rpc(idontwants=(message(9).id[2:],)))
    accept(router, hear(router, PEERS[2], Rpc(messages=(message(1),))))
    outputs = heartbeat(router)
    assert rpcs_to(outputs, ONE).ihaves == (IHave(TOPIC, (message(1).id[2:],)),)
    assert rpcs_to(outputs, TWO).ihaves == (IHave(TOPIC, (message(1).id,)),)


def test_a_bare_id_that_is_not_wanted_is_not_pushed():
    router = router_with()
    heartbeat(router)
    hear(router, TWO, Rpc(idontwants=(message().id[2:],)))
    assert accept(router, hear(router, ONE, Rpc(messages=(message(),)))) == []


# Long messages


def test_a_long_message_is_announced_before_it_is_judged_to_those_who_understand():
    long = message(data=bytes(CONFIG.idontwant_bytes_min))
    router = router_with((ONE, TWO))
    router.handle_connected(PEERS[2], Version.V11, None, 0.0, is_dialled=False)
    hear(router, PEERS[2], SUBSCRIBED)
    heartbeat(router)
    outputs = hear(router, ONE, Rpc(messages=(long,)))
    assert isinstance(outputs[-1], MessageCame)
    assert rpcs_to(outputs, TWO).idontwants == (long.id,)
    assert [output.peer_id for output in outputs[:-1]] == [TWO]


def test_what_is_not_wanted_is_not_pushed_for_three_heartbeats():
    router = router_with()
    heartbeat(router)
    hear(router, TWO, Rpc(idontwants=(message().id, message(2).id)))
    assert accept(router, hear(router, ONE, Rpc(messages=(message(),)))) == []
    for _ in range(3):
        heartbeat(router)
    assert len(accept(router, hear(router, ONE, Rpc(messages=(message(2),))))) == 1


def test_ids_not_wanted_are_bounded():
    router = router_with()
    hear(router, ONE, Rpc(idontwants=tuple(b"%d" % number for number in range(CONFIG.idontwant_ids_max + 100))))
    assert len(router._peers[ONE].unwanted) == CONFIG.idontwant_ids_max


# Links


def test_a_graft_during_backoff_is_answered_by_a_prune_and_costs():
    router = router_with(subscribed=False)
    hear(router, ONE, Rpc(prunes=(Prune(TOPIC, 60),)))
    assert rpcs_to(hear(router, ONE, Rpc(grafts=(TOPIC,)), 1.0), ONE).prunes == (Prune(TOPIC, 60),)
    assert router.scores._peers[ONE].behaviour == 2.0
    hear(router, ONE, Rpc(grafts=(TOPIC,)), 30.0)
    assert router.scores._peers[ONE].behaviour == 3.0


def test_a_graft_for_an_unknown_topic_is_not_answered():
    assert hear(router_with(), ONE, Rpc(grafts=("another",))) == []


def test_a_peer_whose_score_falls_is_pruned_at_the_next_heartbeat():
    router = router_with()
    heartbeat(router)
    router.scores.set_app_score(ONE, -1.0)
    assert rpcs_to(heartbeat(router), ONE).prunes == (Prune(TOPIC, 60),)
    assert ONE not in router.mesh(TOPIC)


# Bounds


def test_peers_are_bounded():
    router = router_with(PEERS[:62], config=replace(CONFIG, peers_max=62))
    assert not router.handle_connected(PEERS[62], Version.V11, None, 0.0, is_dialled=False)
    assert len(router) == 62


def blamed(router, peer, rpc, times):
    for _ in range(times):
        for output in hear(router, peer, rpc):
            if isinstance(output, PubsubMisbehaved):
                return output.code
    return None


def test_a_flood_of_bytes_entries_or_signatures_ends_the_connection_and_honest_talk_does_not():
    padding = encode_bytes(9, bytes(1_000_000))
    assert blamed(router_with(), ONE, padding, 4) is None
    assert blamed(router_with(), ONE, padding, 9) is ErrorCode.FLOODING
    entries = Rpc(ihaves=(IHave(TOPIC, tuple(b"%d" % number for number in range(5000))),))
    assert blamed(router_with(), ONE, entries, 3) is None
    assert blamed(router_with(), ONE, entries, 4) is ErrorCode.FLOODING
    wrong = Rpc(messages=(replace(message(), data=b"other"),))
    generous = replace(CONFIG, score=replace(SCORED, graylist_threshold=-1e12))
    assert blamed(router_with(config=generous), ONE, wrong, 1400) is None
    assert blamed(router_with(config=generous), ONE, wrong, 1402) is ErrorCode.FLOODING


def test_who_is_blamed_is_neither_heard_nor_told_and_others_are_not_disturbed():
    router = router_with(PEERS[:3])
    heartbeat(router)
    assert hear(router, ONE, b"\xff") == [PubsubMisbehaved(ONE, ErrorCode.MALFORMED)]
    assert hear(router, ONE, Rpc(messages=(message(),))) == []
    outputs = accept(router, hear(router, TWO, Rpc(messages=(message(2),))))
    assert [output.peer_id for output in outputs] == [PEERS[2]]
    assert not any(output.peer_id == ONE for output in heartbeat(router) if isinstance(output, SendRpc))


def test_messages_and_ids_remembered_are_bounded():
    config = replace(CONFIG, history_max=10, seen_max=20)
    router = router_with(config=config)
    for number in range(1, 41):
        accept(router, hear(router, ONE, Rpc(messages=(message(number),))))
    assert (len(router._cache), len(router._seen)) == (10, 20)


def test_a_router_without_peers_has_nothing_to_do():
    router = router_with((ONE,))
    assert router.next_timer() is not None
    router.handle_disconnected(ONE, 0.0)
    assert router.next_timer() is None
    router.publish(message(), 0.0, own=False)
    assert drained(router) == []


MESSAGES = [message(number) for number in range(1, 4)] + [replace(message(9), data=b"other")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(rpcs_about(TOPIC, MESSAGES), st.sampled_from([0.0, 0.3, 70.0])), max_size=12))
def test_whatever_a_peer_says_others_are_served_and_nothing_grows(talk):
    router = router_with(PEERS[:8])
    now = 0.0
    for rpc, pause in talk:
        now += pause
        outputs = hear(router, ONE, rpc, now)
        assert not any(isinstance(output, PubsubMisbehaved) for output in outputs)  # rude, but far from a flood
        accept(router, outputs, now=now)
        while router.next_timer() <= now:
            heartbeat(router)
    assert len(router.mesh(TOPIC)) <= CONFIG.degree_max
    assert set(router.mesh(TOPIC)) <= set(PEERS[:8])
    assert len(router._peers[ONE].topics) <= CONFIG.topics_max + 1
    assert len(router._promises) <= CONFIG.ihaves_max * 4
    for _ in range(2):
        heartbeat(router)
    fresh = message(77)
    reached = {output.peer_id for output in accept(router, hear(router, TWO, Rpc(messages=(fresh,)), now), now=now)}
    assert reached == set(router.mesh(TOPIC)) - {TWO}
    assert len(reached) >= CONFIG.degree_min - 1
