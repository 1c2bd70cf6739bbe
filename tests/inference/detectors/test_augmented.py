from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kestrel.inference.detections import Detections, make_detections, no_detections
from kestrel.inference.detectors.augmented import (
    MAP_ORIENTATIONS,
    PICTURE_ORIENTATIONS,
    Augmentation,
    AugmentedDetector,
    Orientation,
    fuse,
    merged_outline,
    parse_scales,
)
from kestrel.inference.detectors.protocol import Traits
from kestrel.inference.errors import JobError

SIZE = 32
rectangles = st.tuples(st.integers(0, 24), st.integers(0, 24), st.integers(1, 8), st.integers(1, 8))


@dataclass
class BrightRectangle:
    """Finds the bounding box of what is bright; scores it by its width, so that a turned one scores otherwise."""

    is_dense: bool = False
    score: float = 0.8

    @property
    def traits(self) -> Traits:
        """Describe it."""
        return Traits(8, 40, self.is_dense)

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find the rectangles."""
        found = []
        for image in batch:
            rows, columns = np.nonzero(image[0])
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            copies = 3 if self.is_dense else 1
            found.append(make_detections(np.array([box] * copies), np.full(copies, self.score), np.zeros(copies)))
        return found


def picture(rectangle: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    x, y, width, height = rectangle
    batch = np.zeros((1, 1, SIZE, SIZE), np.uint8)
    batch[0, 0, y : y + height, x : x + width] = 255
    return batch


@pytest.mark.parametrize("orientation", MAP_ORIENTATIONS)
@given(rectangle=rectangles)
def test_a_box_found_in_a_turned_picture_comes_back_to_its_place(
    orientation: Orientation, rectangle: tuple[int, int, int, int]
) -> None:
    x, y, width, height = rectangle
    (found,) = BrightRectangle().predict(orientation.apply(picture(rectangle)))
    assert [[x, y, x + width, y + height]] == orientation.undo(found, SIZE).boxes.tolist()


def test_the_orientations_of_a_map_are_all_different() -> None:
    batch = np.arange(9).reshape(1, 1, 3, 3)
    assert 8 == len({tuple(view.apply(batch).ravel().tolist()) for view in MAP_ORIENTATIONS})


@pytest.mark.parametrize("is_dense", [True, False])
@given(rectangle=rectangles)
def test_what_all_views_agree_on_is_given_once_with_its_score(
    is_dense: bool, rectangle: tuple[int, int, int, int]
) -> None:
    x, y, width, height = rectangle
    detector = AugmentedDetector(BrightRectangle(is_dense), Augmentation(MAP_ORIENTATIONS, 0.5, 0.5))
    (found,) = detector.predict(picture(rectangle))
    assert found.boxes.tolist() == [pytest.approx([x, y, x + width, y + height])]
    assert [0.8] == pytest.approx(found.scores.tolist())


def test_an_augmented_network_is_neither_dense_nor_exact() -> None:
    traits = AugmentedDetector(BrightRectangle(is_dense=True), Augmentation(PICTURE_ORIENTATIONS, 0.5, 0.5)).traits
    assert (False, False, 8) == (traits.is_dense, traits.is_exact, traits.stride)


def test_what_is_no_number_passes_through_for_the_run_to_count() -> None:
    detector = AugmentedDetector(BrightRectangle(score=float("nan")), Augmentation(PICTURE_ORIENTATIONS, 0.5, 0.5))
    (found,) = detector.predict(picture((4, 4, 5, 5)))
    assert 2 == len(found)
    assert np.isnan(found.scores).all()


def how(max_overlap: float, threshold: float, **members: Any) -> Augmentation:
    return Augmentation(MAP_ORIENTATIONS, threshold, max_overlap, **members)


def one(box: list[float], score: float, label: int = 0) -> Detections:
    return make_detections(np.array([box]), np.array([score]), np.array([label]))


def test_a_fused_box_is_the_mean_weighted_by_the_scores() -> None:
    fused = fuse([one([0, 0, 10, 10], 0.9), one([2, 0, 12, 10], 0.3)], how(0.5, 0.1))
    assert fused.boxes.tolist() == [pytest.approx([0.5, 0, 10.5, 10])]
    assert [0.6] == pytest.approx(fused.scores.tolist())


def test_what_one_view_of_two_saw_has_half_its_score() -> None:
    views = [one([0, 0, 10, 10], 0.9), no_detections()]
    assert [0.45] == pytest.approx(fuse(views, how(0.5, 0.4)).scores.tolist())
    assert 0 == len(fuse(views, how(0.5, 0.46)))


def test_boxes_of_different_classes_and_boxes_apart_are_not_fused() -> None:
    assert 2 == len(fuse([one([0, 0, 10, 10], 0.9, 0), one([0, 0, 10, 10], 0.8, 1)], how(0.5, 0.1)))
    assert 2 == len(fuse([one([0, 0, 10, 10], 0.9), one([8, 0, 18, 10], 0.8)], how(0.5, 0.1)))


def test_nothing_fuses_to_nothing() -> None:
    assert 0 == len(fuse([no_detections(), no_detections()], how(0.5, 0.1)))


@given(st.permutations(range(4)))
def test_the_order_of_the_views_does_not_matter(order: list[int]) -> None:
    views = [one([0, 0, 10, 10], 0.9), one([1, 0, 11, 10], 0.8), one([3, 1, 13, 11], 0.7), one([20, 0, 30, 10], 0.6)]
    expected, actual = fuse(views, how(0.4, 0.1)), fuse([views[i] for i in order], how(0.4, 0.1))
    assert expected.boxes.tolist() == actual.boxes.tolist()
    assert expected.scores.tolist() == actual.scores.tolist()


@dataclass
class BrightOutline:
    """Finds what is bright, with its outline; `seen` keeps the sides of what it was shown."""

    seen: list[int]

    @property
    def traits(self) -> Traits:
        """Describe it."""
        return Traits(8, None, is_dense=False, network_size=SIZE)

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find the rectangles."""
        self.seen.append(batch.shape[-1])
        found = []
        for image in batch:
            rows, columns = np.nonzero(image[0] > 127)
            if len(rows) == 0:
                found.append(no_detections())
                continue
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            found.append(make_detections(np.array([box]), np.array([0.8]), np.zeros(1), shapes=[shapely.box(*box)]))
        return found


@pytest.mark.parametrize("scales", ["0.5", "2", "0.5,1,2", "1.5"])
def test_views_of_other_sizes_come_back_to_the_tiles_own_pixels(scales: str) -> None:
    detector = BrightOutline([])
    augmented = AugmentedDetector(detector, how(0.3, 0.5, scales=parse_scales(scales)))
    (found,) = augmented.predict(picture((10, 13, 4, 4)))
    assert found.boxes.tolist() == [pytest.approx([10, 13, 14, 17], abs=1.0)]
    assert found.shapes is not None
    assert found.boxes.tolist() == [pytest.approx(list(found.shapes[0].bounds))]
    assert {SIZE} == set(detector.seen)


def test_an_object_that_a_window_of_an_enlarged_view_cuts_is_found_once_and_whole() -> None:
    augmented = AugmentedDetector(BrightOutline([]), how(0.3, 0.5, scales=(2.0,)))
    (found,) = augmented.predict(picture((14, 2, 5, 5)))
    assert found.boxes.tolist() == [pytest.approx([14, 2, 19, 7], abs=1.0)]


@pytest.mark.parametrize("text", ["", "a", "0", "1;2", "100", "nan", "inf,1"])
def test_scales_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(JobError, match="tta_scales"):
        parse_scales(text)


@pytest.mark.parametrize(("policy", "area"), [("max", 140), ("mean", 100), ("min", 60)])
def test_an_outline_seen_three_times_is_merged_as_the_policy_says(policy: str, area: float) -> None:
    outlines = np.array([shapely.box(0, 0, 10, 10), shapely.box(2, 0, 12, 10), shapely.box(-2, 0, 8, 10)])
    assert area == pytest.approx(merged_outline(outlines, policy).area)


def test_fused_outlines_take_their_box_from_the_outline() -> None:
    views = [
        make_detections(np.array([box]), np.array([0.8]), np.zeros(1), shapes=[shapely.box(*box)])
        for box in ([0, 0, 10, 10], [2, 0, 12, 10])
    ]
    fused = fuse(views, how(0.3, 0.1, merge_policy="min"))
    assert [[2, 0, 10, 10]] == fused.boxes.tolist()


def test_a_hole_that_most_views_see_stays_a_hole() -> None:
    ring = shapely.box(0, 0, 10, 10).difference(shapely.box(4, 4, 6, 6))
    merged = merged_outline(np.array([ring, ring, shapely.box(0, 0, 10, 10)]), "mean")
    assert (96, 1) == (merged.area, len(merged.interiors))
