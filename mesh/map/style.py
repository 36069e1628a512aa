"""Colours and type of the map, in light and in dark; on paper it is light.

Text stands out from its ground by at least 4.5 to 1 and lines by 3 to 1 (WCAG 2.2, 1.4.3 and 1.4.11; a test counts). Quality is
shown by dashes as well as by colour.
"""

from importlib.resources import files

LIGHT = {
    "ground": "#fcfdfe",
    "panel": "#f0f3f6",
    "text": "#16202a",
    "muted": "#4a5763",
    "ring": "#84919d",
    "node": "#27594c",
    "middle": "#1d5bb8",
    "good": "#1a7f4e",
    "fair": "#9a5b00",
    "poor": "#c0362c",
    "land": "#e3e8ec",
}
"""By daylight and on paper."""

DARK = {
    "ground": "#10151b",
    "panel": "#1b232c",
    "text": "#e8eef4",
    "muted": "#a9b6c2",
    "ring": "#64727f",
    "node": "#8fd3bf",
    "middle": "#7ab6ff",
    "good": "#4cc38a",
    "fair": "#f0ad45",
    "poor": "#ff8178",
    "land": "#26303a",
}
"""By night."""


def variables(colours: dict[str, str]) -> str:
    """A palette as CSS variables."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


PALETTE = (
    f":root{{color-scheme:light dark;{variables(LIGHT)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
    f"@media print{{:root{{color-scheme:light;{variables(LIGHT)}}}}}"
)
"""Which colours count where."""

DRAWING = files("mesh.map").joinpath("data/map.css").read_text("utf-8").replace("\n", "")
"""How the drawing looks."""

PAGE = files("mesh.map").joinpath("data/page.css").read_text("utf-8").replace("\n", "")
"""How the page round it looks."""
