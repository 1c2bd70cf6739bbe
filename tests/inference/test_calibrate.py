from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kestrel.inference import calibrate
from kestrel.inference.calibrate import Calibration, Response, calibrated_traits, measure
from kestrel.inference.detectors.protocol import Traits
from kestrel.inference.jobs import cache_folder

TRAITS = Traits(stride=32, receptive_field_radius=None, is_dense=True)


def grid_of(image: NDArray[np.uint8], stride: int) -> NDArray[np.float64]:
    n = image.shape[-1] // stride
    y, x = np.mgrid[0:n, 0:n]
    return (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) * stride


class WindowMean:
    """A network whose output at each anchor is the weighted mean of the pixels within `radius` of it."""

    def __init__(self, stride: int, radius: int, phase: int = 1) -> None:
        self.stride, self.radius, self.phase = stride, radius, phase
        self.n_calls = 0

    def __call__(self, image: NDArray[np.uint8]) -> Response:
        self.n_calls += 1
        anchors = grid_of(image, self.stride)
        padded = np.pad(image[0].astype(float), self.radius)
        sums = np.pad(padded, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        x, y = anchors.astype(int).T
        side = 2 * self.radius
        total = sums[y + side, x + side] - sums[y, x + side] - sums[y + side, x] + sums[y, x]
        # A network with pooling of a coarser step gives each place of that step weights of its own.
        weight = 1 + (x // self.stride % self.phase) + (y // self.stride % self.phase)
        return Response((total * weight)[:, None], anchors, self.stride)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("radius", [20, 44, 90, 150])
def test_the_radius_is_found_to_within_a_step_of_the_output(stride: int, radius: int) -> None:
    result = measure(WindowMean(stride, radius), 1)
    assert stride == result.stride
    assert result.receptive_field_radius is not None
    assert radius - stride <= result.receptive_field_radius <= radius


@pytest.mark.parametrize(("stride", "phase", "expected"), [(8, 1, 8), (8, 2, 16), (8, 4, 32), (16, 2, 32)])
def test_the_stride_is_the_step_at_which_the_output_moves_with_the_image(
    stride: int, phase: int, expected: int
) -> None:
    assert expected == measure(WindowMean(stride, 24, phase), 1).stride


@pytest.mark.parametrize(("stride", "expected"), [(4, 32), (16, 32), (64, 64)])
def test_a_network_that_sees_everything_has_no_radius_and_a_stride_to_be_on_the_safe_side(
    stride: int, expected: int
) -> None:
    def respond(image: NDArray[np.uint8]) -> Response:
        anchors = grid_of(image, stride)
        return Response(np.full((len(anchors), 1), image.mean()), anchors, stride)

    assert Calibration(expected, None) == measure(respond, 3)


def test_a_radius_that_a_small_image_does_not_hold_is_measured_on_a_large_one() -> None:
    result = measure(WindowMean(16, 300), 1)
    assert result.receptive_field_radius is not None
    assert 284 <= result.receptive_field_radius <= 300


def test_a_network_of_one_size_is_measured_at_that_size() -> None:
    sizes: set[int] = set()
    network = WindowMean(8, 40)

    def respond(image: NDArray[np.uint8]) -> Response:
        sizes.add(image.shape[-1])
        return network(image)

    result = measure(respond, 1, 320)
    assert {320} == sizes
    assert (8, True) == (result.stride, 32 <= (result.receptive_field_radius or 0) <= 40)


def test_a_network_is_measured_once_and_remembered_by_its_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path))
    first, again, other = WindowMean(8, 24), WindowMean(8, 24), WindowMean(8, 24)
    measured = calibrated_traits(TRAITS, first, 1, "a" * 64, None)
    remembered = calibrated_traits(TRAITS, again, 1, "a" * 64, None)
    assert measured == remembered
    assert (8, True) == (measured.stride, measured.is_exact)
    assert first.n_calls > 0 == again.n_calls
    calibrated_traits(TRAITS, other, 1, "b" * 64, None)
    assert other.n_calls > 0


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"stride": "x", "receptive_field_radius": 3}'])
def test_a_damaged_memory_is_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path))
    store = cache_folder() / "calibration" / f"c-{calibrate._VERSION}.json"
    store.parent.mkdir(parents=True)
    store.write_text(content, encoding="utf-8")
    assert 8 == calibrated_traits(TRAITS, WindowMean(8, 24), 1, "c", None).stride
    assert "stride" in store.read_text(encoding="utf-8")
