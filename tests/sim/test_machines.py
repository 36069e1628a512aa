"""Meshes of three to five nodes to which Hypothesis does what it likes; what it finds it shrinks to the shortest story.

Its rules are the faults, begun and ended in any order, deaths and restarts, new cards, and time that passes. The checks look at
every event. In the end everything is mended, and the mesh must heal.
"""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from protocol.inference import Feature
from protocol.node import Node
from protocol.records import ModelOffer, Sequencer
from sim.checks import CheckFailedError, Safety, healed, unhealed
from sim.faults import KINDS, Fault
from sim.process import MakeNode, Process
from sim.world import World

HEAL_S_MAX = 60.0
"""Two of the longest back-offs of a dial."""
FAULTS_MAX = 3  # on at once: more of them hide one another
ONE_BY_ONE = ("death", "crash")  # what the rules `kill` and `restart` do
ALL = tuple(sorted(name for name in KINDS if name not in ONE_BY_ONE))


class MeshMachine(RuleBasedStateMachine):
    """One mesh and what is done to it; `story` tells it in words."""

    make_node: MakeNode = Node
    kinds: tuple[str, ...] = ALL
    heals = True
    forms_s = 1.0
    step_s = 0.1
    last_story: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(1)
        self.world.make_node = type(self).make_node
        self.safety = Safety(self.world)
        self.on: list[Fault] = []
        self.story: list[str] = []
        type(self).last_story = self.story
        self.offers = 0
        self.failed = False

    @initialize(nodes=st.integers(3, 5))
    def forms(self, nodes: int) -> None:
        for index in range(nodes):
            self.world.add(bootstrap=[self.world.processes[0].address] if index else [])
        self.story.append(f"{nodes} nodes")
        self.world.run(self.forms_s)

    def does(self, action: Callable[[], None]) -> None:
        """Does it, and notes when a check fails, after which nothing need heal."""
        try:
            action()
        except BaseException:
            self.failed = True
            raise

    def dead(self) -> list[Process]:
        return [process for process in self.world.processes if not process.running and not process.hostile]

    def member(self, number: int) -> Process:
        members = [process for process in self.world.processes if not process.hostile]
        return members[number % len(members)]

    @rule(kind=st.sampled_from(range(len(ALL))), luck=st.integers(0, 15))
    @precondition(lambda self: len(self.on) < FAULTS_MAX)
    def begins(self, kind: int, luck: int) -> None:
        kinds = type(self).kinds
        fault = KINDS[kinds[kind % len(kinds)]](Random(luck), Members(self.world))
        self.on.append(fault)
        self.story.append(f"begins: {fault}")
        self.does(lambda: fault.begin(self.world))

    @rule(which=st.integers(0, FAULTS_MAX - 1))
    @precondition(lambda self: self.on)
    def ends(self, which: int) -> None:
        fault = self.on.pop(which % len(self.on))
        self.story.append(f"ends: {fault}")
        self.does(lambda: fault.end(self.world))

    @rule(number=st.integers(0, 4), keeps_disk=st.booleans())
    def killed(self, number: int, keeps_disk: bool) -> None:
        process = self.member(number)
        if process.running:
            self.world.kill(process, keeps_disk=keeps_disk)
            self.story.append(f"n{process.index} is killed, {'with' if keeps_disk else 'without'} its disk")

    @rule(number=st.integers(0, 4))
    @precondition(lambda self: self.dead())
    def restarted(self, number: int) -> None:
        dead = self.dead()
        process = dead[number % len(dead)]
        self.story.append(f"n{process.index} starts again")
        self.does(lambda: self.world.start(process))

    @rule(number=st.integers(0, 4))
    def publishes(self, number: int) -> None:
        process = self.member(number)
        if process.works:
            self.offers += 1
            process.offers = (ModelOffer(f"model {self.offers}", frozenset({Feature.EMBEDDINGS}), engine="echo"),)
            self.story.append(f"n{process.index} publishes")
            process.node.handle_offers(process.offers, self.world.now)
            self.does(lambda: self.world.settle(process))

    @rule(steps=st.integers(1, 25))
    def waits(self, steps: int) -> None:
        self.story.append(f"{steps * self.step_s:.2f} s pass")
        self.does(lambda: self.world.run(self.world.now + steps * self.step_s))

    @invariant()
    def holds(self) -> None:
        """The checks raise where they see something; what they look at once a second is looked at here too."""
        self.does(self.safety.look)

    def teardown(self) -> None:
        if not self.world.processes or not self.heals or self.failed:
            return
        for fault in self.on:
            fault.end(self.world)
        for process in self.dead():
            self.world.start(process)
        self.story.append("everything is mended")
        assert self.world.run_until(healed(self.world), self.world.now + HEAL_S_MAX, 0.5), unhealed(self.world)


class Members(World):
    """A world in which only those who mean well are drawn for faults."""

    def __init__(self, world: World) -> None:
        self.__dict__.update(world.__dict__)
        self.processes = [process for process in world.processes if not process.hostile]


STEADY = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),  # to explain a failure Hypothesis traces every line, ten times slower
    report_multiple_bugs=False,
)


def test_a_small_mesh_comes_through_whatever_is_done_to_it() -> None:
    run_state_machine_as_test(MeshMachine, settings=STEADY)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_small_mesh_comes_through_it_for_long() -> None:
    run_state_machine_as_test(MeshMachine, settings=settings(STEADY, max_examples=300, stateful_step_count=30))


def story_of(machine: type[MeshMachine], failure: type[BaseException], tries: settings) -> list[str]:
    """The shortest story that fails, which Hypothesis tells last."""
    with pytest.raises(failure):
        run_state_machine_as_test(machine, settings=tries)
    return machine.last_story


class CountsFromOneAgain(Node):
    """A planted bug: a core that forgets which sequence numbers it has used."""

    def __init__(self, config, identity, luck, _sequencer):
        super().__init__(config, identity, luck, Sequencer(0))


class Forgetful(MeshMachine):
    make_node = CountsFromOneAgain
    kinds = ("clock", "loss", "partition", "pause")
    heals = False
    forms_s = step_s = 0.01


def test_a_planted_bug_shrinks_to_a_short_story() -> None:
    tries = settings(STEADY, max_examples=200, stateful_step_count=8)
    story = story_of(Forgetful, CheckFailedError, tries)
    assert story == ["3 nodes", "n0 is killed, with its disk", "n0 starts again"]
