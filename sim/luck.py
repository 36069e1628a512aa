"""Named streams of luck: one generator per purpose, each derived from the seed and its name.

A draw for one purpose does not shift the draws for another, so a new kind of fault leaves the delays of an old seed as they are.
The derivation is SHA-256, which is the same on every machine and under every PYTHONHASHSEED.

Source: CPython documentation, random, "Notes on Reproducibility": `random()` of one seed stays the same from version to version.
"""

import hashlib
from random import Random


class Streams:
    """The streams of one seed; asking for a name again goes on with the same stream."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._streams: dict[str, Random] = {}

    def of(self, name: str) -> Random:
        """The stream for a purpose."""
        stream = self._streams.get(name)
        if stream is None:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            stream = self._streams[name] = Random(int.from_bytes(digest, "big"))  # noqa: S311 - repeatable on purpose
        return stream
