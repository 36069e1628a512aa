"""The addresses to join by: an address may be given without a peer id, and whoever answers there first is who it leads to.

Spec: docs/spec/07-membership.md, ISO-MEMBER-001 and ISO-MEMBER-002.
"""

from protocol.identity import PeerId
from protocol.multiaddr import Multiaddr


class Bootstrap:
    """Addresses by their texts as given, each with the id of its peer where that is known."""

    def __init__(self, addresses_max: int) -> None:
        """None yet; more than `addresses_max` are not taken."""
        self._addresses_max = addresses_max
        self._addresses: dict[str, Multiaddr] = {}

    def add(self, address: Multiaddr) -> bool:
        """Takes an address, or knows it already; False where there are too many."""
        if len(self._addresses) >= self._addresses_max:
            return False
        self._addresses.setdefault(str(address), address)
        return True

    def meet(self, text: str, peer_id: PeerId, own: PeerId) -> None:
        """Notes who answered at an address; one that leads to this node itself is dropped."""
        if text in self._addresses:
            if peer_id == own:
                del self._addresses[text]
            else:
                self._addresses[text] = self._addresses[text].with_peer(peer_id)

    def unpin(self, peer_id: PeerId) -> list[str]:
        """Lets anybody answer at the addresses given without a peer id at which this peer answered; returns their texts."""
        texts = [text for text, address in self._addresses.items() if address.peer_id == peer_id and text != str(address)]
        for text in texts:
            self._addresses[text] = self._addresses[text].with_peer(None)
        return texts

    def leads_to(self, peer_id: PeerId) -> bool:
        """Whether a peer is one of those to join by."""
        return any(address.peer_id == peer_id for address in self._addresses.values())

    def at(self, text: str) -> tuple[Multiaddr, ...]:
        """The address of that text, if it is one of these."""
        known = self._addresses.get(text)
        return () if known is None else (known,)

    def of(self, peer_id: PeerId) -> tuple[Multiaddr, ...]:
        """The addresses that lead to a peer."""
        return tuple(address for address in self._addresses.values() if address.peer_id == peer_id)
