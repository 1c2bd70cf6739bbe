"""The promise about seams: tiles give what one pass over the whole raster gives, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from kestrel.inference.events import Canceled, Progress
from kestrel.inference.job import DetectionJob
from kestrel.inference.journal import Journal
from kestrel.inference.merge import join
from kestrel.inference.results import merged
from kestrel.inference.run import OpenModel, fingerprint, prepare
from kestrel.inference.search import search
from kestrel.inference.tiling import Tile
from kestrel.tests.fixtures.onnx_graphs import boxes_network, cell_network, random_network
from kestrel.tests.fixtures.rasters import items, noise, write_raster
from kestrel.tests.fixtures.runs import CancelAfter, Result, never, run, write_definition

pytestmark = pytest.mark.slow

SIDE = 316  # no multiple of the stride
WHOLE = 320
TILED = {"tile_size": 128, "padding": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seams")
    random_network(folder / "model.onnx")
    write_definition(folder, "model.onnx", 2, arguments={"threshold": 0.6, "nms_overlap": 0.4})
    write_raster(folder / "raster.tif", noise(3, SIDE, SIDE, seed=1), tiled=True, blockxsize=64, blockysize=64)
    return folder


@pytest.fixture(scope="module")
def detect_with(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a job on the raster with these arguments and members."""

    def call(arguments: dict[str, Any], **members: Any) -> Result:
        return run(tmp_path_factory.mktemp("job"), folder / "raster.tif", folder / "model.json",
                   arguments=arguments, **members)  # fmt: skip

    return call


@pytest.fixture(scope="module")
def whole(detect_with: Any) -> Result:
    """One pass over the whole raster."""
    return detect_with({"tile_size": WHOLE})


@pytest.fixture(scope="module")
def tiled(detect_with: Any) -> Result:
    return detect_with(TILED)


def differences(expected: Result, actual: Result, tolerance: float) -> tuple[int, int, int]:
    """Count missing, extra and moved objects (by more than `tolerance` map units)."""
    first, second = dict(by_place(expected)), dict(by_place(actual))
    common = first.keys() & second.keys()
    n_moved = sum(bool(np.abs(first[key] - second[key]).max() > tolerance) for key in common)
    return len(first) - len(common), len(second) - len(common), n_moved


def by_place(result: Result) -> Iterator[tuple[tuple[int, int, int], np.ndarray]]:
    """Key objects by class and the cell of 8 pixels (4 map units) that holds their centre."""
    for bounds, label in zip(result.bounds, result.labels):
        x, y = (bounds[:2] + bounds[2:]) / 2
        yield (label, int(x // 2), int(y // 2)), bounds


def test_one_pass_finds_enough_to_compare(whole: Result) -> None:
    assert 1 == whole.summary["tiles"]
    assert {0, 1} == set(whole.labels)
    assert 100 < len(whole) < 1600


def test_tiles_equal_one_pass_over_the_whole_raster(whole: Result, tiled: Result) -> None:
    assert 16 == tiled.summary["tiles"]
    assert (True, 8) == (tiled.summary["is_exact"], tiled.summary["stride"])
    assert len(whole) == len(tiled)
    assert np.allclose(np.sort(whole.bounds, axis=0), np.sort(tiled.bounds, axis=0), rtol=0, atol=0.005)
    order = [np.lexsort((*result.bounds.T.round(2), result.labels)) for result in (whole, tiled)]
    assert np.allclose(whole.bounds[order[0]], tiled.bounds[order[1]], rtol=0, atol=0.005)
    assert np.allclose(whole.scores[order[0]], tiled.scores[order[1]], rtol=0, atol=1e-4)


def test_the_measured_radius_is_large_enough_and_not_wasteful(whole: Result, tiled: Result) -> None:
    assert 16 <= tiled.summary["receptive_field_radius"] <= 31


def test_the_default_padding_is_exact(whole: Result, detect_with: Any) -> None:
    result = detect_with({"tile_size": 160})
    assert (True, 24) == (result.summary["is_exact"], result.summary["padding"])
    assert (0, 0, 0) == differences(whole, result, 0.005)


def test_without_padding_the_result_differs_and_says_so(whole: Result, detect_with: Any) -> None:
    result = detect_with({"tile_size": 64, "padding": 0})
    assert not result.summary["is_exact"]
    assert (0, 0, 0) != differences(whole, result, 0.005)
    assert any("may differ" in message.text for message in result.messages("info"))


@pytest.mark.parametrize(("width", "height"), [(300, 90), (90, 300), (60, 50)])
def test_a_raster_shorter_than_a_tile_equals_one_pass_too(
    folder: Path, tmp_path: Path, width: int, height: int
) -> None:
    raster = write_raster(tmp_path / "strip.tif", noise(3, height, width, seed=2))
    one, many = (
        run(tmp_path / name, raster, folder / "model.json", arguments=arguments)
        for name, arguments in (("one", {"tile_size": 304}), ("many", {"tile_size": 128, "padding": 32}))
    )
    assert (1, True, True) == (one.summary["tiles"], one.summary["is_exact"], many.summary["is_exact"])
    assert (max(width, height) > 128) == (many.summary["tiles"] > 1)
    assert len(one) > 10
    assert (0, 0, 0) == differences(one, many, 0.005)


def test_an_extent_gives_the_objects_of_the_whole_raster_whose_candidates_lie_in_it(detect_with: Any) -> None:
    # 61 to 237 pixels from the left, 43 to 203 from the top
    extent = (500030.5, 5399898.5, 500118.5, 5399978.5)
    one, many = detect_with({"tile_size": WHOLE}, extent=extent), detect_with(TILED, extent=extent)
    assert 1 == one.summary["tiles"] < many.summary["tiles"]
    assert 20 < len(one)
    assert (0, 0, 0) == differences(one, many, 0.005)


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_gives_the_same_objects_whatever_the_tiles(detect_with: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    x, y = random.uniform(0, SIDE / 2, (2, 4))
    places = [shapely.Point(500000 + a, 5400000 - b).buffer(size) for a, b, size in zip(x, y, (25, 10, 5, 3))]
    mask = shapely.unary_union(places)
    small = {"tile_size": 64, "padding": 24}
    one, many = (detect_with(arguments, mask_wkb=mask.wkb_hex) for arguments in ({"tile_size": WHOLE}, small))
    assert many.summary["tiles_by_state"]["outside"] > 0
    assert 20 < len(one)
    assert (0, 0, 0) == differences(one, many, 0.005)


def test_batch_size_and_threads_do_not_change_a_bit(detect_with: Any, tiled: Result) -> None:
    for batch_size, threads in ((8, "1"), (1, "4"), (3, "3")):
        result = detect_with({**TILED, "batch_size": batch_size}, parallel_processing_factor=threads)
        assert tiled.content() == result.content()


def test_the_order_of_tiles_does_not_change_a_bit(folder: Path, tmp_path: Path, tiled: Result) -> None:
    class Reversed:
        """A grid that hands out its tiles from the last to the first."""

        def __init__(self, grid: Any) -> None:
            self._grid = grid

        def __getattr__(self, name: str) -> Any:
            return getattr(self._grid, name)

        def __len__(self) -> int:
            return len(self._grid)

        def __getitem__(self, number: int) -> Tile:
            return self._grid[number]

        def __iter__(self) -> Iterator[Tile]:
            return (self._grid[number] for number in reversed(range(len(self._grid))))

    job = DetectionJob(
        "test", items(folder / "raster.tif"), str(folder / "model.json"), arguments=TILED, processor="cpu"
    )
    prepared = prepare(job, OpenModel(job, tmp_path), lambda event: None)
    backwards = replace(prepared, plan=replace(prepared.plan, grid=Reversed(prepared.plan.grid)))
    with Journal.open(tmp_path, fingerprint(prepared), len(prepared.plan.grid)) as journal:
        search(backwards, journal, lambda event: None, never)
        found = join(list(merged(prepared, journal)))
    prepared.source.close()
    assert tiled.scores.tolist() == found.detections.scores.tolist()
    assert tiled.labels == found.detections.labels.tolist()
    expected = np.concatenate([part.tiles for part in tiled.objects])
    assert expected.tolist() == found.tiles.tolist()


@pytest.mark.parametrize("n_tiles", [1, 7, 12])
def test_an_interrupted_run_goes_on_where_it_ended(folder: Path, tmp_path: Path, tiled: Result, n_tiles: int) -> None:
    stop = CancelAfter(tmp_path, n_tiles)
    with pytest.raises(Canceled):
        run(tmp_path, folder / "raster.tif", folder / "model.json", arguments=TILED, is_cancelled=stop)
    n_done = stop.n_done()
    assert n_tiles <= n_done < tiled.summary["tiles"]
    resumed = run(tmp_path, folder / "raster.tif", folder / "model.json", arguments={**TILED, "batch_size": 5})
    first = next(event for event in resumed.events if isinstance(event, Progress))
    assert n_done == first.done
    assert tiled.content() == resumed.content()
    assert tiled.summary["tiles_by_state"] == resumed.summary["tiles_by_state"]


def test_a_finished_run_hands_out_the_same_again(folder: Path, tmp_path: Path, tiled: Result) -> None:
    for _ in range(2):
        assert tiled.content() == run(tmp_path, folder / "raster.tif", folder / "model.json", arguments=TILED).content()


def discs(n_rows: int, n_columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give an image of bright discs, 40 pixels apart and off the grid by random steps, and their centres."""
    random = np.random.default_rng(seed)
    y, x = (np.mgrid[0:n_rows, 0:n_columns] * 40 + 20).reshape(2, -1) + random.integers(-6, 7, (2, n_rows * n_columns))
    rows, columns = np.mgrid[0 : n_rows * 40, 0 : n_columns * 40] + 0.5
    near = np.min([(rows - cy) ** 2 + (columns - cx) ** 2 for cx, cy in zip(x, y)], axis=0) <= 64
    image = np.where(near, 240, 15).astype(np.uint8)
    return np.stack([image] * 3), np.stack([x, y], axis=1).astype(float)


@pytest.mark.parametrize("arguments", [
    {"tile_size": 128, "padding": 32}, {"tile_size": 96, "padding": 32, "exclude_pad_detections": False}, {},
])  # fmt: skip
def test_a_network_that_suppresses_inside_gives_each_object_once(tmp_path: Path, arguments: dict[str, Any]) -> None:
    pixels, centres = discs(10, 9, seed=2)
    raster = write_raster(tmp_path / "raster.tif", pixels)
    boxes_network(tmp_path / "model.onnx")
    model = write_definition(tmp_path, "model.onnx", 1, arguments={"threshold": 0.3, "nms_overlap": 0.5},
                             detector={"kind": "onnx", "weights": "model.onnx", "label_offset": 1})  # fmt: skip
    result = run(tmp_path / "job", raster, model, arguments=arguments)
    assert not result.summary["is_exact"]
    found = (result.bounds[:, :2] + result.bounds[:, 2:]) / 2
    found = np.stack([(found[:, 0] - 500000) * 2, (5400000 - found[:, 1]) * 2], axis=1)
    distance = np.linalg.norm(found[:, None] - centres[None], axis=2)
    assert list(range(len(centres))) == sorted(distance.argmin(axis=1).tolist())
    assert distance.min(axis=1).max() < 8


def test_objects_are_handed_out_from_top_to_bottom(tmp_path: Path) -> None:
    pixels = np.full((1, 640, 32), 200, np.uint8)
    raster = write_raster(tmp_path / "raster.tif", pixels)
    cell_network(tmp_path / "model.onnx", 1)
    model = write_definition(tmp_path, "model.onnx", 1, input={"bands": [0], "scale": 1 / 255})
    result = run(tmp_path / "job", raster, model, arguments={"tile_size": 64, "padding": 8})
    tops = result.bounds[:, 3]
    assert 320 == len(result)
    assert sorted(tops.tolist(), reverse=True) == tops.tolist()
