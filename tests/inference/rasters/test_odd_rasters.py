"""Each odd raster gives the bright square at its true place on the map, to within half a pixel, or is refused."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine

from kestrel.inference.job import RasterItem
from kestrel.tests.fixtures.odd_rasters import ALL, Odd
from kestrel.tests.fixtures.onnx_graphs import cell_network
from kestrel.tests.fixtures.runs import Result, run, write_definition

pytestmark = pytest.mark.filterwarnings("ignore")

BYTES = {"scale": 1 / 255}
MODELS = {
    "grey": (1, {**BYTES, "bands": [0]}),
    "bytes": (1, {**BYTES, "bands": [0], "data_range": [0, 255]}),
    "unit": (1, {"bands": [0]}),
    "rgb": (3, BYTES),
    "names": (3, {**BYTES, "bands": ["red", "green", "blue"]}),
    "infrared": (3, {**BYTES, "bands": ["nir", "swir1", "red"]}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models by name; each finds bright cells."""
    folder = tmp_path_factory.mktemp("models")
    for n in (1, 3):
        cell_network(folder / f"cells-{n}.onnx", n)
    return {
        name: write_definition(folder, f"cells-{n}.onnx", n, f"{name}.json", input=members, tile={"size": 64})
        for name, (n, members) in MODELS.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the raster; a test may make it read-only."""
    path = tmp_path / "raster"
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ALL)
def test_the_square_is_found_at_its_place_or_the_raster_is_refused(
    name: str, folder: Path, tmp_path: Path, models: dict[str, Path]
) -> None:
    odd = ALL[name](folder)
    try:
        if odd.error is None:
            result = search(odd, tmp_path / "job", models)
            found, wanted = pixel_bounds(result, odd.transform), np.array(odd.squares).reshape(-1, 4)
            assert found.shape == wanted.shape
            assert np.abs(found - wanted[np.lexsort(wanted.T[::-1])]).max(initial=0) <= 0.5
            assert odd.warns in " ".join(message.text for message in result.messages("warning"))
        else:
            with pytest.raises(odd.error, match=rf"(?s){odd.says}") as caught:
                search(odd, tmp_path / "job", models)
            assert type(caught.value) is odd.error
    finally:
        folder.chmod(stat.S_IRWXU)


def search(odd: Odd, folder: Path, models: dict[str, Path]) -> Result:
    """Run the detection on an odd raster."""
    item = RasterItem("gdal", str(odd.source), **odd.item)
    members = {"rasters": (item,), **odd.members}
    return run(folder, Path(), models[odd.model], **members)


def pixel_bounds(result: Result, transform: Affine) -> np.ndarray:
    """Give the bounds (N, 4) of what was found, in the raster's own pixels, objects that touch taken for one."""
    whole = shapely.union_all([shapely.make_valid(shape) for shape in result.geometries], grid_size=None)
    parts = [part for part in shapely.get_parts(whole) if not part.is_empty]
    bounds = []
    for part in parts:
        assert part.is_valid
        corners = np.array([~transform * tuple(corner) for corner in shapely.get_coordinates(part)])
        bounds.append([*corners.min(axis=0), *corners.max(axis=0)])
    found = np.array(bounds).reshape(-1, 4)
    return found[np.lexsort(np.round(found).T[::-1])]
