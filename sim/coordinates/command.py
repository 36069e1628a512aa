"""`python -m sim coordinates`: methods that tell distances, side by side over one matrix, with a table at the end."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from sim.coordinates.attacks import ATTACKS
from sim.coordinates.engine import Conditions
from sim.coordinates.matrices import MatrixError, RttMatrix, load
from sim.coordinates.methods import METHODS
from sim.coordinates.picture import draw_all
from sim.coordinates.report import Summary, about, as_json, summary, table
from sim.coordinates.run import Plan, simulate
from sim.coordinates.synthetic import named
from sim.garbage import collect_seldom
from sim.luck import Streams

EXIT_USAGE = 2
"""Exit code: an argument or a file cannot be used."""

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as of all commands."""

PING_EVERY_S = 30.0
"""Seconds between two pings of a node unless told otherwise: a node that looks at one known peer after another does so twice
a minute. In the 32 minutes that 64 pings take so edges are told five times, as in a mesh that has stood for a while."""

SERIES_PING_EVERY_S = 10.0
"""The same where slices follow one another: with one ping each they are as short as those of a volatile series (supposed)."""

PINGS_MAX = 100_000
"""Pings of a node, a count: a day of one a second."""

TABLE_WIDTH = 160
"""Columns of the table where no terminal says how many there are."""

EXAMPLES = """
examples:
  python -m sim coordinates synthetic-200                                    # no data needed
  python -m sim coordinates rtt.csv --pings-per-node 128 --method memory,serf
  python -m sim coordinates rtt.npz --liars 0.1 --attack inflate --seeds 5
  python -m sim coordinates rtt.npz --loss 0.1 --churn 0.2 --nat 0.33 --json
  python -m sim coordinates volatile-60 --series --pings-per-node 16         # slice after slice, each foretold
  python -m sim coordinates synthetic-200 --joiner 16x4 --plot build/coordinates

A matrix is an .npz or .csv file of round trips in ms (docs/coordinates.md), or synthetic-N or volatile-N, which are made up from
the seed. Without --series each ping meets a slice by chance, and the truth is the median of all.

"""


def main(arguments: list[str]) -> int:
    """Runs what the command line says, and returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    collect_seldom()
    plan, methods = _plan(options), list(options.method)
    try:
        matrices = [_matrix(options, seed) for seed in range(options.seed, options.seed + options.seeds)]
        summaries = _watched(matrices, methods, plan, options)
    except MatrixError as error:
        print(f"sim coordinates: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    matrix = matrices[0]
    asked: dict[str, object] = {"options": {name: _plain(value) for name, value in sorted(vars(options).items())}}
    pictures: list[Path] = []
    if options.plot is not None:
        try:
            pictures = draw_all(options.plot, matrix.name, summaries)
        except OSError as error:
            print(f"sim coordinates: --plot {options.plot}: pictures cannot be written ({error.strerror})", file=sys.stderr)
            return EXIT_USAGE
    if options.json:
        print(json.dumps({**as_json(matrix, asked, summaries), "pictures": [str(path) for path in pictures]}))
        return 0
    _show(matrix, summaries, pictures, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    told = [f"methods:\n{_listed({name: kind.says for name, kind in METHODS.items()})}"]
    told.append(f"attacks:\n{_listed({name: attack.says for name, attack in ATTACKS.items()})}")
    parser = argparse.ArgumentParser(
        prog="python -m sim coordinates",
        description="Methods that tell distances, packet by packet: errors, what choosing the nearest costs, bytes and CPU.",
        epilog=EXAMPLES + "\n".join(told),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("matrix", metavar="MATRIX", help="a .npz or .csv file, synthetic-N, or volatile-N")
    add(
        "--pings-per-node",
        type=int,
        default=64,
        metavar="N",
        help="pings that each node begins; with --series in each slice (64)",
    )
    add("--method", type=_methods, default=tuple(METHODS), metavar="NAMES", help=f"with commas between ({','.join(METHODS)})")
    add("--nodes", type=int, default=0, metavar="N", help="only so many nodes of the matrix, drawn (all)")
    add("--series", action="store_true", help="slices follow one another, and each is foretold")
    add("--ahead", type=int, default=1, metavar="N", help="the median of so many next slices is foretold (1)")
    add("--liars", type=_share, default=0.0, metavar="SHARE", help="share of nodes that lie (0)")
    add("--attack", choices=tuple(ATTACKS), default="inflate", metavar="NAME", help="how they lie, see below (inflate)")
    add("--attack-from", type=float, default=0.0, metavar="SECONDS", help="virtual time at which they begin (0)")
    add("--loss", type=_share, default=0.0, metavar="SHARE", help="share of datagrams lost (0)")
    add("--churn", type=_share, default=0.0, metavar="SHARE", help="share of nodes that leave and come back in 10 minutes (0)")
    add("--nat", type=_share, default=0.0, metavar="SHARE", help="share of nodes that nobody can begin to measure (0)")
    add("--asymmetry", type=_share, default=0.0, metavar="A", help="one way takes 0.5 - A to 0.5 + A of a round trip (0)")
    add("--jitter", type=float, default=0.0, metavar="MS", help="mean of an exponential queueing delay per packet (0)")
    add("--ping-every", type=float, default=None, metavar="SECONDS", help="between two pings of a node (30; 10 with --series)")
    add("--gossip-every", type=float, default=10.0, metavar="SECONDS", help="between two publications of a node (10)")
    add("--gossip-delay", type=float, default=1.0, metavar="SECONDS", help="until one has spread, beside the packets' way (1)")
    add("--tick-every", type=float, default=5.0, metavar="SECONDS", help="between two times a method works things out again (5)")
    add("--fresh-s", type=float, default=60.0, metavar="SECONDS", help="a measurement spares a request's ping so long (60)")
    add("--joiner", type=_joiner, default=None, metavar="PxQ", help="nodes join with Q pings to each of P random peers, as 16x4")
    add("--set", type=_setting, action="append", default=[], metavar="NAME=NUMBER", help="a setting of a method")
    add("--seed", type=int, default=1, help="everything follows from it (1)")
    add("--seeds", type=int, default=1, metavar="N", help="runs N seeds, from --seed on, and shows means and spreads (1)")
    add("--json", action="store_true", help="one line of JSON with every figure instead of the table")
    add("--plot", type=Path, default=None, metavar="DIR", help="writes pictures (SVG) there")
    return parser


def _listed(said: dict[str, str]) -> str:
    return "".join(f"  {name:10} {text}\n" for name, text in said.items())


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    wrong = [name for name in names if name not in METHODS]
    if wrong or not names:
        raise argparse.ArgumentTypeError(f"{', '.join(wrong) or 'nothing'}: choose from {', '.join(METHODS)}")
    return names


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no number; give a share as 0.1") from None
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text}: a share is from 0 to less than 1, as 0.1")
    return value


def _joiner(text: str) -> tuple[int, int]:
    peers, _, pings = text.partition("x")
    if not (peers.isdecimal() and pings.isdecimal() and 0 < int(peers) <= 5000 and 0 < int(pings) <= 1000):
        raise argparse.ArgumentTypeError(f"{text}: write peers x pings, as 16x4")
    return int(peers), int(pings)


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=NUMBER") from None


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses what argparse does not know to be wrong."""
    if not 0 < options.pings_per_node <= PINGS_MAX:
        parser.error(f"--pings-per-node {options.pings_per_node}: from 1 to {PINGS_MAX}")
    if options.asymmetry >= 0.5:
        parser.error(f"--asymmetry {options.asymmetry:g}: less than 0.5, so that each way takes some time")
    if options.seeds < 1 or options.ahead < 1:
        parser.error("--seeds and --ahead: at least 1")
    if options.ping_every is None:
        options.ping_every = SERIES_PING_EVERY_S if options.series else PING_EVERY_S
    for name in ("ping_every", "gossip_every", "tick_every"):
        if not 0.001 <= getattr(options, name) <= 3600.0:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name):g}: from 0.001 to 3600 seconds")
    for name in ("jitter", "gossip_delay", "fresh_s", "attack_from"):
        if not 0.0 <= getattr(options, name) <= 86_400.0:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name):g}: from 0 to 86400")

    settings = {name for method in options.method for name in METHODS[method].settings}
    for name, _ in options.set:
        if name not in settings:
            parser.error(f"--set {name}: the methods have {', '.join(sorted(settings)) or 'nothing to set'}")


def _plan(options: argparse.Namespace) -> Plan:
    conditions = Conditions(
        ping_s=options.ping_every,
        loss=options.loss,
        churn=options.churn,
        nat=options.nat,
        asymmetry=options.asymmetry,
        jitter_s=options.jitter * 1e-3,
        gossip_s=options.gossip_every,
        gossip_delay_s=options.gossip_delay,
        tick_s=options.tick_every,
        liars=options.liars,
        attack=options.attack,
        attack_from_s=options.attack_from,
    )
    settings = dict(options.set)
    return Plan(options.pings_per_node, conditions, options.series, options.ahead, options.fresh_s, options.joiner, settings)


def _matrix(options: argparse.Namespace, seed: int) -> RttMatrix:
    """The matrix of one seed: a file is the same for all, a made-up one is made up anew."""
    matrix = named(options.matrix, seed) or load(Path(options.matrix))
    return matrix.some(options.nodes, Streams(seed).of("nodes")) if options.nodes else matrix


def _watched(matrices: Sequence[RttMatrix], methods: Sequence[str], plan: Plan, options: argparse.Namespace) -> list[Summary]:
    """Runs everything, with a progress bar where there is somebody to see it."""
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True) if console.is_terminal and not options.json else None
    found = []
    with bar or nullcontext():
        for method in methods:
            runs = []
            for number, matrix in enumerate(matrices):
                seed = options.seed + number
                runs.append(simulate(matrix, method, plan, seed, _advance(bar, f"{method}, seed {seed}")))
            found.append(summary(runs))
    return found


def _advance(bar: Progress | None, what: str) -> Callable[[float], None]:
    if bar is None:
        return lambda _: None
    task = bar.add_task(what, total=1.0)
    return lambda share: bar.update(task, completed=share)


def _show(matrix: RttMatrix, summaries: Sequence[Summary], pictures: Sequence[Path], options: argparse.Namespace) -> None:
    told = about(matrix)
    title = (
        f"{told['name']}: {told['nodes']} nodes, {told['slices']} slices, RTT p5/p50/p95 "
        f"{told['rtt_ms_p5']:.0f}/{told['rtt_ms_p50']:.0f}/{told['rtt_ms_p95']:.0f} ms, {options.pings_per_node} pings per node"
        f"{' and slice' if options.series else ''}, seed {options.seed}"
        f"{f' to {options.seed + options.seeds - 1}, means [least..most]' if options.seeds > 1 else ''}"
    )
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(table(title, summaries))
    for path in pictures:
        print(f"picture  {path}")
    for found in summaries:
        print(f"digest   {found.runs[0].digest}  {found.method}")


def _plain(value: object) -> object:
    """An option as JSON has it."""
    return str(value) if isinstance(value, Path) else value
