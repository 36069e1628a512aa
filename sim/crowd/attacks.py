"""The nine attacks: whom the sybils connect to, when they come, what they swallow and from when on.

Source: Vyzovitis et al., "GossipSub: Attack-Resilient Message Propagation in the Filecoin and ETH2.0 Networks" (2020), section on
attacks; libp2p/gossipsub-hardening, the configurations of its test plans.
"""

from dataclasses import dataclass
from enum import Enum


class Aim(Enum):
    """Whom sybils connect to."""

    EVERYBODY = "everybody"
    VICTIM = "one victim"
    PUBLISHERS = "those that publish"


class Swallow(Enum):
    """What a sybil does not pass on."""

    EVERYTHING = "everything"
    HALF = "every other card, by chance"
    VICTIM = "the cards of one victim"


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        says: what it is, in words.
        aim: whom the sybils connect to.
        swallow: what they do not pass on once they attack.
        forms: whether the mesh forms under the attack, and is not one that has run for days.
        honest_late_s: by how much later than the sybils the honest ones join, in seconds; it forms then.
        covert_s: for how long the sybils behave well, in seconds, from when all have connected.
        per_machine: sybils that share an address, a count; 1 where each has its own.
    """

    says: str
    aim: Aim = Aim.EVERYBODY
    swallow: Swallow = Swallow.EVERYTHING
    forms: bool = False
    honest_late_s: float = 0.0
    covert_s: float = 0.0
    per_machine: int = 1


ATTACKS: dict[str, Attack] = {
    "eclipse-one": Attack("all sybils crowd round one node and pass nothing on", aim=Aim.VICTIM),
    "eclipse-all": Attack("sybils connect to everybody and pass nothing on"),
    "eclipse-publishers": Attack("sybils crowd round those that publish and pass nothing on", aim=Aim.PUBLISHERS),
    "censoring": Attack("sybils pass on everything but the cards of one node", swallow=Swallow.VICTIM),
    "degradation": Attack("sybils pass on half of what they get", swallow=Swallow.HALF),
    "cold-boot": Attack("the mesh forms while the sybils connect", forms=True),
    "covert-flash": Attack("sybils behave well for a while, then all at once pass nothing on", covert_s=30.0),
    "dawn": Attack("sybils hold their connections before the honest nodes know one another", forms=True, honest_late_s=10.0),
    "colocation": Attack("160 sybils share each address", per_machine=160),
}
"""All attacks by their names."""
