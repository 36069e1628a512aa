"""Hypothesis strategies for the messages of gossipsub."""

from hypothesis import strategies as st

from protocol.pubsub.messages import IHave, Prune, PubsubMessage, Rpc, Subscription

topics = st.text(max_size=40)
ids = st.lists(st.binary(max_size=60), max_size=8).map(tuple)
pubsub_messages = st.builds(
    PubsubMessage,
    author=st.binary(max_size=40),
    data=st.binary(max_size=300),
    seqno=st.binary(max_size=10),
    topic=topics,
    signature=st.binary(max_size=64),
    key=st.binary(max_size=40),
)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.builds(Subscription, topics, st.booleans()), max_size=5).map(tuple),
    messages=st.lists(pubsub_messages, max_size=4).map(tuple),
    ihaves=st.lists(st.builds(IHave, topics, ids), max_size=3).map(tuple),
    iwants=ids,
    grafts=st.lists(topics, max_size=3).map(tuple),
    prunes=st.lists(st.builds(Prune, topics, st.none() | st.integers(0, 2**64 - 1)), max_size=3).map(tuple),
    idontwants=ids,
)


def rpcs_about(topic, messages):
    """RPCs that mean a topic and some messages, as a peer may send them that wants to do harm."""
    names = st.lists(st.sampled_from([message.id for message in messages]) | st.binary(max_size=50), max_size=6).map(tuple)
    either = st.just(topic) | topics
    return st.builds(
        Rpc,
        subscriptions=st.lists(st.builds(Subscription, either, st.booleans()), max_size=3).map(tuple),
        messages=st.lists(st.sampled_from(messages) | pubsub_messages, max_size=3).map(tuple),
        ihaves=st.lists(st.builds(IHave, either, names), max_size=3).map(tuple),
        iwants=names,
        grafts=st.lists(either, max_size=3).map(tuple),
        prunes=st.lists(st.builds(Prune, either, st.none() | st.integers(0, 2**64 - 1)), max_size=3).map(tuple),
        idontwants=names,
    )
