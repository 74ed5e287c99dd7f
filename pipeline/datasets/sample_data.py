"""Generate photos of synthetic cat breeds, to try the whole pipeline without a data set.

Everything is drawn in head units: (0, 0) is the middle of the face, x points right, y points down,
and the head is about one unit in radius. A `Pose` converts head units to pixels. Photos are drawn
`SUPERSAMPLE` times larger and then reduced, which smooths the edges.
"""

import io
import math
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageOps, PngImagePlugin

Color = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLE = 2
LONG_SIDE = (160, 360)  # minimum and maximum, in pixels
ASPECTS = (3 / 2, 4 / 3, 4 / 3, 1.0, 3 / 4, 3 / 4, 2 / 3)  # width : height
JPEG_QUALITY = (55, 95)
PNG_EVERY = 13  # one photo in this many is a PNG; chosen by number, so that file names do not depend on the seed
MAX_TILT = math.radians(25)
USUAL_COAT = 0.8  # share of photos that show a breed's first coat rather than its rarer one
MIXED = 0.1  # share of cats with another breed's ears; the same share has another breed's eye color
NIGHT = (0.3, 0.36, 0.55)  # brightness of red, green and blue at night, relative to daylight
SLEEPY, OCCLUDED, BLURRED, FADED = 0.05, 0.15, 0.2, 0.12  # share of photos with each defect
SQUARED_OFFSETS = np.linspace(-1, 1, 65) ** 2
# 255 in the middle, 0 at the rim and outside
SOFT_DISC = Image.fromarray(
    (255 * np.maximum(0, 1 - SQUARED_OFFSETS[:, None] - SQUARED_OFFSETS) ** 1.5).astype(np.uint8)
)
STRAND, FUR_SHADE = (3, 12), 205  # width and height of a strand of fur in canvas pixels; darkest value of fur
INK, PINK, WHITE = (38, 30, 32), (226, 160, 156), (250, 246, 240)


CLUTTER = ("#b5564a", "#4a6f8f", "#c9a24c", "#5f8064", "#8a6a94", "#d9cdb8", "#5b4a42", "#7d8794", "#c98f9a")
SCENES = (  # color of wall or sky, color of floor or meadow, kind of clutter, maximum number of objects
    ("#c9c3b4", "#9a7350", "frame", 5),
    ("#aebfc4", "#7b6a5a", "frame", 5),
    ("#b7a9b9", "#a0574a", "cushion", 6),
    ("#d8c0a8", "#5f7f8f", "cushion", 6),
    ("#8fb3d1", "#6f9a4a", "blade", 120),
    ("#7d8a78", "#6f9a4a", "blade", 120),
    ("#8fb3d1", "#94604a", "cloud", 9),
    ("#5d636e", "#7d8a78", "disc", 16),
)


@dataclass(frozen=True)
class Breed:
    """Appearance of a synthetic breed; `pattern`, `ears` and `face` are keys of PATTERNS, EARS and FACES."""

    name: str
    coats: tuple[str, str]  # base colors: the usual one and a rarer one
    marking: str  # color of the pattern
    pattern: str
    ears: str
    eyes: str  # iris color
    face: str
    fluff: float  # depth of the ragged fur edge, in head units

    @property
    def slug(self) -> str:
        """Name of the breed in file names."""
        return self.name.lower().replace(" ", "_")


# Harbor Grey and Fogbell look alike on purpose: they differ only in ears and eyes.
BREEDS = (
    Breed("Harbor Grey", ("#7d8794", "#a3a7ab"), "#666f7c", "solid", "rounded", "#e0a030", "round", 0.03),
    Breed("Mosscoat", ("#8a7b55", "#a98d60"), "#40381f", "tabby", "tufted", "#8fb447", "wide", 0.12),
    Breed("Fogbell", ("#7d8794", "#5d626b"), "#666f7c", "solid", "pointed", "#8fb447", "round", 0.03),
    Breed("Saltmarsh", ("#e6d6bd", "#d9c3a5"), "#54402f", "points", "pointed", "#5aa5dc", "wedge", 0.02),
    Breed("Inkwell", ("#2f2d33", "#5d626b"), "#f4efe6", "tuxedo", "rounded", "#d8c040", "round", 0.05),
    Breed("Emberling", ("#d18a48", "#c9a26b"), "#93501f", "tabby", "pointed", "#cf8a2c", "round", 0.05),
    Breed("Quiltback", ("#38302d", "#6d625c"), "#c47a36", "patches", "rounded", "#cf8a2c", "wide", 0.08),
    Breed("Pebble Ocell", ("#c9a26b", "#b9b0a2"), "#4d3421", "spots", "pointed", "#8fb447", "wedge", 0.02),
    Breed("Candlewick", ("#ece3d2", "#d9b98a"), "#dccbb0", "solid", "folded", "#cf8a2c", "round", 0.06),
)

# Half of the width, half of the height, narrowing towards the chin.
FACES = {"round": (1.0, 0.9, 0.06), "wide": (1.1, 0.88, 0.12), "wedge": (0.94, 0.98, 0.3)}

# Outer base, outer bend, tip, inner bend and inner base of the ear at x > 0.
EARS = {
    "pointed": ((0.96, -0.3), (1.0, -1.0), (0.86, -1.48), (0.5, -1.16), (0.2, -0.72)),
    "tufted": ((0.98, -0.3), (1.08, -0.95), (0.94, -1.4), (0.52, -1.12), (0.22, -0.72)),
    "rounded": ((0.98, -0.25), (1.26, -1.12), (0.76, -1.2), (0.34, -1.24), (0.24, -0.7)),
    "folded": ((0.98, -0.35), (1.02, -0.98), (0.62, -0.98), (0.26, -1.0), (0.28, -0.72)),
}


@dataclass(frozen=True)
class Pose:
    """Position, scale and rotation of the head on a canvas, in canvas pixels and radians."""

    x: float
    y: float
    unit: float
    tilt: float
    flip: int  # -1 mirrors left and right

    def pixels(self, points: Iterable[Point]) -> list[Point]:
        """Convert head units to canvas pixels."""
        cos, sin = math.cos(self.tilt) * self.unit, math.sin(self.tilt) * self.unit
        flipped = ((x * self.flip, y) for x, y in points)
        return [(self.x + cos * x - sin * y, self.y + sin * x + cos * y) for x, y in flipped]


class Canvas:
    """An image with drawing methods that take head units."""

    def __init__(self, image: Image.Image, pose: Pose):
        self.image, self.pose, self.ink = image, pose, ImageDraw.Draw(image)

    def fill(self, points: Iterable[Point], color: Color | int) -> None:
        """Fill a polygon."""
        self.ink.polygon(self.pose.pixels(points), fill=color)

    def stroke(self, points: Iterable[Point], color: Color | int, width: float) -> None:
        """Draw an open line that is `width` head units wide."""
        thick = max(1, round(width * self.pose.unit))
        self.ink.line(self.pose.pixels(points), fill=color, width=thick, joint="curve")

    def glow(self, center: Point, rx: float, ry: float, color: Color, strength: float) -> None:
        """Blend in a soft disc; `strength` (0 to 1) is its opacity in the middle."""
        (x, y), w, h = self.pose.pixels([center])[0], int(rx * self.pose.unit), int(ry * self.pose.unit)
        disc = SOFT_DISC.resize((2 * w + 1, 2 * h + 1), Image.Resampling.BILINEAR)
        self.image.paste(color, (int(x) - w, int(y) - h), disc.point(lambda v: int(v * strength)))


def oval(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0, pinch: float = 0.0) -> list[Point]:
    """Outline of an ellipse rotated by `turn` radians; `pinch` above 0 sharpens its two ends to an almond shape."""
    cos, sin, outline = math.cos(turn), math.sin(turn), []
    for step in range(28):
        a = step * math.tau / 28
        x, y = rx * math.cos(a), ry * math.sin(a) * abs(math.sin(a)) ** pinch
        outline.append((cx + cos * x - sin * y, cy + sin * x + cos * y))
    return outline


def curve(a: Point, control: Point, b: Point, steps: int = 8) -> list[Point]:
    """Quadratic Bezier curve from a to b with the control point `control`."""
    shares = [((1 - t) ** 2, 2 * t * (1 - t), t * t) for t in (i / steps for i in range(steps + 1))]
    return [(i * a[0] + j * control[0] + k * b[0], i * a[1] + j * control[1] + k * b[1]) for i, j, k in shares]


def mix(a: Color, b: Color, share: float) -> Color:
    """Interpolate between two colors; `share` is 0 for a and 1 for b."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))


def vary(rng: random.Random, color: str | Color, light: float = 0.1, tint: float = 0.05) -> Color:
    """Vary a color: `light` and `tint` are the relative standard deviations of the brightness and of each channel."""
    rgb = ImageColor.getrgb(color) if isinstance(color, str) else color
    gain = rng.gauss(1, light)
    return tuple(min(255, max(0, round(v * gain * rng.gauss(1, tint)))) for v in rgb)


# ---- coat patterns: each fills a whole canvas, which is later masked by the outlines of head, ears and body ----


def paint_solid(coat: Canvas, marking: Color, rng: random.Random) -> None:
    """One color with a hint of shade on the forehead."""
    coat.glow((0, -0.7), 0.9, 0.6, marking, 0.5)


def paint_tabby(coat: Canvas, marking: Color, rng: random.Random) -> None:
    """Forehead stripes, cheek stripes and bands down the body."""
    width = rng.uniform(0.07, 0.12)
    for x in (-0.42, -0.2, 0, 0.2, 0.42):
        top = (x * 1.3 + rng.gauss(0, 0.03), -1.0)
        coat.stroke(curve(top, (x, -0.7), (x * 0.75, -0.42 - abs(x) * 0.2)), marking, width)
    for side in (-1, 1):
        for row in range(3):
            y = -0.05 + 0.24 * row + rng.gauss(0, 0.03)
            coat.stroke(curve((1.3 * side, y - 0.1), (0.9 * side, y + 0.1), (0.62 * side, y)), marking, width)
    for row in range(9):
        y = 1.1 + row * 0.36 + rng.gauss(0, 0.03)
        coat.stroke(curve((-2.2, y + 0.4), (0, y - 0.3), (2.2, y + 0.4)), marking, width * 1.3)


def paint_spots(coat: Canvas, marking: Color, rng: random.Random) -> None:
    """Small ovals on a loose grid, none in the middle of the face."""
    for row in range(18):
        for column in range(-7, 8):
            x = 0.3 * column + 0.15 * (row % 2) + rng.gauss(0, 0.04)
            y = 0.27 * row - 1.0 + rng.gauss(0, 0.04)
            if abs(x) > 0.68 or not -0.5 < y < 0.8:
                size = rng.uniform(0.05, 0.1)
                coat.fill(oval(x, y, size, size * 0.75, rng.uniform(0, 3)), marking)


def paint_points(coat: Canvas, marking: Color, rng: random.Random) -> None:
    """Dark mask and dark ears on a pale coat."""
    spread = rng.uniform(0.8, 1.05)
    for part in (1, 0.8):
        coat.glow((0, 0.3), spread * part, spread * part * 1.1, marking, 0.85)
    for side in (-1, 1):
        coat.glow((0.85 * side, -1.3), 0.85, 0.85, marking, 1)


def paint_tuxedo(coat: Canvas, marking: Color, rng: random.Random) -> None:
    """White blaze, muzzle and bib."""
    top, muzzle, lean = rng.uniform(-0.75, -0.1), rng.uniform(0.38, 0.55), rng.gauss(0, 0.06)
    for side in (-1, 1):
        coat.fill([*curve((lean, top), (0.05 * side, 0.1), (muzzle * side, 0.4)), (lean, 0.6)], marking)
    coat.fill(oval(0, 0.58, muzzle, 0.42), marking)
    coat.fill(oval(lean, 1.9, rng.uniform(0.45, 0.75), 1.2), marking)


def paint_patches(coat: Canvas, marking: Color, rng: random.Random) -> None:
    """Tortoiseshell: irregular patches of two warm tones all over."""
    for _ in range(34):
        x, y, size = rng.uniform(-1.7, 1.7), rng.uniform(-1.5, 3.5), rng.uniform(0.16, 0.4)
        tone = mix(marking, WHITE, rng.choice((0.0, 0.0, 0.35)))
        for _ in range(3):  # overlapping ovals make a ragged blotch
            dx, dy = rng.gauss(0, size / 2), rng.gauss(0, size / 2)
            coat.fill(oval(x + dx, y + dy, size, size * 0.6, rng.uniform(0, 3)), tone)


PATTERNS = {
    "solid": paint_solid,
    "tabby": paint_tabby,
    "spots": paint_spots,
    "points": paint_points,
    "tuxedo": paint_tuxedo,
    "patches": paint_patches,
}


# ---- parts of the cat ----


def fur_texture(size: tuple[int, int], noise: np.random.Generator) -> Image.Image:
    """RGB image of light and dark vertical strands, to multiply a coat with."""
    width, height = STRAND
    strands = noise.integers(FUR_SHADE, 256, (size[1] // height + 2, size[0] // width + 2), dtype=np.uint8)
    return Image.fromarray(strands).resize(size, Image.Resampling.BILINEAR).convert("RGB")


def ragged(outline: list[Point], fluff: float, rng: random.Random) -> list[Point]:
    """Move every second point of an outline around (0, 0) outwards a little, like tufts of fur."""
    reach = [1 + fluff * (i % 2) * rng.uniform(0.2, 1.3) for i in range(len(outline))]
    return [(x * k, y * k) for k, (x, y) in zip(reach, outline, strict=True)]


def head_outline(breed: Breed, rng: random.Random) -> list[Point]:
    """Outline of the head without ears."""
    width, height, taper = FACES[breed.face]
    width *= rng.gauss(1, 0.03)
    outline = []
    for step in range(72):
        a = step * math.tau / 72
        narrow = 1 - taper * max(0.0, math.sin(a))
        outline.append((width * math.cos(a) * narrow, height * math.sin(a)))
    return ragged(outline, breed.fluff, rng)


def draw_body(photo: Canvas, coat: Image.Image, rng: random.Random) -> None:
    """Draw shoulders, chest and usually a tail, in a shaded coat."""
    mask = Canvas(Image.new("L", photo.image.size), photo.pose)
    wide = rng.uniform(1.15, 1.5)
    for side in (-1, 1):
        shoulder = curve((0.75 * side, 0.6), (wide * side, 1.0), (wide * side, 2.6))
        mask.fill([(0, 0), (0.6 * side, 0.3), *shoulder, (wide * side, 6), (0, 6)], 255)
    if rng.random() < 0.6:
        tip = (wide + 0.5, rng.uniform(0.4, 1.4))
        mask.stroke(curve((wide - 0.3, 2.7), (wide + 1.4, 2.4), tip, 14), 255, 0.36)
        mask.fill(oval(*tip, 0.18, 0.18), 255)
    shaded = Canvas(coat.point(lambda v: int(v * 0.86)), photo.pose)
    shaded.glow((0, 0.75), 1.3, 1.0, INK, 0.75)  # shadow of the head
    photo.image.paste(shaded.image, mask=mask.image)


def draw_ears(photo: Canvas, coat: Image.Image, lining: Color, breed: Breed, rng: random.Random) -> None:
    """Draw two ears; the head hides the front of their base."""
    mask, linings = Canvas(Image.new("L", photo.image.size), photo.pose), []
    for side in (-1, 1):
        twist = rng.gauss(0, 0.05)
        outer, out, tip, inside, inner = [(side * x + twist * (-1 - y), y) for x, y in EARS[breed.ears]]
        ear, middle = curve(outer, out, tip) + curve(tip, inside, inner), (outer[0] + inner[0]) / 2
        mask.fill(ear, 255)
        linings.append([(middle + (x - middle) * 0.62, (y + 0.5) * 0.76 - 0.5) for x, y in ear])
        if breed.ears == "tufted":
            for spread in (-0.12, -0.04, 0.05):
                end = (tip[0] + side * 0.08 + spread, tip[1] - 0.34)
                mask.stroke(curve(tip, (tip[0], tip[1] - 0.15), end), 255, 0.05)
    photo.image.paste(coat.point(lambda v: int(v * 0.9)), mask=mask.image)
    if breed.ears != "folded":
        for shape in linings:
            photo.fill(shape, lining)


def draw_flaps(photo: Canvas, coat: Image.Image) -> None:
    """Draw the tips of folded ears, which lie on the forehead."""
    for side in (-1, 1):
        flap = curve((0.3 * side, -0.86), (0.5 * side, -0.42), (0.72 * side, -0.4))
        flap += curve((0.72 * side, -0.4), (0.98 * side, -0.5), (0.94 * side, -0.62))
        photo.glow((0.7 * side, -0.48), 0.36, 0.36, INK, 0.45)
        mask = Canvas(Image.new("L", photo.image.size), photo.pose)
        mask.fill([*flap, (0.66 * side, -0.98)], 255)
        photo.image.paste(coat.point(lambda v: int(v * 0.95)), mask=mask.image)


def draw_head(photo: Canvas, coat: Image.Image, breed: Breed, rng: random.Random) -> None:
    """Draw the head in the coat, rounded by soft light above and shade below."""
    mask = Canvas(Image.new("L", photo.image.size), photo.pose)
    mask.fill(head_outline(breed, rng), 255)
    lit = Canvas(coat.copy(), photo.pose)
    lit.glow((-0.1, -0.35), 1.0, 0.9, WHITE, 0.22)
    lit.glow((0, 1.15), 1.2, 0.6, INK, 0.35)
    photo.image.paste(lit.image, mask=mask.image)


def draw_eyes(photo: Canvas, breed: Breed, look: Point, rng: random.Random) -> None:
    """Draw two eyes with rim, iris, pupil and glint; in some photos they are closed."""
    almond, asleep = breed.face == "wedge", rng.random() < SLEEPY
    iris, slit, gaze = vary(rng, breed.eyes, 0.12, 0.06), rng.uniform(0.04, 0.15), rng.gauss(0, 0.025)
    rx, ry = (0.25, 0.2) if almond else (0.22, 0.21)
    ry *= rng.uniform(0.65, 1.1)
    for side in (-1, 1):
        x, y = 0.42 * side + look[0], look[1] - 0.07
        lean, pinch = side * (-0.22 if almond else -0.1), 0.4 * almond
        if asleep:
            photo.stroke(curve((x - rx, y), (x, y + 0.24), (x + rx, y)), INK, 0.06)
            continue
        photo.fill(oval(x, y, rx + 0.045, ry + 0.045, lean, pinch), INK)
        photo.fill(oval(x, y, rx, ry, lean, pinch), mix(iris, INK, 0.25))
        photo.fill(oval(x, y + 0.03, rx * 0.82, ry * 0.8, lean, pinch), mix(iris, WHITE, 0.12))
        photo.fill(oval(x + gaze, y, slit, ry * 0.86), INK)
        photo.fill(oval(x - 0.08, y - ry * 0.4, 0.055, 0.05), WHITE)


def draw_muzzle(photo: Canvas, coat_color: Color, look: Point, rng: random.Random) -> None:
    """Draw whisker pads, nose, mouth and whiskers."""
    x, y = look[0] * 1.4, look[1] * 1.4
    for side in (-1, 1):
        photo.glow((x + 0.19 * side, y + 0.47), 0.36, 0.3, mix(coat_color, WHITE, 0.5), 0.6)
    mouth = mix(coat_color, INK, 0.75)
    photo.stroke([(x, y + 0.32), (x, y + 0.46)], mouth, 0.035)
    for side in (-1, 1):
        smile = curve((x, y + 0.46), (x + 0.12 * side, y + 0.6), (x + 0.27 * side, y + 0.5))
        photo.stroke(smile, mouth, 0.035)
    nose = mix(vary(rng, PINK), INK, rng.choice((0.0, 0.1, 0.5)))
    left, right, low = (x - 0.13, y + 0.24), (x + 0.13, y + 0.24), (x, y + 0.37)
    photo.fill(
        curve(left, (x, y + 0.18), right)
        + curve(right, (x + 0.06, y + 0.34), low)
        + curve(low, (x - 0.06, y + 0.34), left),
        nose,
    )
    for side in (-1, 1):
        for row in (-1, 0, 1):
            root, end = (x + 0.25 * side, y + 0.46 + 0.05 * row), (x + 1.25 * side, y + 0.5 + 0.24 * row)
            droop = (x + 0.75 * side, y + 0.32 + 0.1 * row + rng.gauss(0, 0.04))
            photo.stroke(curve(root, droop, end), mix(WHITE, INK, 0.08), 0.014)


# ---- scenery ----


def random_color(rng: random.Random) -> Color:
    """Random color for furniture and other clutter."""
    return vary(rng, rng.choice(CLUTTER), 0.12)


def add_clutter(ink: ImageDraw.ImageDraw, kind: str, w: int, h: int, rng: random.Random) -> None:
    """Draw one object at a random position of a background of w x h pixels."""
    x, y, r = rng.randint(0, w), rng.randint(0, h), rng.randint(4, h // 3)
    if kind == "frame":  # window, picture or shelf
        rim = vary(rng, "#e8e2d2")
        ink.rectangle((x - r, y - 2 * r, x + r, y), fill=random_color(rng), outline=rim, width=2)
    elif kind == "cushion":
        ink.rounded_rectangle((x - r, y, x + r, y + 2 * r), r // 3, fill=random_color(rng))
    elif kind == "blade":
        ink.line((x, y, x + rng.randint(-3, 3), y - rng.randint(3, 12)), fill=vary(rng, "#7fae52", 0.3))
    elif kind == "cloud":
        ink.ellipse((x - r, y - r // 3, x + r, y + r // 3), fill=vary(rng, "#e9eef2", 0.05))
    else:  # disc: an object that is far out of focus
        ink.ellipse((x - r, y - r, x + r, y + r), fill=random_color(rng))


def draw_background(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw a random scene, small and then enlarged, so that it is out of focus like the background of a portrait."""
    w, h = size[0] // 4, size[1] // 4
    wall, floor, kind, most = rng.choice(SCENES)
    color = vary(rng, wall, 0.12, 0.08)
    shade = Image.linear_gradient("L").resize((w, h))
    image = ImageOps.colorize(shade, mix(color, WHITE, 0.25), mix(color, INK, 0.25))
    ink = ImageDraw.Draw(image)
    ink.rectangle((0, int(h * rng.uniform(0.3, 1.1)), w, 2 * h), fill=vary(rng, floor, 0.15, 0.08))
    for _ in range(rng.randint(most // 4, most)):
        add_clutter(ink, kind, w, h, rng)
    return image.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 2))).resize(size, Image.Resampling.BILINEAR)


def draw_occluder(photo: Canvas, rng: random.Random) -> None:
    """Draw an object in front of the cat: a blanket, leaves, or a rail."""
    kind, color = rng.choice(("blanket", "leaves", "rail")), random_color(rng)
    if kind == "blanket":
        edge = [(x / 2, rng.uniform(0.3, 0.7)) for x in range(-10, 11)]
        photo.fill([*edge, (5, 9), (-5, 9)], color)
        photo.stroke(edge, mix(color, WHITE, 0.3), 0.07)
    elif kind == "leaves":
        for _ in range(rng.randint(4, 9)):
            leaf = oval(rng.uniform(0.1, 1.5), rng.uniform(-1.5, 1.2), 0.42, 0.15, rng.uniform(0, 3), 0.5)
            photo.fill(leaf, vary(rng, "#5f8f45", 0.2))
    else:
        x = rng.uniform(-0.8, 0.8)
        photo.fill([(x - 0.14, -9), (x + 0.14, -9), (x + 0.2, 9), (x - 0.1, 9)], color)


def draw_cat(image: Image.Image, breed: Breed, rng: random.Random, noise: np.random.Generator) -> None:
    """Draw the cat, and sometimes an object in front of it, onto the background."""
    for trait in ("ears", "eyes"):  # some cats are mixed breeds, so that no classifier can be perfect
        if rng.random() < MIXED:
            breed = replace(breed, **{trait: getattr(rng.choice(BREEDS), trait)})
    short = min(image.size)
    tilt = max(-MAX_TILT, min(MAX_TILT, rng.gauss(0, MAX_TILT / 2)))
    pose = Pose(
        image.width * rng.gauss(0.5, 0.07),
        image.height * rng.gauss(0.5, 0.05),
        short * rng.uniform(0.2, 0.33),
        tilt,
        rng.choice((-1, 1)),
    )
    base = vary(rng, breed.coats[rng.random() > USUAL_COAT], 0.12, 0.04)
    coat = Canvas(Image.new("RGB", image.size, base), pose)
    PATTERNS[breed.pattern](coat, vary(rng, breed.marking, 0.12, 0.04), rng)
    fur = ImageChops.multiply(coat.image, fur_texture(image.size, noise))

    photo, look = Canvas(image, pose), (rng.gauss(0, 0.07), rng.gauss(0, 0.05))
    upright = replace(pose, tilt=tilt * 0.3)  # the body leans less than the head
    draw_body(Canvas(image, upright), fur, rng)
    draw_ears(photo, fur, mix(PINK, base, 0.35), breed, rng)
    draw_head(photo, fur, breed, rng)
    if breed.ears == "folded":
        draw_flaps(photo, fur)
    draw_eyes(photo, breed, look, rng)
    draw_muzzle(photo, base, look, rng)
    if rng.random() < OCCLUDED:
        draw_occluder(photo, rng)


def expose(image: Image.Image, rng: random.Random, noise: np.random.Generator, night: bool) -> Image.Image:
    """Apply camera effects: white balance, uneven light, sensor noise, and sometimes blur or faded color."""
    if rng.random() < BLURRED:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2.2)))
    pixels = np.asarray(image, dtype=np.float32)  # (height, width, 3)
    if rng.random() < FADED:
        gray = pixels.mean(axis=2, keepdims=True)
        pixels = gray + (pixels - gray) * np.float32(rng.uniform(0, 0.6))
    warmth, exposure = rng.gauss(0, 0.07), rng.uniform(0.7, 1.2)
    balance = np.array([1 + warmth, rng.gauss(1, 0.02), 1 - warmth], dtype=np.float32) * exposure
    across = np.linspace(-1, 1, image.width, dtype=np.float32) * rng.gauss(0, 0.13)
    down = np.linspace(-1, 1, image.height, dtype=np.float32) * rng.gauss(0, 0.1)
    balance *= np.array(NIGHT, dtype=np.float32) if night else 1
    light = 1 + across[None, :, None] + down[:, None, None]
    grain = noise.standard_normal((*pixels.shape[:2], 1), dtype=np.float32) * np.float32(rng.uniform(1, 9))
    return Image.fromarray(np.clip(pixels * balance * light + grain, 0, 255).astype(np.uint8))


def draw_photo(breed: Breed, seed: int | str, night: bool = False) -> Image.Image:
    """Draw one photo of a cat of the breed.

    Args:
        breed: Breed of the cat, usually one of BREEDS.
        seed: Seed for everything that varies between photos; the same seed gives the same pixels.
        night: Whether the photo is taken at night: dark and bluish.

    Returns:
        RGB image in portrait, square or landscape format; its longer side is in the range LONG_SIDE.
    """
    rng = random.Random(f"{breed.name}/{seed}")  # hashes the text with SHA-512, so it is the same in every process
    noise = np.random.default_rng(rng.getrandbits(64))
    long, aspect = rng.randint(*LONG_SIDE), rng.choice(ASPECTS)
    width, height = (long, round(long / aspect)) if aspect >= 1 else (round(long * aspect), long)
    image = draw_background((width * SUPERSAMPLE, height * SUPERSAMPLE), rng)
    draw_cat(image, breed, rng, noise)
    return expose(image.reduce(SUPERSAMPLE), rng, noise, night)


# ---- files ----


def is_png(number: int) -> bool:
    """Whether photo `number` is stored as PNG rather than JPEG."""
    return number % PNG_EVERY == PNG_EVERY // 2


def encode_photo(breed: Breed, number: int, seed: int, night: bool, stamp: str) -> bytes:
    """Return the file content of photo `number`, with the stamp as a comment."""
    image, content = draw_photo(breed, f"{seed}/{number}", night), io.BytesIO()
    if is_png(number):
        info = PngImagePlugin.PngInfo()
        info.add_text("Comment", stamp)
        image.save(content, "PNG", pnginfo=info, compress_level=3)
    else:
        quality = random.Random(f"quality/{breed.name}/{seed}/{number}").randint(*JPEG_QUALITY)
        image.save(content, "JPEG", quality=quality, comment=stamp)
    return content.getvalue()


def is_stamped(path: Path, stamp: str) -> bool:
    """Whether the file contains the stamp of `encode_photo` near its start."""
    with path.open("rb") as file:
        return stamp.encode() in file.read(200)


def write_sample_data(
    out: Path,
    *,
    breeds: int = 6,
    photos: int = 40,
    seed: int = 0,
    offset: int = 0,
    night: bool = False,
) -> list[Path]:
    """Write photos of synthetic breeds to `out/<Breed Name>/<slug>_<number>.jpg`; a few are `.png`.

    A photo depends only on the seed, its breed and its number. So a later call for more photos keeps the
    existing ones, and files are reproducible byte for byte with the same version of Pillow.

    Args:
        out: Folder for the breed folders; created if missing.
        breeds: Number of breeds, the first of BREEDS; 2 to len(BREEDS).
        photos: Number of photos per breed, at least 1.
        seed: Random seed; another seed gives other photos of the same breeds.
        offset: Number of photos to skip per breed: the photos are numbered from offset + 1 to offset + photos.
        night: Whether the photos are taken at night.

    Returns:
        Paths of all requested photos, ordered by breed and number, including those that already existed.

    Raises:
        ValueError: If an argument is out of range.
        FileExistsError: If a path already has a different file, which is not changed.
    """
    if not 2 <= breeds <= len(BREEDS):
        raise ValueError(f"breeds must be 2 to {len(BREEDS)}, not {breeds}")
    if photos < 1:
        raise ValueError(f"photos must be at least 1, not {photos}")
    if offset < 0:
        raise ValueError(f"offset must be at least 0, not {offset}")
    paths = []
    for breed in BREEDS[:breeds]:
        for number in range(offset + 1, offset + photos + 1):
            path = Path(out) / breed.name / f"{breed.slug}_{number:04d}.{'png' if is_png(number) else 'jpg'}"
            # Part of the file, so it must not change.
            stamp = f"imaginary cat, seed {seed}, number {number}{', night' if night else ''};"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".part")  # an interrupted write leaves no incomplete photo
                part.write_bytes(encode_photo(breed, number, seed, night, stamp))
                os.replace(part, path)
            elif not is_stamped(path, stamp):
                raise FileExistsError(f"{path}: not photo {number} of seed {seed}; use an empty folder")
            paths.append(path)
    return paths
