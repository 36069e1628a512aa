"""A trace as lines for people: when, who, on which stream, what."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mesh.plain import printable

SHORT_HEX_CHARACTERS = 8
"""Characters of a key, nonce or hash that are shown: enough to see that two are the same."""

CELL_CHARACTERS_MAX = 160
"""Characters of one value: peers choose some of these texts, and none may fill the screen."""

_HEX_KEYS = {"nonce", "key", "request_id"}
_LISTS_SHOWN = {"records", "loads", "tensors", "protocols", "addresses"}
"""Lists whose items say more than how many they are; hashes, keys and entries are for programs."""


def line_of(event: Mapping[str, Any]) -> Text:
    """Return one line for one event."""
    what = printable(str(event.get("what", "")))
    if what == "lost":
        return Text(f"{event.get('count')} events were lost: this terminal was too slow", style="yellow")
    line = Text(f"{float(event.get('t_s', 0.0)):10.3f}  ", style="dim")
    line.append("→ " if event.get("sent") else "← ", style="green" if event.get("sent") else "cyan")
    where = _short_protocol(str(event.get("protocol", ""))) if "stream" in event else "datagram" if what == "datagram" else ""
    line.append(f"{printable(where):<9} {printable(str(event.get('stream', ''))):>4}  ", style="dim")
    if what in ("frame", "datagram"):
        frame = event.get("frame", {})
        line.append(printable(str(frame.get("type", "unknown"))), style="bold")
        line.append(f"  {event.get('bytes', 0)} B", style="dim")
        line.append(_fields(frame))
    else:
        line.append(what, style="bold yellow" if what in ("reset", "stopped", "closed") else "bold")
        line.append(_fields({key: value for key, value in event.items() if key in ("code", "reason", "remote")}))
    return line


def _short_protocol(protocol_id: str) -> str:
    """The name within a protocol id: `gossip` of `/isochrone/gossip/3.0.0`, `ping` of `/ipfs/ping/1.0.0`."""
    parts = protocol_id.strip("/").split("/")
    return "-".join(parts[1:-1])[:9] or protocol_id[:9]


def _fields(fields: Mapping[str, Any]) -> str:
    parts = [_field(key, value) for key, value in fields.items() if key != "type" and value not in (None, "", [], {})]
    return "".join(f"  {part}" for part in parts if part)


def _field(key: str, value: Any) -> str:
    if isinstance(value, list):
        if key not in _LISTS_SHOWN and not all(isinstance(item, int | float) for item in value):
            return ""
        items = [
            " ".join(_field(*pair) for pair in item.items()) if isinstance(item, Mapping) else _plain(item) for item in value
        ]
        text = "; ".join(items)
    else:
        text = _plain(value)
    name = key.removesuffix("_s") if key.endswith("_s") else key
    if key in _HEX_KEYS:
        text = text[:SHORT_HEX_CHARACTERS]
    if key.endswith("_s") and isinstance(value, int | float):
        text = f"{value:g} s"
    text = printable(text)
    return f"{printable(name.replace('_', ' '))} {text[:CELL_CHARACTERS_MAX]}{'…' if len(text) > CELL_CHARACTERS_MAX else ''}"


def _plain(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
