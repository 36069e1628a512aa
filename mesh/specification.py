"""Where the specification of what this program speaks lies, and which chapter covers which protocol.

An installed program has the chapters and their vectors under `share/isochrone/spec`; a source tree has them in `docs/spec`.

Spec: docs/spec/README.md.
"""

import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a chapter covers.

    Attributes:
        prefix: what the ids of the protocol begin with.
        chapter: the chapter's file.
        what: what the protocol is for.
    """

    prefix: str
    chapter: str
    what: str


COVERAGES = (
    Coverage("/isochrone/gossip/", "04-gossip.md", "cards, verdicts, beats"),
    Coverage("/isochrone/infer/", "06-inference.md", "one request and its answer"),
    Coverage("/isochrone/join/", "09-admission.md", "certificates for guests and members"),
    Coverage("/isochrone/notices/", "09-admission.md", "revocations and federated networks"),
    Coverage("/isochrone/relay/", "10-sealing.md", "a sealed request, to who passes it on"),
    Coverage("/isochrone/sealed/", "10-sealing.md", "a sealed request, to who answers it"),
    Coverage("/meshsub/", "08-pubsub.md", "cards for other libp2p programs"),
    Coverage("/ipfs/ping/", "02-transport.md", "libp2p's ping"),
    Coverage("/ipfs/id/push/", "01-identity.md", "libp2p's identify, as news"),
    Coverage("/ipfs/id/", "01-identity.md", "libp2p's identify"),
)
"""In the order in which they are looked for."""


def find_spec() -> Path | None:
    """Return the folder with the chapters, None where this program was installed without them."""
    places = [Path(__file__).parent.parent / "docs" / "spec", Path(sysconfig.get_path("data")) / "share" / "isochrone" / "spec"]
    return next((place for place in places if (place / "README.md").is_file()), None)


def protocols_json(spoken: Iterable[str]) -> dict[str, object]:
    """Return the protocols of a node, and where the specification lies, as a JSON object."""
    spec = find_spec()
    rows = []
    for protocol_id in sorted(spoken):
        coverage = next((coverage for coverage in COVERAGES if protocol_id.startswith(coverage.prefix)), None)
        known = coverage is not None and spec is not None and (spec / coverage.chapter).is_file()
        rows.append(
            {
                "protocol": protocol_id,
                "chapter": coverage.chapter if coverage is not None and (known or spec is None) else None,
                "what": "" if coverage is None else coverage.what,
            }
        )
    rows.append({"protocol": "QUIC DATAGRAM frames", "chapter": "05-coordinates.md", "what": "probes and echoes"})
    return {"spec": None if spec is None else str(spec), "protocols": rows}
