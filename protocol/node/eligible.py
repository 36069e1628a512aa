"""Who comes into question for a request: everybody in a small mesh, and in a large one a part that does not grow with it.

To rank a candidate takes some ten microseconds, and most nodes of a large mesh do not serve the model that is asked for, or stand
far away. So past `everybody_max` cards only those that serve the model are looked at, and of them

- who is connected, by what is known in this moment,
- who was measured not long ago, the nearest first: nobody can make its round trip shorter than it is,
- who says it is near: a claim, which gets no one in place of those above,
- and some by lot: so that no crowd that claims to be near can keep all others out, and no node that is far away and idle is left
  out for good.

All but the connected are chosen anew from time to time, and what is known of them is as old as that.

Spec: docs/architecture.md, section "A request's life".
"""

import heapq
from collections import OrderedDict
from dataclasses import dataclass

from protocol.coordinates import Coordinate, estimate_rtt_to
from protocol.encoding import Luck
from protocol.identity import PeerId
from protocol.membership import Membership
from protocol.node.config import EligibleConfig, PeerFacts
from protocol.node.views import Views
from protocol.probe import Probe
from protocol.table import PeerTable


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The peers of one model that are not connected, as they were known when they were chosen."""

    at: float
    facts: tuple[PeerFacts, ...]


class Eligible:
    """Chooses whom to rank, by what a model is served by."""

    def __init__(
        self, config: EligibleConfig, table: PeerTable, membership: Membership, probe: Probe, views: Views, luck: Luck
    ) -> None:
        """Has chosen nobody.

        Args:
            config: bounds.
            table: the cards.
            membership: who is connected.
            probe: whose paths were measured.
            views: tells what is known of a peer.
            luck: draws lots that nobody foresees.
        """
        self._config = config
        self._table = table
        self._membership = membership
        self._probe = probe
        self._views = views
        self._luck = luck
        self._chosen: OrderedDict[str, _Chosen] = OrderedDict()  # by model, the one that was not asked for the longest first

    def facts(self, model: str, place: Coordinate, now: float) -> list[PeerFacts]:
        """What is known of those that come into question, in an order that depends on who they are alone.

        Args:
            model: what is asked for.
            place: where this node is.
            now: monotonic seconds.
        """
        if len(self._table) <= self._config.everybody_max:
            return [self._views.facts(peer_id, place, now) for peer_id in self._views.known()]
        connected = [peer_id for peer_id in self._membership.connected() if self._table.serves(peer_id, model)]
        chosen = self._chosen.pop(model, None)
        if chosen is None or not 0.0 <= now - chosen.at < self._config.kept_s or not chosen.facts:
            chosen = _Chosen(now, tuple(self._views.facts(peer_id, place, now) for peer_id in self._choose(model, place, now)))
        self._chosen[model] = chosen
        if len(self._chosen) > self._config.models_max:
            self._chosen.popitem(last=False)
        near = [self._views.facts(peer_id, place, now) for peer_id in connected]
        return near + [facts for facts in chosen.facts if not self._membership.is_connected(facts.peer_id)]

    def _choose(self, model: str, place: Coordinate, now: float) -> list[PeerId]:
        """Those to be ranked of the peers that are not connected, in the order of their ids."""
        config, connected = self._config, self._membership.is_connected
        serving = {peer_id: told for peer_id, told in self._table.serving_model(model) if not connected(peer_id)}
        if len(serving) <= config.measured_max + config.near_max + config.drawn_max:
            return sorted(serving)
        measured = ((rtt_s, peer_id) for peer_id, rtt_s in self._probe.distances(now).items() if peer_id in serving)
        found = {peer_id for _, peer_id in heapq.nsmallest(config.measured_max, measured)}
        seeming = (
            (estimate_rtt_to(place, told), peer_id)
            for peer_id, told in serving.items()
            if told is not None and peer_id not in found
        )
        found |= {peer_id for _, peer_id in heapq.nsmallest(config.near_max, seeming)}
        others = sorted(peer_id for peer_id in serving if peer_id not in found)
        return sorted(found | set(self._luck.sample(others, min(config.drawn_max, len(others)))))
