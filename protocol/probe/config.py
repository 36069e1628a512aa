"""Intervals and bounds of probes.

Spec: docs/spec/05-coordinates.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Intervals and bounds.

    Attributes:
        interval_s: seconds between probes of one watched peer. The other end probes as often, half an interval later, so that
            each hears the other every 0.8 s.
        idle_interval_s: seconds between probes of a peer that is only measured: a distance is fresh for a minute, as long as a
            ranking of the nearest is. A path that breaks is noticed by QUIC's idle timeout (30 s) or by who watches the peer.
        third_leg_every: probes of a watched peer of which one asks for three legs, a count. Both ends probe it by turns, so each
            measures by its own nonces anyway; asking each time would send half as many datagrams more, and one in four costs a
            sixteenth and has both ends measure one exchange every six seconds.
        third_leg_after_s: gap between probes of a new connection, in seconds, from which on three legs are asked for. Both ends
            probe a new one of themselves; where places still form, more samples at once made them worse (a mesh of 60 that began
            within a minute: bounds held 80 to 88 % of round trips in place of 86 to 91 %).
        interval_spread: each interval is varied by this share, so that a mesh does not probe in step.
        settle_s: seconds between the first two probes of a peer that has connected; each further gap is twice as long, up to an
            interval. Samples that are seconds apart tell more of a path than as many at once, and each meets better places.
        burst_probes: probes sent at once to a suspected peer that speaks.
        burst_interval_s: seconds between those; 20 probes a second are what every node answers in the long run.
        doubt_interval_s: seconds between probes of a peer in doubt until it may be suspected: 14 of them, which are far from the
            64 that every node answers at once.
        quiet_s: silence in seconds after which a watched peer is in doubt: a little more than half of the longest interval.
        echo_s: seconds after which a probe without an echo puts a peer in doubt: twice the longest round trip on land.
        insist_s: seconds from the beginning of a doubt in which the peer is probed nearly as often, suspected or not. Where
            30 % of all datagrams are lost half of the probes get no echo: 18 of them leave one doubt in 200,000 that a living
            peer has not ended, while a third of them left some suspicions for three seconds and more.
        suspect_after_s: seconds in doubt, and a round trip more, until a peer is suspected. Fourteen probes are sent in them;
            where 30 % of all datagrams are lost, none is answered once in 12,000 times, and any echo takes a suspicion back.
            With seven it was once in 110, and in a mesh of 100 somebody was suspected at almost any time.
        lateness_s_max: how late, in seconds, the own timer may fire before this node holds itself to be unwell.
        health_max: how unwell a node may hold itself to be: each step adds `suspect_after_s` once more. Lifeguard's 8.
        health_back_s: seconds in time that take one step back.
        rtt_s_max: longest round trip in seconds that counts as a sample.
        window_probes: nonces kept per peer, the outstanding ones included; 64 cover a minute and a half and any round trip up to
            `rtt_s_max`.
        offered_max: nonces of echoes kept of these while no third leg has returned them.
        overdue_s: seconds after which a probe without an echo counts as lost in `PathQuality.loss`.
        median_samples: the newest samples that `PathQuality.rtt_s` is the median of; 8 cover 13 s, so that a change shows soon.
        answers_per_s: probes of one peer that are answered per second in the long run; ours send less than one.
        answers_burst: and at once: a path that was clogged for ten seconds and more delivers some fifty probes in one moment.
        peers_max: connected peers that are probed.
        remembered_max: peers measured earlier and not connected now whose distance is remembered.
        remembered_s: and for how long; paths change.
    """

    interval_s: float = 1.6
    idle_interval_s: float = 60.0
    third_leg_every: int = 4
    third_leg_after_s: float = 8.0
    interval_spread: float = 0.1
    settle_s: float = 0.5
    burst_probes: int = 4
    burst_interval_s: float = 0.05
    doubt_interval_s: float = 0.025
    quiet_s: float = 1.0
    echo_s: float = 0.6
    suspect_after_s: float = 0.35
    insist_s: float = 1.5
    lateness_s_max: float = 0.25
    health_max: int = 8
    health_back_s: float = 10.0
    rtt_s_max: float = 10.0
    window_probes: int = 64
    offered_max: int = 16
    overdue_s: float = 2.5
    median_samples: int = 8
    answers_per_s: float = 20.0
    answers_burst: int = 64
    peers_max: int = 1024
    remembered_max: int = 1024
    remembered_s: float = 3600.0
