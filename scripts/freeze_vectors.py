"""Note the vectors of a released specification, so that no later change can bend them unseen.

usage: python scripts/freeze_vectors.py VERSION COMMIT

Writes docs/spec/frozen.json: for each released version and each file of vectors the hash of every vector. A vector is an item of
a list, or a whole value that is no list. Later versions may add vectors; tests/spec/test_frozen.py holds that none is changed or
gone.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FROZEN = ROOT / "docs" / "spec" / "frozen.json"
VECTORS = "docs/spec/vectors"
PROSE = ("about", "comment")
"""What describes a file of vectors may be worded anew."""


def vector_hashes(content: str) -> list[str]:
    """Return the hash of each vector of a file, in its order: 16 hex digits of SHA-256 over its name and its canonical JSON."""
    hashes = []
    for name, value in json.loads(content).items():
        for vector in [] if name in PROSE else value if isinstance(value, list) else [value]:
            canonical = json.dumps(vector, sort_keys=True, separators=(",", ":"))
            hashes.append(hashlib.sha256(f"{name}:{canonical}".encode()).hexdigest()[:16])
    return hashes


def freeze(version: str, commit: str) -> None:
    """Add a version to the file."""

    def _git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    frozen = json.loads(FROZEN.read_text()) if FROZEN.exists() else {}
    names = _git("ls-tree", "--name-only", commit, f"{VECTORS}/").split()
    frozen[version] = {Path(name).name: vector_hashes(_git("show", f"{commit}:{name}")) for name in names}
    FROZEN.write_text(json.dumps(frozen, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    freeze(sys.argv[1], sys.argv[2])
