"""Write the index of the specification's sentences that the conformance suite ships with; run it after a change of docs/spec."""

from pathlib import Path

from mesh.conformance.index import encode, read_chapters

ROOT = Path(__file__).parent.parent

if __name__ == "__main__":
    target = ROOT / "mesh" / "conformance" / "data" / "sentences.json"
    target.write_text(encode(read_chapters(ROOT / "docs" / "spec")))
    print(f"{target.relative_to(ROOT)} written")
