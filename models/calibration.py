"""Renders the pictures that the networks are calibrated with when they are quantised.

Purpose
    Quantisation needs the range of every activation over pictures like those that will be seen. Industrial pictures
    are textures, edges, lines, print and parts on a ground, sharp and soft, bright and dark, coloured and grey. These
    are rendered here: no file, no licence, the same bytes each time.

Method
    Eleven families, each a function of a random generator that returns linear light in 0 to 1, [SIZE, SIZE, 3]. A
    camera then adds uneven light, contrast, blur and noise. Picture number n is of family n mod 11 and depends on
    n alone, so that more pictures never change the earlier ones.

Use
    python models/calibration.py FOLDER    writes the pictures as PPM files, to look at
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

Array = np.ndarray
Random = np.random.Generator

SIZE = 256
COUNT = 352  # 32 of each family
Y, X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)


# --- building blocks ------------------------------------------------------------------------------------------------


def log_uniform(r: Random, low: float, high: float) -> float:
    return float(np.exp(r.uniform(np.log(low), np.log(high))))


def colour(r: Random, low: float = 0.02, high: float = 0.98) -> Array:
    """A colour of random saturation: grey as often as not, as parts and machines are."""
    grey, hue = r.uniform(low, high), r.uniform(low, high, 3)
    saturation = r.choice([0.0, r.uniform(0, 0.3), r.uniform(0.3, 1)])
    return grey + saturation * (hue - grey)


def mix(mask: Array, over: Array, under: Array) -> Array:
    """`over` where the mask is 1, `under` where it is 0."""
    return mask[..., None] * over + (1 - mask[..., None]) * under


def plain(value: Array) -> Array:
    return np.broadcast_to(value, (SIZE, SIZE, 3)).copy()


def noise(r: Random, sigma: float | tuple[float, float]) -> Array:
    """Smooth noise of mean 0 and deviation 1, one number a pixel."""
    field = ndimage.gaussian_filter(r.standard_normal((SIZE, SIZE)), sigma, mode="wrap")
    return (field - field.mean()) / (field.std() + 1e-9)


def fractal(r: Random, finest: float = 0.7, fall: float = 1.0) -> Array:
    """Noise of all scales from `finest` pixels on; `fall` 1 gives each scale the same weight per octave squared."""
    field = np.zeros((SIZE, SIZE))
    for octave in range(6):
        field += 2 ** (octave * fall / 2) * noise(r, finest * 2**octave)
    return (field - field.mean()) / field.std()


def turned(r: Random, angle: float | None = None) -> tuple[Array, Array]:
    """Coordinates about a random centre, turned by `angle`."""
    angle = r.uniform(0, np.pi) if angle is None else angle
    x, y = X - r.uniform(0.2, 0.8) * SIZE, Y - r.uniform(0.2, 0.8) * SIZE
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def soft(distance: Array, edge: float = 1.0) -> Array:
    """1 where the distance is negative, 0 beyond `edge` pixels."""
    return np.clip(0.5 - distance / edge, 0, 1)


def segment(ax: float, ay: float, bx: float, by: float) -> Array:
    """Distance in pixels from the segment a-b."""
    dx, dy = bx - ax, by - ay
    along = np.clip(((X - ax) * dx + (Y - ay) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.hypot(X - ax - along * dx, Y - ay - along * dy)


def shape(r: Random) -> Array:
    """Distance from the outline of a part: disc, ring, gear, plate with holes, bar or polygon; negative inside."""
    x, y = turned(r)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    size = r.uniform(0.15, 0.4) * SIZE
    kind = r.integers(6)
    if kind == 0:
        return radius - size
    if kind == 1:
        return np.abs(radius - size * 0.75) - size * r.uniform(0.08, 0.3)
    if kind == 2:
        teeth, depth = r.integers(8, 30), r.uniform(0.03, 0.12)
        gear = radius - size * (1 + depth * np.clip(3 * np.sin(teeth * angle), -1, 1))
        return np.maximum(gear, size * r.uniform(0.1, 0.4) - radius)
    if kind == 3:
        plate = np.maximum(np.abs(x) - size, np.abs(y) - size * r.uniform(0.3, 0.9))
        for _ in range(r.integers(1, 5)):
            hole = np.hypot(x - r.uniform(-0.8, 0.8) * size, y - r.uniform(-0.5, 0.5) * size)
            plate = np.maximum(plate, r.uniform(0.04, 0.15) * size - hole)
        return plate
    if kind == 4:
        return np.maximum(np.abs(x) - size * 1.2, np.abs(y) - size * r.uniform(0.08, 0.3))
    outline = np.full((SIZE, SIZE), -np.inf)
    for side in np.sort(r.uniform(0, 2 * np.pi, r.integers(3, 8))):
        outline = np.maximum(outline, x * np.cos(side) + y * np.sin(side) - size * r.uniform(0.6, 1))
    return outline


def scratches(r: Random, count: int) -> Array:
    """A mask of thin crooked lines."""
    mask = np.zeros((SIZE, SIZE))
    for _ in range(count):
        x, y, angle = r.uniform(0, SIZE), r.uniform(0, SIZE), r.uniform(0, 2 * np.pi)
        width, strength = r.uniform(0.6, 2.2), r.uniform(0.2, 1)
        for _ in range(r.integers(1, 5)):
            step = log_uniform(r, 6, 80)
            to = x + step * np.cos(angle), y + step * np.sin(angle)
            mask = np.maximum(mask, strength * soft(segment(x, y, *to) - width / 2))
            (x, y), angle = to, angle + r.normal(0, 0.4)
    return mask


def glyphs(r: Random) -> Array:
    """A mask of text-like rows: each mark joins some of the points of a 3x4 grid."""
    mask = np.zeros((SIZE, SIZE))
    height = log_uniform(r, 8, 60)
    width, gap, stroke = height * 0.6, height * 0.35, max(1.0, height * r.uniform(0.08, 0.2))
    rows = min(6, int(r.integers(1, 1 + max(1, SIZE // int(2 * height)))) + 1)
    top = r.uniform(4, max(5.0, SIZE - rows * height * 1.5))
    for row in range(rows):
        x, y = r.uniform(2, 40), top + row * height * 1.5
        for _ in range(int(r.integers(2, 14))):
            if x + width > SIZE:
                break
            x0, x1 = max(0, int(x - 3)), min(SIZE, int(x + width + 4))
            y0, y1 = max(0, int(y - 3)), min(SIZE, int(y + height + 4))
            for _ in range(r.integers(2, 5)):
                (ax, bx), (ay, by) = r.integers(0, 3, 2) * width / 2 + x, r.integers(0, 4, 2) * height / 3 + y
                mark = soft(segment(ax, ay, bx, by) - stroke / 2)
                mask[y0:y1, x0:x1] = np.maximum(mask[y0:y1, x0:x1], mark[y0:y1, x0:x1])
            x += width + gap
    return mask


def ground(r: Random) -> Array:
    """What a part lies on: plain, grainy, brushed or woven."""
    base = plain(colour(r))
    kind = r.integers(4)
    if kind == 0:
        return base
    if kind == 1:
        texture = fractal(r, log_uniform(r, 0.5, 3))
    elif kind == 2:
        texture = noise(r, (log_uniform(r, 4, 40), r.uniform(0.4, 1.5)))
    else:
        x, y = turned(r)
        pitch = log_uniform(r, 3, 20)
        texture = np.sin(2 * np.pi * x / pitch) * np.sin(2 * np.pi * y / pitch) + 0.3 * noise(r, 0.7)
    return base + log_uniform(r, 0.01, 0.15) * texture[..., None]


# --- families -------------------------------------------------------------------------------------------------------


def gradient(r: Random) -> Array:
    """Slow changes of light and colour, now and then with one edge."""
    x, y = turned(r)
    ramp = np.clip(0.5 + x / SIZE, 0, 1)
    picture = mix(ramp, colour(r), plain(colour(r)))
    if r.random() < 0.5:
        picture = mix(soft(y, log_uniform(r, 1, 30)), colour(r), picture)
    return picture


def texture(r: Random) -> Array:
    """Cast iron, leather, concrete: noise of all scales, in one or two colours."""
    field = fractal(r, log_uniform(r, 0.4, 4), r.uniform(0.2, 2))
    if r.random() < 0.5:
        field = np.abs(field) - 0.8
    blend = np.clip(0.5 + log_uniform(r, 0.05, 0.6) * field, 0, 1)
    return mix(blend, colour(r), plain(colour(r)))


def grains(r: Random) -> Array:
    """Granulate, tablets, terrazzo: cells about random points, each of its own colour."""
    count = int(log_uniform(r, 30, 2500))
    points = r.uniform(0, SIZE, (count, 2))
    distance, nearest = cKDTree(points).query(np.stack([Y, X], -1).reshape(-1, 2), k=2)
    nearest = nearest[:, 0].reshape(SIZE, SIZE)
    seam = (distance[:, 1] - distance[:, 0]).reshape(SIZE, SIZE)
    base, spread = colour(r), log_uniform(r, 0.02, 0.4)
    cells = base + spread * r.standard_normal((count, 1)) + 0.3 * spread * r.standard_normal((count, 3))
    return mix(soft(seam - log_uniform(r, 0.5, 6), 2), colour(r), cells[nearest])


def brushed(r: Random) -> Array:
    """Machined metal: grain along one direction, scratches, a sheen across it."""
    grain = noise(r, (log_uniform(r, 6, 60), r.uniform(0.4, 2)))
    grain = grain if r.random() < 0.5 else grain.T
    sheen = np.exp(-((turned(r)[0] / (SIZE * r.uniform(0.2, 0.8))) ** 2))
    value = r.uniform(0.2, 0.7) + log_uniform(r, 0.01, 0.12) * grain + r.uniform(0, 0.35) * sheen
    value += r.choice([-1, 1]) * r.uniform(0.1, 0.4) * scratches(r, int(r.integers(0, 7)))
    return value[..., None] * (1 + 0.15 * (colour(r) - 0.5))


def lathe(r: Random) -> Array:
    """A turned or milled face: rings about a centre, conical highlights, a bore."""
    x, y = turned(r)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    rings = ndimage.gaussian_filter1d(r.standard_normal(2 * SIZE), r.uniform(0.5, 3))
    value = r.uniform(0.25, 0.6) + log_uniform(r, 0.05, 0.5) * np.interp(radius, np.arange(2 * SIZE), rings)
    value += r.uniform(0, 0.3) * np.cos(2 * angle + r.uniform(0, 6)) ** 8
    value -= r.uniform(0.2, 0.6) * soft(radius - r.uniform(4, 60), 2)
    value += r.uniform(-0.3, 0.3) * scratches(r, int(r.integers(0, 4)))
    return value[..., None] * (1 + 0.1 * (colour(r) - 0.5))


def board(r: Random) -> Array:
    """A printed circuit: tracks in eight directions, pads with drill holes, solder mask, some print."""
    pitch = log_uniform(r, 8, 28)
    copper = np.full((SIZE, SIZE), np.inf)
    pads = []
    for _ in range(int(r.integers(8, 36))):
        x, y = np.round(r.uniform(0, SIZE, 2) / pitch) * pitch
        for _ in range(r.integers(1, 5)):
            turn, run = r.integers(8) * np.pi / 4, pitch * r.integers(1, 8)
            to = x + run * np.cos(turn), y + run * np.sin(turn)
            copper = np.minimum(copper, segment(x, y, *to) - pitch * 0.18)
            x, y = to
        pads.append((x, y))
    holes = np.full((SIZE, SIZE), np.inf)
    for x, y in pads:
        round_pad = np.hypot(X - x, Y - y) - pitch * 0.42
        square_pad = np.maximum(np.abs(X - x), np.abs(Y - y)) - pitch * 0.38
        copper = np.minimum(copper, round_pad if r.random() < 0.7 else square_pad)
        holes = np.minimum(holes, np.hypot(X - x, Y - y) - pitch * 0.15)
    picture = mix(soft(copper), colour(r), plain(colour(r)) + r.uniform(0, 0.03) * fractal(r)[..., None])
    if r.random() < 0.7:
        picture = mix(soft(holes), colour(r, 0.0, 0.3), picture)
    return mix(glyphs(r), colour(r, 0.7, 1.0), picture) if r.random() < 0.3 else picture


def woven(r: Random) -> Array:
    """Fabric, mesh, grids and tiles: one period in two directions, with a little disorder."""
    x, y = turned(r)
    warp = r.uniform(0, 1.5) * noise(r, 12)
    across, along = log_uniform(r, 3, 40), log_uniform(r, 3, 40)
    u, v = np.sin(2 * np.pi * (x + warp) / across), np.sin(2 * np.pi * (y + warp) / along)
    sharp = log_uniform(r, 1, 12)
    blend = np.clip(0.5 + sharp * r.choice([u * v, np.maximum(u, v) - 0.5, u]) / 2, 0, 1)
    return mix(blend, colour(r), plain(colour(r))) + r.uniform(0, 0.06) * noise(r, 0.6)[..., None]


def label(r: Random) -> Array:
    """Print: rows of marks, bars of a code, a frame, on a smooth ground."""
    picture = ground(r) if r.random() < 0.4 else plain(colour(r))
    ink = colour(r)
    picture = mix(glyphs(r), ink, picture)
    if r.random() < 0.4:
        left, top, tall = r.uniform(0, SIZE * 0.5), r.uniform(0, SIZE * 0.7), r.uniform(20, 80)
        bars = np.repeat(r.integers(0, 2, SIZE), int(r.integers(1, 6)))[:SIZE].astype(float)
        window = soft(left - X) * soft(X - left - SIZE * 0.4) * soft(top - Y) * soft(Y - top - tall)
        picture = mix(window * bars[None, :], ink, picture)
    if r.random() < 0.4:
        box = np.maximum(np.abs(X - SIZE / 2) - r.uniform(60, 120), np.abs(Y - SIZE / 2) - r.uniform(40, 120))
        picture = mix(soft(np.abs(box) - r.uniform(0.5, 5)), colour(r), picture)
    return picture


def shaded(r: Random, distance: Array) -> Array:
    """A part's surface: colour, a rounded rim, a highlight, some texture and wear."""
    rim = np.clip(-distance / log_uniform(r, 2, 30), 0, 1)
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(rim, 1.5))
    turn = r.uniform(0, 2 * np.pi)
    light = r.uniform(0, 4) * (slope_x * np.cos(turn) + slope_y * np.sin(turn))
    light += r.uniform(0, 0.4) * np.exp(-((np.hypot(*turned(r)) / log_uniform(r, 8, 60)) ** 2))
    light += log_uniform(r, 0.003, 0.1) * fractal(r, log_uniform(r, 0.5, 2))
    light += r.uniform(-0.4, 0.4) * scratches(r, int(r.integers(0, 4)))
    return colour(r) + light[..., None]


def part(r: Random) -> Array:
    """One part with its shadow, on any ground."""
    distance, under = shape(r), ground(r)
    shadow = ndimage.gaussian_filter(soft(distance), log_uniform(r, 1, 12))
    under = under * (1 - r.uniform(0, 0.6) * np.roll(shadow, r.integers(-10, 11, 2), (0, 1))[..., None])
    return mix(soft(distance, log_uniform(r, 1, 4)), shaded(r, distance), under)


def heap(r: Random) -> Array:
    """Many parts over each other, or an assembly of several."""
    picture = ground(r)
    for _ in range(int(r.integers(3, 9))):
        distance = shape(r) + r.uniform(0, 40)
        picture = mix(soft(distance, log_uniform(r, 1, 3)), shaded(r, distance), picture)
    return picture


def sharp_noise(r: Random) -> Array:
    """Speckle and glitter: what no lens smooths; ranges must hold here too."""
    base, strength = colour(r), log_uniform(r, 0.02, 0.4)
    if r.random() < 0.5:
        return base + strength * r.standard_normal((SIZE, SIZE, int(r.choice([1, 3]))))
    points = (r.random((SIZE, SIZE)) < log_uniform(r, 0.001, 0.2)).astype(float)
    points = np.clip(ndimage.gaussian_filter(points, r.uniform(0.3, 1.2)) * r.uniform(2, 8), 0, 1)
    return mix(points, colour(r), ground(r))


FAMILIES: list[Callable[[Random], Array]] = [
    gradient, texture, grains, brushed, lathe, board, woven, label, part, heap, sharp_noise,
]  # fmt: skip


# --- the camera -----------------------------------------------------------------------------------------------------


def camera(r: Random, light: Array) -> Array:
    """A u8 picture of that light: uneven lighting, contrast, blur, noise, now and then grey or dim or burnt out."""
    picture = np.broadcast_to(light, (SIZE, SIZE, 3))
    if r.random() < 0.3:
        picture = np.broadcast_to(picture.mean(-1, keepdims=True), picture.shape)
    fall = turned(r)[0] / SIZE
    picture = picture * (1 + r.uniform(0, 0.5) * fall)[..., None]
    contrast = r.choice([1.0, r.uniform(0.2, 1), r.uniform(1, 1.8)])
    picture = picture.mean() + contrast * (picture - picture.mean()) + r.choice([0.0, r.uniform(-0.25, 0.25)])
    blur = r.choice([0.0, 0.0, log_uniform(r, 0.4, 3)])
    if blur:
        picture = ndimage.gaussian_filter(picture, (blur, blur, 0))
    picture = picture + log_uniform(r, 0.001, 0.03) * r.standard_normal(picture.shape)
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)


def pictures(count: int = COUNT) -> Iterator[Array]:
    """u8 pictures [SIZE, SIZE, 3]."""
    for number in range(count):
        r = np.random.default_rng([11, number])
        yield camera(r, FAMILIES[number % len(FAMILIES)](r))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures()):
        name = FAMILIES[number % len(FAMILIES)].__name__
        (folder / f"{number:03d}-{name}.ppm").write_bytes(b"P6 %d %d 255\n" % (SIZE, SIZE) + picture.tobytes())
