"""Fuzzes one harness with atheris: `python tests/fuzz/fuzz_one.py NAME CORPUS STATS [libFuzzer's arguments]`.

Coverage of our own modules guides the search (and aioquic's, for its harnesses). What is slow or large in this instrumented
process is only suspected: a second process without instrumentation judges it (`fuzz_judge.py`). Every two hundredth input is
judged anyway, for a peak that is gone again when the decoder returns is seen only there.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

NAME, CORPUS, STATS = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
_MODULES = ["protocol", "mesh.gateway", "mesh.engines", "mesh.trace"] + (["aioquic.quic"] if NAME.startswith("aioquic") else [])

with atheris.instrument_imports(include=_MODULES):
    from fuzz_decoders import HARNESSES
    from fuzz_seeds import grown

from fuzz_live import reuse_connections  # noqa: E402
from fuzz_oracle import CPU_S_MAX, INPUT_BYTES_MAX, Harness, call  # noqa: E402

SAMPLED = 200
"""One input of so many is judged though nothing is suspected."""

SEED_BYTES_MAX = 4096
"""Longest seed that is fuzzed from, in bytes: the long ones are run by the fast tests, and their children would take long."""

GROWTH_KIB = 512
"""Growth of the process in KiB with one input that makes it suspected."""

TOLD_S = 1.0
"""Time in seconds between two writings of the figures."""


class Finding(Exception):  # noqa: N818  (it is what a fuzzer looks for)
    """An input that the oracle does not let pass."""


class Fuzzed:
    """One harness while it is fuzzed."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._judge = subprocess.Popen(
            [sys.executable, str(HERE / "fuzz_judge.py"), harness.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._suspected_s = CPU_S_MAX
        self._told_at = 0.0
        self._rss_kib = 0
        self.figures: dict[str, object] = {"runs": 0, "judged": 0, "cpu_s": 0.0, "peak_bytes": 0, "fault": ""}

    def try_one(self, data: bytes) -> None:
        """Run one input."""
        harness, runs = self._harness, int(str(self.figures["runs"])) + 1
        self.figures["runs"] = runs
        state = harness.prepare(data)
        began = time.thread_time()
        try:
            call(harness, state, data)
        except BaseException as error:
            self.figures["fault"] = f"raises {type(error).__name__}: {error}"[:300]
            self._tell()
            raise
        took = time.thread_time() - began
        rss_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if took > self._suspected_s or rss_kib > self._rss_kib + GROWTH_KIB or runs % SAMPLED == 0:
            self._ask(data, took)
        self._rss_kib = max(self._rss_kib, rss_kib)
        if time.monotonic() > self._told_at + TOLD_S:
            self._tell()

    def _ask(self, data: bytes, took_s: float) -> None:
        """Have an input judged."""
        assert self._judge.stdin is not None
        assert self._judge.stdout is not None
        self._judge.stdin.write(len(data).to_bytes(4, "big") + data)
        self._judge.stdin.flush()
        said = json.loads(self._judge.stdout.readline())
        self.figures["judged"] = int(str(self.figures["judged"])) + 1
        self.figures["cpu_s"] = max(float(str(self.figures["cpu_s"])), said["cpu_s"])
        self.figures["peak_bytes"] = max(int(str(self.figures["peak_bytes"])), said["peak_bytes"])
        if said["fault"]:
            self.figures["fault"] = said["fault"]
            self._tell()
            raise Finding(said["fault"])
        if took_s > self._suspected_s and said["cpu_s"] > 0:
            # So much slower is everything here; a third of that is suspected from now on.
            self._suspected_s = max(self._suspected_s, CPU_S_MAX * took_s / said["cpu_s"] / 3)

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        STATS.write_text(json.dumps(self.figures))


def main() -> None:
    """Fuzzes until libFuzzer's time is over or something is found."""
    harness = next(harness for harness in HARNESSES if harness.name == NAME)
    CORPUS.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(harness.seeds()):
        if len(seed) <= SEED_BYTES_MAX:
            (CORPUS / f"seed-{number:03}").write_bytes(seed)
    reuse_connections()
    fuzzed = Fuzzed(harness)

    def mutate(data: bytes, bytes_max: int, seed: int) -> bytes:
        if harness.mutate is not None and seed % 3:
            changed = harness.mutate(data, bytes_max, seed)
            if changed is not None:
                return changed
        return grown(data, bytes_max, seed) if seed % 16 == 0 else bytes(atheris.Mutate(data, bytes_max))

    # What is learnt goes into the first folder that is named.
    arguments = [sys.argv[0], f"-max_len={INPUT_BYTES_MAX}", "-print_final_stats=1", str(CORPUS), *sys.argv[4:]]
    atheris.Setup(arguments, fuzzed.try_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
