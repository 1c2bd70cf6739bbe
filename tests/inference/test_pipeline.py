from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kestrel.inference.detections import Detections
from kestrel.inference.detectors.protocol import Traits
from kestrel.inference.errors import DeviceMemoryError, ModelError, RasterReadError, TileError
from kestrel.inference.events import Canceled
from kestrel.inference.journal import TileState
from kestrel.inference.pipeline import BatchSize, Outcome, Pipeline
from kestrel.inference.preprocess import Preprocess
from kestrel.inference.tiling import Tile, TileGrid, Window
from kestrel.tests.fixtures.fakes import ArraySource, SumDetector
from kestrel.tests.fixtures.rasters import noise

SIZE = 16
PIXELS = noise(1, 4 * SIZE, 5 * SIZE)
GRID = TileGrid(5 * SIZE, 4 * SIZE, Window(0, 0, 5 * SIZE, 4 * SIZE), SIZE, 0, 8)


def pipeline(source: ArraySource, detector: SumDetector, batch_size: int = 1, n_readers: int = 2) -> Pipeline:
    return Pipeline(source, Preprocess(SIZE, SIZE), detector, BatchSize(batch_size), n_readers, detector.n_callers)


def run(parts: Pipeline, wanted: set[int] | None = None) -> list[Outcome]:
    stream = parts.run(GRID, lambda tile: wanted is None or tile.number in wanted, lambda: False)
    return [outcome for outcomes in stream for outcome in outcomes]


def scores(outcomes: list[Outcome]) -> list[float]:
    return [float(outcome.detections.scores[0]) for outcome in outcomes if outcome.detections]


def expected_scores() -> list[float]:
    blocks = PIXELS.reshape(4, SIZE, 5, SIZE).transpose(0, 2, 1, 3).reshape(20, 1, -1)
    return [float(np.float32(block.mean() / 255)) for block in blocks]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_outcomes_come_in_the_order_of_the_tiles_whatever_the_threads_and_batches(
    batch_size: int, n_readers: int, n_callers: int
) -> None:
    outcomes = run(pipeline(ArraySource(PIXELS), SumDetector(n_callers=n_callers), batch_size, n_readers))
    assert list(range(20)) == [outcome.tile.number for outcome in outcomes]
    assert expected_scores() == pytest.approx(scores(outcomes), abs=1e-6)


def test_boxes_come_back_in_raster_pixels() -> None:
    outcomes = run(pipeline(ArraySource(PIXELS), SumDetector()))
    tile = outcomes[7]
    assert tile.detections is not None
    assert [[32.0, 16.0, 36.0, 20.0]] == tile.detections.boxes.tolist()


def test_a_batch_holds_as_many_tiles_as_it_may() -> None:
    detector = SumDetector()
    run(pipeline(ArraySource(PIXELS), detector, batch_size=6))
    assert [6, 6, 6, 2] == detector.batches


def test_unwanted_and_empty_tiles_are_not_run_and_do_not_break_up_batches() -> None:
    valid = np.ones(PIXELS.shape[1:], bool)
    valid[:SIZE, :SIZE] = False
    source, detector = ArraySource(PIXELS, valid), SumDetector()
    outcomes = run(pipeline(source, detector, batch_size=3), wanted={0, 1, 8, 15, 19})
    states = {outcome.tile.number: outcome.state for outcome in outcomes if outcome.state != TileState.outside}
    assert {0: TileState.nodata, **dict.fromkeys((1, 8, 15, 19), TileState.done)} == states
    assert [3, 1] == detector.batches
    assert 5 == len(source.windows)


def test_a_batch_that_is_too_large_is_halved_until_it_fits_and_stays_small() -> None:
    detector = SumDetector(most=3)
    outcomes = run(pipeline(ArraySource(PIXELS), detector, batch_size=16))
    assert expected_scores() == pytest.approx(scores(outcomes), abs=1e-6)
    assert [16, 8, 4] == detector.batches[:3]
    assert {2} == set(detector.batches[3:])


def test_a_memory_that_does_not_hold_one_tile_stops_the_run() -> None:
    with pytest.raises(DeviceMemoryError):
        run(pipeline(ArraySource(PIXELS), SumDetector(most=0), batch_size=4))


def test_a_read_that_failed_is_tried_once_more() -> None:
    outcomes = run(pipeline(ArraySource(PIXELS, hiccups=1), SumDetector()))
    assert {TileState.done} == {outcome.state for outcome in outcomes}


def test_a_tile_that_cannot_be_read_is_set_aside_and_the_others_run() -> None:
    outcomes = run(pipeline(ArraySource(PIXELS, damaged=(Window(20, 20, 2, 2),)), SumDetector(), batch_size=4))
    quarantined = [outcome for outcome in outcomes if outcome.state == TileState.quarantined]
    assert [6] == [outcome.tile.number for outcome in quarantined]
    assert isinstance(quarantined[0].error, RasterReadError)
    assert 19 == len(scores(outcomes))


def test_a_stop_ends_the_run_and_nobody_reads_any_more() -> None:
    source = ArraySource(PIXELS, seconds=0.05)
    is_stopped = threading.Event()
    stream = pipeline(source, SumDetector(), n_readers=4).run(GRID, lambda tile: True, is_stopped.is_set)
    next(stream)
    is_stopped.set()
    with pytest.raises(Canceled):
        next(stream)
    assert 0 == source.n_reading
    assert len(source.windows) < 20


def test_a_stop_does_not_wait_for_a_network_that_hangs() -> None:
    class Hanging(SumDetector):
        def predict(self, batch: np.ndarray) -> list:
            is_free.wait(20)
            return super().predict(batch)

    is_free = threading.Event()
    with pytest.raises(Canceled):
        next(pipeline(ArraySource(PIXELS), Hanging()).run(GRID, lambda tile: True, lambda: True))
    is_free.set()


def test_whether_a_tile_is_wanted_is_asked_in_the_calling_thread_only() -> None:
    askers: set[int] = set()

    def is_wanted(tile: Tile) -> bool:
        askers.add(threading.get_ident())
        return True

    list(pipeline(ArraySource(PIXELS), SumDetector(), n_readers=4).run(GRID, is_wanted, lambda: False))
    assert {threading.get_ident()} == askers


def test_the_queue_between_reading_and_running_is_bounded() -> None:
    source = ArraySource(PIXELS)
    stream = pipeline(source, SumDetector(), batch_size=2, n_readers=1).run(GRID, lambda tile: True, lambda: False)
    next(stream)
    time.sleep(0.2)
    assert len(source.windows) < 20
    assert 18 == sum(len(outcomes) for outcomes in stream)


def test_a_failing_network_stops_the_run_with_its_own_error() -> None:
    class Failing(SumDetector):
        def predict(self, batch: np.ndarray) -> list:
            raise ModelError("The network failed.")

    with pytest.raises(ModelError, match="The network failed"):
        run(pipeline(ArraySource(PIXELS), Failing()))


def test_a_network_that_wants_another_size_gets_resized_tiles() -> None:
    class Sizes(SumDetector):
        def predict(self, batch: np.ndarray) -> list:
            shapes.add(batch.shape[1:])
            return super().predict(batch)

    shapes: set[tuple[int, ...]] = set()
    parts = Pipeline(ArraySource(PIXELS), Preprocess(32, 32), Sizes(), BatchSize(1), 1, 1)
    first = run(parts)[1].detections
    assert {(1, 32, 32)} == shapes
    assert first is not None
    assert [[16.0, 0.0, 18.0, 2.0]] == first.boxes.tolist()


@dataclass
class RawDetector(SumDetector):
    """Wants what the raster holds; fails on tiles whose first pixel is one of `bad`."""

    bad: tuple[int, ...] = ()
    seen: list[NDArray[Any]] = field(default_factory=list)

    @property
    def traits(self) -> Traits:
        """Describe it."""
        return replace(super().traits, wants_raw=True)

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find the objects."""
        self.seen += list(batch)
        if any(image[0, 0, 0] in self.bad for image in batch):
            raise TileError("The program failed.")
        return super().predict(batch)


def test_who_wants_the_raw_raster_gets_its_own_type_and_the_mask_as_last_band() -> None:
    pixels = noise(2, SIZE, SIZE).astype(np.uint16) * 100
    valid = np.ones(pixels.shape[1:], bool)
    valid[:3] = False
    detector = RawDetector()
    grid = TileGrid(SIZE, SIZE, Window(0, 0, SIZE, SIZE), SIZE, 0, 8)
    list(pipeline(ArraySource(pixels, valid), detector).run(grid, lambda tile: True, lambda: False))
    (seen,) = detector.seen
    assert (np.uint16, 3) == (seen.dtype, len(seen))
    assert np.array_equal(pixels, seen[:2])
    assert np.array_equal(valid, seen[2])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_tile_on_which_the_model_fails_is_put_aside_and_no_other(batch_size: int) -> None:
    pixels = np.repeat(np.repeat(np.arange(20).reshape(4, 5), SIZE, 0), SIZE, 1)[None].astype(np.uint8)
    outcomes = run(pipeline(ArraySource(pixels), RawDetector(bad=(7,)), batch_size))
    put_aside = [outcome for outcome in outcomes if outcome.state is TileState.quarantined]
    assert [(7, "tile-failed")] == [(item.tile.number, item.error.code) for item in put_aside if item.error]
    assert 19 == sum(outcome.state is TileState.done for outcome in outcomes)
