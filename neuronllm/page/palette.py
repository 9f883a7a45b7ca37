"""The colours of the page by what they mean, on light and on dark. Blue helps and red hurts, as in all our pictures.

The same names are the variables of the style sheet and the colours of the figures, so that both change together.
"""

from __future__ import annotations

THEMES = {
    "light": {
        "--paper": "#ffffff",
        "--tint": "#f5f6f8",
        "--rule": "#e1e4e9",
        "--ink": "#1c212b",
        "--muted": "#596273",
        "--link": "#1d5ba6",
        "--good": "#2166ac",
        "--bad": "#b2372c",
        "--band": "#dde1e7",
        "--line-0": "#2166ac",
        "--line-1": "#b2372c",
        "--line-2": "#2a7f5f",
        "--line-3": "#8a5a00",
        "--line-4": "#7a4aa0",
        "--line-5": "#566070",
        "--line-6": "#b0467f",
        "--line-7": "#2b7c90",
    },
    "dark": {
        "--paper": "#14171c",
        "--tint": "#1b2027",
        "--rule": "#2e353f",
        "--ink": "#e3e7ed",
        "--muted": "#9ba5b4",
        "--link": "#83b4ec",
        "--good": "#6fa9e6",
        "--bad": "#ec8a78",
        "--band": "#343c48",
        "--line-0": "#6fa9e6",
        "--line-1": "#ec8a78",
        "--line-2": "#6cc3a0",
        "--line-3": "#d9a441",
        "--line-4": "#bd94e0",
        "--line-5": "#a7b1c0",
        "--line-6": "#e389b8",
        "--line-7": "#6cc0d4",
    },
}
LINES = sum(name.startswith("--line-") for name in THEMES["light"])
STEPS = 12  # of the map's scale, to each side of zero


def css() -> tuple[str, str]:
    """The variables of the style sheet: light, or dark where the reader's system is, but never on paper."""
    light, dark = ("".join(f"{name}:{colour};" for name, colour in THEMES[theme].items()) for theme in THEMES)
    return f"{{color-scheme:light;{light}}}", f"{{color-scheme:dark;{dark}}}"


def scale(theme: str) -> list[tuple[float, str]]:
    """Colours from the lowest to the highest value, as Plotly takes them; by the square root, as few values are large.

    >>> scale("light")[0], scale("light")[STEPS]
    ((0.0, '#b2372c'), (0.5, '#ffffff'))
    """
    colours = THEMES[theme]
    sides = (("--bad", -1), ("--good", 1))
    ends = [
        (round(0.5 + side * (step / STEPS) ** 2 / 2, 5), _mixed(colours["--paper"], colours[name], step / STEPS))
        for name, side in sides
        for step in range(1, STEPS + 1)
    ]
    return sorted([(0.5, colours["--paper"]), *ends])


def _mixed(one: str, other: str, share: float) -> str:
    """A colour that is so far on its way from one to another."""
    pairs = [(int(one[n : n + 2], 16), int(other[n : n + 2], 16)) for n in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
