"""Random training scenes: mosaics of warped plots, pasted crowns, and changes of colour, light and sharpness.

Everything takes a NumPy generator, so that a seed fixes the whole stream of scenes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from dataset import Plot
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Strength:
    """How far scenes go from the plots they are made of.

    Attributes:
        scales: Smallest and largest output pixels per source pixel.
        layouts: Chances of one plot, two side by side, two stacked, and four.
        colour: Factor of all changes of colour.
        pasting: Chance that crowns are pasted.
    """

    scales: tuple[float, float]
    layouts: tuple[float, float, float, float]
    colour: float
    pasting: float


STRONG = Strength((0.58, 1.75), (0.4, 0.1, 0.1, 0.4), 1.0, 0.4)
CALM = Strength((0.8, 1.3), (0.7, 0.1, 0.1, 0.1), 0.6, 0.2)
"""For the end of a training stage, so that the last steps see scenes close to real images."""

KEPT_FRACTION = 0.35
"""A cut box with less of its area left is neither tree nor background."""
LOST_FRACTION = 0.06
"""A cut box with less of its area left is background."""
SMALLEST_SIDE = 7.0
"""Pixels; smaller boxes are ignored."""

LUMA = torch.tensor([0.299, 0.587, 0.114])


@dataclass
class Scene:
    """A training image.

    Attributes:
        image: float32, (3, H, W), 0 to 1.
        boxes: float32, (n, 4), corner boxes in pixels.
        ignore: bool, (H, W), places left out of the score loss.
    """

    image: Tensor
    boxes: np.ndarray
    ignore: np.ndarray


def rotate_boxes(boxes: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Map boxes by the bounding box of their inscribed ellipse, since crowns are round and box corners are empty.

    Args:
        boxes: (n, 4), corner boxes in pixels.
        matrix: (2, 2), the linear part of the map.
        offset: (2,), the translation in pixels.

    Returns:
        float32, (n, 4), corner boxes.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 @ matrix.T + offset
    half = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (matrix.T**2))
    return np.concatenate((middle - half, middle + half), 1).astype(np.float32)


def clip_boxes(boxes: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut boxes at the image border.

    Args:
        boxes: (n, 4), corner boxes in pixels.
        width: Image width in pixels.
        height: Image height in pixels.

    Returns:
        The boxes to learn, and the cut boxes to ignore; boxes (almost) outside are in neither.
    """
    cut = boxes.clip(0, np.array([width, height, width, height], dtype=np.float32))
    sides = cut[:, 2:] - cut[:, :2]
    fraction = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1).clip(1e-6)
    whole_enough = (fraction >= KEPT_FRACTION) & (sides.min(1) >= SMALLEST_SIDE)
    return cut[whole_enough], cut[~whole_enough & (fraction > LOST_FRACTION)]


def random_linear(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Draw a rotation with reflection, half of the time by a multiple of 90 degrees, times a scale.

    Args:
        rng: Random generator.
        scale: Output pixels per source pixel.

    Returns:
        (2, 2), source to output.
    """
    angle = rng.integers(4) * math.pi / 2 if rng.random() < 0.5 else rng.uniform(0, 2 * math.pi)
    cosine, sine = round(math.cos(angle), 12), round(math.sin(angle), 12)
    mirror = np.diag([1.0, -1.0 if rng.random() < 0.5 else 1.0])
    return scale * np.array([[cosine, -sine], [sine, cosine]]) @ mirror


def warp_plot(plot: Plot, matrix: np.ndarray, focus: np.ndarray, width: int, height: int) -> Scene:
    """Resample a plot so that a source point comes to lie in the middle of the output.

    Args:
        plot: The source.
        matrix: (2, 2), source to output, without translation.
        focus: (2,), x and y in source pixels.
        width: Output width in pixels.
        height: Output height in pixels.

    Returns:
        The scene; outside the plot the image is mirrored and ignored.
    """
    inverse = np.linalg.inv(matrix)
    xs, ys = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    source = np.stack((xs, ys), -1) @ inverse.T + focus
    size = np.array(plot.ignore.shape[::-1], dtype=float)
    grid = torch.from_numpy((source / size * 2 - 1).astype(np.float32))[None]
    pixels = torch.from_numpy(plot.image).float()[None] / 255
    image = functional.grid_sample(pixels, grid, "bilinear", "reflection", align_corners=False)[0]
    column, row = (np.floor(source[..., axis]).astype(int).clip(0, int(size[axis]) - 1) for axis in (0, 1))
    outside = ((source < 0) | (source >= size)).any(-1)
    ignore = outside | plot.ignore[row, column]
    offset = np.array([width, height]) / 2 - matrix @ focus
    boxes, ignored = clip_boxes(rotate_boxes(plot.boxes, matrix, offset), width, height)
    centres = (boxes[:, :2] + boxes[:, 2:]).astype(int) // 2
    seen = ~outside[centres[:, 1].clip(0, height - 1), centres[:, 0].clip(0, width - 1)]
    mark_ignored(ignore, ignored)
    return Scene(image, boxes[seen], ignore)


def mark_ignored(ignore: np.ndarray, boxes: np.ndarray) -> None:
    """Set the mask inside boxes.

    Args:
        ignore: bool, (H, W), changed in place.
        boxes: (n, 4), corner boxes in pixels.
    """
    for xmin, ymin, xmax, ymax in boxes.round().astype(int):
        ignore[ymin:ymax, xmin:xmax] = True


def split_canvas(
    rng: np.random.Generator, size: int, layouts: tuple[float, float, float, float]
) -> list[tuple[int, int, int, int]]:
    """Divide a square canvas into one, two or four rectangles.

    Args:
        rng: Random generator.
        size: Canvas side in pixels.
        layouts: Chances of one rectangle, two side by side, two stacked, and four.

    Returns:
        xmin, ymin, xmax, ymax of every rectangle, in pixels.
    """
    x, y = (int(value) for value in rng.uniform(0.35, 0.65, 2) * size)
    kind = rng.choice(4, p=layouts)
    columns = [(0, x), (x, size)] if kind in (1, 3) else [(0, size)]
    rows = [(0, y), (y, size)] if kind in (2, 3) else [(0, size)]
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def random_part(plot: Plot, rng: np.random.Generator, width: int, height: int, scales: tuple[float, float]) -> Scene:
    """Warp a random part of a plot.

    Args:
        plot: The source.
        rng: Random generator.
        width: Output width in pixels.
        height: Output height in pixels.
        scales: Smallest and largest output pixels per source pixel.

    Returns:
        The scene of that size.
    """
    source = np.array(plot.ignore.shape[::-1], dtype=float)
    low = max(scales[0], max(width, height) / source.min() * 0.95)
    scale = math.exp(rng.uniform(math.log(low), math.log(scales[1])))
    matrix = random_linear(rng, scale)
    reach = np.minimum(np.abs(np.linalg.inv(matrix)) @ np.array([width, height]) / 2, source / 2)
    return warp_plot(plot, matrix, rng.uniform(reach, source - reach), width, height)


def mosaic(plots: list[Plot], chances: np.ndarray, rng: np.random.Generator, size: int, strength: Strength) -> Scene:
    """Compose a square scene of parts of one to four plots.

    Args:
        plots: Sources.
        chances: (len(plots),), sums to 1.
        rng: Random generator.
        size: Side in pixels.
        strength: Scales and layouts.

    Returns:
        The scene.
    """
    image, ignore = torch.empty(3, size, size), np.zeros((size, size), dtype=bool)
    boxes = [np.zeros((0, 4), dtype=np.float32)]
    for left, top, right, bottom in split_canvas(rng, size, strength.layouts):
        plot = plots[rng.choice(len(plots), p=chances)]
        part = random_part(plot, rng, right - left, bottom - top, strength.scales)
        image[:, top:bottom, left:right] = part.image
        ignore[top:bottom, left:right] = part.ignore
        boxes.append(part.boxes + np.array([left, top, left, top], dtype=np.float32))
    return Scene(image, np.concatenate(boxes), ignore)


def overlap_fraction(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over the smaller area.

    Args:
        box: (4,), corner box.
        others: (n, 4), corner boxes.

    Returns:
        (n,).
    """
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    return sides.clip(0).prod(1) / np.minimum(areas, (box[2:] - box[:2]).prod()).clip(1e-6)


def collect_crowns(plots: list[Plot]) -> list[Tensor]:
    """Cut out the crowns that stand free of other boxes and of the border.

    Args:
        plots: Sources.

    Returns:
        Images of one crown each, float32, (3, h, w), 0 to 1.
    """
    crowns = []
    for plot in plots:
        height, width = plot.ignore.shape
        for index, box in enumerate(plot.boxes):
            others = np.delete(plot.boxes, index, 0)
            inside = (box[:2] >= 2).all() and box[2] <= width - 2 and box[3] <= height - 2
            if inside and (box[2:] - box[:2]).min() >= 14 and overlap_fraction(box, others).max(initial=0.0) < 0.12:
                xmin, ymin, xmax, ymax = box.round().astype(int)
                crowns.append(torch.from_numpy(plot.image[:, ymin:ymax, xmin:xmax] / np.float32(255)))
    return crowns


def soft_ellipse(height: int, width: int) -> Tensor:
    """Return a mask that is 1 in the inscribed ellipse and fades out at its edge.

    Args:
        height: Rows.
        width: Columns.

    Returns:
        float32, (height, width), 0 to 1.
    """
    y = ((torch.arange(height) + 0.5) / height * 2 - 1)[:, None]
    x = ((torch.arange(width) + 0.5) / width * 2 - 1)[None]
    return ((1.06 - (x**2 + y**2).sqrt()) / 0.12).clamp(0, 1)


def paste_crowns(scene: Scene, crowns: list[Tensor], rng: np.random.Generator, tries: int) -> None:
    """Paste turned and resized crowns where no tree stands.

    Args:
        scene: Changed in place.
        crowns: What to choose from, float32, (3, h, w), 0 to 1 each.
        rng: Random generator.
        tries: Number of attempts; an attempt at an occupied place is given up.
    """
    size = scene.ignore.shape[0]
    for _ in range(tries):
        image = crowns[rng.integers(len(crowns))]
        image = torch.rot90(image, int(rng.integers(4)), (1, 2))
        factor = math.exp(rng.uniform(math.log(0.7), math.log(1.4)))
        height, width = (max(10, round(side * factor)) for side in image.shape[1:])
        left, top = (int(rng.integers(0, max(1, size - side))) for side in (width, height))
        box = np.array([left, top, left + width, top + height], dtype=np.float32)
        free = overlap_fraction(box, scene.boxes).max(initial=0.0) < 0.15 and max(height, width) < size / 2
        if not free or scene.ignore[top : top + height, left : left + width].mean() > 0.2:
            continue
        patch = functional.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
        alpha = soft_ellipse(height, width)
        place = scene.image[:, top : top + height, left : left + width]
        place += alpha * (patch * float(rng.uniform(0.85, 1.15)) - place)
        scene.boxes = np.concatenate((scene.boxes, box[None]))


def turn_hue(image: Tensor, angle: float) -> Tensor:
    """Rotate colours about the grey axis.

    Args:
        image: (3, H, W).
        angle: Radians.

    Returns:
        (3, H, W).
    """
    cosine, sine = math.cos(angle), math.sin(angle) / math.sqrt(3)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    matrix = cosine * torch.eye(3) + (1 - cosine) / 3 + sine * across
    return torch.einsum("ij,jhw->ihw", matrix, image)


def jitter_colour(image: Tensor, rng: np.random.Generator, amount: float) -> Tensor:
    """Change gain per band, haze, hue, saturation, contrast and gamma.

    Args:
        image: (3, H, W), 0 to 1.
        rng: Random generator.
        amount: Factor of all changes.

    Returns:
        (3, H, W), 0 to 1.
    """
    gain = np.exp(amount * (rng.normal(0, 0.1, (3, 1, 1)) + rng.normal(0, 0.15)))
    image = image * torch.from_numpy(gain.astype(np.float32))
    if rng.random() < 0.25 * amount:
        haze = torch.from_numpy(rng.uniform(0.2, 0.8, (3, 1, 1)).astype(np.float32))
        image = torch.lerp(image, haze.expand_as(image), float(rng.uniform(0.1, 0.45)))
    image = turn_hue(image, amount * float(rng.normal(0, 0.15)))
    grey = torch.einsum("c,chw->hw", LUMA, image)[None]
    saturation = 0.0 if rng.random() < 0.04 * amount else 1 + amount * float(rng.uniform(-0.55, 0.5))
    image = grey + saturation * (image - grey)
    middle = float(grey.mean())
    image = middle + math.exp(amount * rng.uniform(-0.4, 0.4)) * (image - middle)
    return image.clamp(0.001, 1) ** math.exp(amount * rng.normal(0, 0.25))


def cast_shadow(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Darken one side of a soft random line.

    Args:
        image: (3, H, W), 0 to 1.
        rng: Random generator.

    Returns:
        (3, H, W).
    """
    height, width = image.shape[1:]
    angle, softness = rng.uniform(0, 2 * math.pi), float(rng.uniform(2, 40))
    y, x = torch.arange(height)[:, None] - height / 2, torch.arange(width)[None] - width / 2
    distance = x * math.cos(angle) + y * math.sin(angle) + float(rng.uniform(-0.4, 0.4)) * width
    return image * (1 - float(rng.uniform(0.2, 0.6)) * torch.sigmoid(distance / softness))


def blur(image: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian kernel.

    Args:
        image: (3, H, W).
        sigma: Standard deviation in pixels.

    Returns:
        (3, H, W).
    """
    reach = max(1, math.ceil(2 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = functional.pad(image[None], (reach,) * 4, mode="replicate")
    across = functional.conv2d(padded, kernel[:, :, None], groups=3)
    return functional.conv2d(across, kernel[..., None], groups=3)[0]


def jitter_sharpness(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur or sharpen now and then, and add noise now and then.

    Args:
        image: (3, H, W), 0 to 1.
        rng: Random generator.

    Returns:
        (3, H, W), not clipped.
    """
    draw = rng.random()
    if draw < 0.35:
        soft = blur(image, float(rng.uniform(0.5, 1.6)))
        image = soft if draw < 0.2 else image + float(rng.uniform(0.3, 1.2)) * (image - soft)
    if rng.random() < 0.25:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.04))
        image = image + torch.from_numpy(noise)
    return image


class SceneMaker:
    """Endless supply of training scenes."""

    def __init__(self, plots: list[Plot], size: int) -> None:
        """Prepare the sources.

        Args:
            plots: Training plots.
            size: Scene side in pixels.
        """
        self.plots, self.size = plots, size
        self.crowns = collect_crowns(plots)
        weights = np.sqrt([len(plot.boxes) + 20.0 for plot in plots])
        self.chances = weights / weights.sum()

    def make(self, rng: np.random.Generator, strength: Strength = STRONG) -> Scene:
        """Draw a scene.

        Args:
            rng: Random generator.
            strength: How far the scene goes from the plots.

        Returns:
            The scene, its image clipped to 0 to 1.
        """
        scene = mosaic(self.plots, self.chances, rng, self.size, strength)
        if self.crowns and rng.random() < strength.pasting:
            paste_crowns(scene, self.crowns, rng, int(rng.integers(2, 14)))
        if rng.random() < 0.85:
            scene.image = jitter_colour(scene.image, rng, strength.colour)
        if rng.random() < 0.15 * strength.colour:
            scene.image = cast_shadow(scene.image, rng)
        scene.image = jitter_sharpness(scene.image, rng).clamp(0, 1)
        return scene
