"""Synthetic pictures with captions: what the miniature model learns to draw.

A :class:`Scene` is one point of a closed grammar. It can say itself (``caption``), draw itself (``draw``) and tell the
ideal answer (``ideal_masks``, ``sky_and_ground``) against which ``judge.py`` measures a rendered picture.
No torch here, and no randomness outside the generator that is passed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

import numpy as np

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (216, 38, 44),
    "orange": (245, 138, 28),
    "yellow": (248, 218, 50),
    "green": (40, 160, 66),
    "cyan": (60, 206, 214),
    "blue": (40, 78, 212),
    "purple": (130, 50, 168),
    "pink": (246, 152, 192),
    "white": (246, 246, 244),
    "black": (24, 24, 28),
}
SHAPES = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "ring": ("ring",),
    "cross": ("cross",),
}
POSITIONS = {
    "center": (0.5, 0.5),
    "left": (0.29, 0.5),
    "right": (0.71, 0.5),
    "top": (0.5, 0.29),
    "bottom": (0.5, 0.71),
}
PAIRS = (("left", "right"), ("top", "bottom"))
SKIES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    # colour at the top edge, colour at the horizon
    "day": ((78, 152, 238), (176, 216, 248)),
    "sunset": ((206, 66, 92), (252, 178, 82)),
    "night": ((10, 12, 40), (38, 44, 96)),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "meadow": (74, 160, 58),
    "desert": (226, 188, 112),
    "sea": (20, 92, 152),
    "snow": (238, 243, 250),
}
GROUND_WORDS = {
    "meadow": ("a green meadow", "green hills", "a meadow"),
    "desert": ("a desert", "desert sand", "a sandy desert"),
    "sea": ("the sea", "a blue sea", "the ocean"),
    "snow": ("snow", "a snowy field", "white snow"),
}
SKY_WORDS = {
    "day": ("by day", "under a blue sky", "on a sunny day"),
    "sunset": ("at sunset", "in the evening", "under a sunset sky"),
    "night": ("at night", "under a dark night sky", "by night"),
}
LIGHT_POSITIONS = {"left": 0.24, "center": 0.5, "right": 0.76}
FEATURES = (None, "mountains", "house", "tree")
HORIZON = 0.62
PREFIXES = ("", "", "", "a picture of ", "a drawing of ", "a painting of ")


@dataclass(frozen=True)
class Figure:
    """One filled shape: a word of SHAPES, a word of PALETTE, a word of POSITIONS."""

    shape: str
    colour: str
    position: str


@dataclass(frozen=True)
class Scene:
    """Either one or two figures on a plain ground, or a landscape (``figures`` empty, ``sky`` set)."""

    figures: tuple[Figure, ...] = ()
    ground: str = "white"
    sky: str | None = None
    light: str | None = None
    feature: str | None = None

    @property
    def is_landscape(self) -> bool:
        return self.sky is not None

    @classmethod
    def random(cls, rng: Random) -> Scene:
        kind = rng.random()
        if kind < 0.3:
            return cls(
                ground=rng.choice(list(GROUNDS)),
                sky=rng.choice(list(SKIES)),
                light=rng.choice([None, *LIGHT_POSITIONS]),
                feature=rng.choice(FEATURES),
            )
        ground = rng.choice(list(PALETTE))
        colours = [name for name in PALETTE if name != ground]
        if kind < 0.78:
            position = rng.choice(["center", *POSITIONS])
            return cls(figures=(Figure(rng.choice(list(SHAPES)), rng.choice(colours), position),), ground=ground)
        pair = rng.choice(PAIRS)
        return cls(
            figures=tuple(Figure(rng.choice(list(SHAPES)), rng.choice(colours), position) for position in pair),
            ground=ground,
        )

    def caption(self, rng: Random) -> str:
        text = self._landscape_caption(rng) if self.is_landscape else self._figure_caption(rng)
        return re.sub(r"\ba orange\b", "an orange", rng.choice(PREFIXES) + text)

    def _figure_caption(self, rng: Random) -> str:
        def thing(figure: Figure) -> str:
            return rng.choice(("a {} {}", "one {} {}", "{} {}", "a {} {}")).format(
                figure.colour, rng.choice(SHAPES[figure.shape])
            )

        ground = rng.choice(
            (
                " on a {} background",
                ", {} background",
                " in front of a {} background",
                " on {} ground",
                " on {}",
                " on a {} ground",
            )
        ).format(self.ground)
        if len(self.figures) == 2:
            first, second = self.figures
            if first.position == "left":
                form = rng.choice(
                    (
                        "{0} on the left and {1} on the right",
                        "{0} left of {1}",
                        "{0} next to {1}",
                        "{1} on the right and {0} on the left",
                    )
                )
            else:
                form = rng.choice(
                    (
                        "{0} above {1}",
                        "{0} at the top and {1} at the bottom",
                        "{1} below {0}",
                        "{0} over {1}",
                    )
                )
            return form.format(thing(first), thing(second)) + ground
        (figure,) = self.figures
        where = {
            "center": ("", "", " in the center", " in the middle"),
            "left": (" on the left", " at the left", " on the left side"),
            "right": (" on the right", " at the right", " on the right side"),
            "top": (" at the top", " on top"),
            "bottom": (" at the bottom", " at the bottom"),
        }[figure.position]
        return thing(figure) + rng.choice(where) + ground

    def _landscape_caption(self, rng: Random) -> str:
        assert self.sky is not None
        parts = [rng.choice(GROUND_WORDS[self.ground]) + " " + rng.choice(SKY_WORDS[self.sky])]
        if self.feature == "mountains":
            parts.append(rng.choice(("mountains", "with mountains", "high mountains")))
        elif self.feature:
            parts.append(rng.choice(("a {}", "with a {}", "one {}")).format(self.feature))
        if self.light:
            light = "moon" if self.sky == "night" else "sun"
            where = {"left": "on the left", "center": "in the middle", "right": "on the right"}[self.light]
            parts.append(rng.choice((f"a {light} {where}", f"the {light} {where}", f"with the {light} {where}")))
        if rng.random() < 0.3:
            parts.insert(0, "landscape")
        return ", ".join(parts)

    def draw(self, size_px: int, rng: Random) -> np.ndarray:
        """Draw at ``size_px`` square with soft edges; positions and sizes jitter a little.

        Returns:
            uint8, shape (size_px, size_px, 3), RGB.
        """
        canvas = Canvas(size_px)
        if self.is_landscape:
            self._draw_landscape(canvas, rng)
        else:
            self._draw_figures(canvas, rng)
        return canvas.pixels()

    def _draw_figures(self, canvas: Canvas, rng: Random) -> None:
        canvas.fill(shade(PALETTE[self.ground], rng))
        for figure in self.figures:
            x, y = POSITIONS[figure.position]
            if len(self.figures) == 2:
                radius = rng.uniform(0.17, 0.2)
            elif figure.position == "center":
                radius = rng.uniform(0.24, 0.32)
            else:
                radius = rng.uniform(0.18, 0.23)
            x, y = x + rng.uniform(-0.025, 0.025), y + rng.uniform(-0.025, 0.025)
            canvas.paint(canvas.shape(figure.shape, x, y, radius), shade(PALETTE[figure.colour], rng))

    def _draw_landscape(self, canvas: Canvas, rng: Random) -> None:
        assert self.sky is not None
        horizon = HORIZON + rng.uniform(-0.03, 0.03)
        canvas.gradient(*SKIES[self.sky], until=horizon)
        if self.light:
            colour = (236, 238, 224) if self.sky == "night" else (255, 236, 110)
            x, y = LIGHT_POSITIONS[self.light] + rng.uniform(-0.03, 0.03), 0.2 + rng.uniform(-0.03, 0.03)
            canvas.paint(canvas.shape("circle", x, y, rng.uniform(0.1, 0.125)), colour)
        ground = np.array(shade(GROUNDS[self.ground], rng), float)
        if self.sky == "night":
            ground *= 0.65
        if self.feature == "mountains":
            stone = (70, 72, 92) if self.sky == "night" else (122, 112, 124)
            for x, height in ((0.26, 0.26), (0.7, 0.32)):
                x += rng.uniform(-0.05, 0.05)
                canvas.paint(canvas.peak(x, horizon, height + rng.uniform(-0.03, 0.03), 0.3), stone)
        canvas.paint(canvas.below(horizon), tuple(ground))
        dim = 0.6 if self.sky == "night" else 1.0
        if self.feature == "house":
            x = 0.5 + rng.uniform(-0.08, 0.08)
            canvas.paint(canvas.box(x, horizon - 0.02, 0.17, 0.13), tuple(dim * c for c in (206, 120, 92)))
            canvas.paint(canvas.peak(x, horizon - 0.15, 0.16, 0.23), tuple(dim * c for c in (140, 40, 44)))
        if self.feature == "tree":
            x = 0.5 + rng.uniform(-0.08, 0.08)
            canvas.paint(canvas.box(x, horizon + 0.01, 0.035, 0.12), tuple(dim * c for c in (108, 72, 44)))
            canvas.paint(canvas.shape("circle", x, horizon - 0.2, 0.16), tuple(dim * c for c in (34, 112, 48)))

    def ideal_mask(self, figure: Figure, size_px: int, *, x: float, y: float, radius: float) -> np.ndarray:
        """The figure's shape as a boolean mask (size_px, size_px) at a given place and size."""
        return Canvas(size_px).shape(figure.shape, x, y, radius)[..., 0] > 0.5


class Canvas:
    """Float RGB in 0…255 with anti-aliased painting: an edge is ramped over one pixel."""

    def __init__(self, size_px: int):
        axis = (np.arange(size_px) + 0.5) / size_px
        self.x, self.y = np.meshgrid(axis, axis)
        self.size_px = size_px
        self.rgb = np.zeros((size_px, size_px, 3))

    def fill(self, colour: tuple[float, ...]) -> None:
        self.rgb[:] = colour

    def gradient(self, top: tuple[int, ...], bottom: tuple[int, ...], *, until: float) -> None:
        share = np.clip(self.y / until, 0, 1)[..., None]
        self.rgb[:] = (1 - share) * np.array(top, float) + share * np.array(bottom, float)

    def paint(self, mask: np.ndarray, colour: tuple[float, ...]) -> None:
        self.rgb += mask * (np.array(colour, float) - self.rgb)

    def pixels(self) -> np.ndarray:
        return np.clip(self.rgb + 0.5, 0, 255).astype(np.uint8)

    def _mask(self, distance: np.ndarray) -> np.ndarray:
        """Signed distance (negative inside, in picture widths) to coverage, shape (h, w, 1)."""
        return np.clip(0.5 - distance * self.size_px, 0, 1)[..., None]

    def shape(self, name: str, x: float, y: float, radius: float) -> np.ndarray:
        dx, dy = self.x - x, self.y - y
        if name == "circle":
            return self._mask(np.hypot(dx, dy) - radius)
        if name == "ring":
            return self._mask(np.abs(np.hypot(dx, dy) - 0.76 * radius) - 0.27 * radius)
        if name == "square":
            return self._mask(np.maximum(abs(dx), abs(dy)) - 0.88 * radius)
        if name == "triangle":
            slope = np.hypot(2.0, 1.0)
            return self._mask(np.maximum((2.0 * abs(dx) - dy - 0.95 * radius) / slope, dy - 0.9 * radius))
        if name == "cross":
            long, short = 1.02 * radius, 0.34 * radius
            bar = np.maximum(abs(dx) - long, abs(dy) - short)
            post = np.maximum(abs(dx) - short, abs(dy) - long)
            return self._mask(np.minimum(bar, post))
        raise KeyError(name)

    def box(self, x: float, bottom: float, half_width: float, height: float) -> np.ndarray:
        return self._mask(np.maximum(abs(self.x - x) - half_width, abs(self.y - bottom + height / 2) - height / 2))

    def peak(self, x: float, bottom: float, height: float, half_width: float) -> np.ndarray:
        side = (abs(self.x - x) / half_width + (bottom - self.y) / height - 1) / np.hypot(1 / half_width, 1 / height)
        return self._mask(np.maximum(side, self.y - bottom))

    def below(self, y: float) -> np.ndarray:
        return self._mask(y - self.y)


def shade(colour: tuple[int, int, int], rng: Random) -> tuple[float, ...]:
    """A palette colour with a small random change of each channel."""
    return tuple(channel + rng.uniform(-7, 7) for channel in colour)
