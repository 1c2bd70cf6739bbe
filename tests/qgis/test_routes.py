"""One scene through every kind of source: the objects of the local file each time, and the table that says so.

Each source is named as a layer, in the widgets of the dialog, and in words as for qgis_process: it is the same raster.
`pytest -s` prints the table; build/routes.md holds it, too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal
from qgis.core import QgsFillSymbol, QgsMapLayer, QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.PyQt.QtCore import QCoreApplication, QEvent

from kestrel.processing_provider.inputs import input_list
from kestrel.processing_provider.parameter_reader import ParameterReader
from kestrel.tests.fixtures.postgres import Postgres, postgres_server
from kestrel.tests.fixtures.servers.image_server import ArcGis, image_server
from kestrel.tests.fixtures.servers.pixels import open_image
from kestrel.tests.fixtures.servers.portal import ITEM, OTHER_ITEM, Item, portal
from kestrel.tests.fixtures.servers.qgis_server import QgisServer, qgis_server, without_nodata
from kestrel.tests.fixtures.servers.range_server import serving_apart
from kestrel.tests.fixtures.servers.scene import IMAGE, demo_tiles, inner_extent
from kestrel.tests.fixtures.servers.xyz_server import resolution, serving
from kestrel.tests.qgis.examples import ROOT, Listener, algorithm, context, polygon_layer

pytestmark = pytest.mark.slow

MODEL = ROOT / "resources" / "models" / "tree_crowns.dlpk"
N_OBJECTS = 66
SIDE = 0.1
"""Metres of a pixel of the scene."""
CORNER = (404211.9, 3285142.9)
ALMOST = 0.001
"""What servers' ways of writing coordinates may change: pixels of an offset, points of a confidence of 100."""

GRID = "on the grid of the tiles"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Found:
    """An object: its box in map units, and its confidence."""

    box: Box
    confidence: float


@dataclass
class Route:
    """How a scene was read, for a row of the table.

    Attributes:
        parameters: Those that name the raster.
        named: The same in words.
        asked: Gives what the server was asked, in words, after the run.
        truth: What the local file gives on the grid of the route's pixels; None: that is the scene's own.
        compared: What was done to that file first, in words.
        side: Map units of a pixel.
        on_map: Brings a box to the place of the local one.
        copies: How often the scene lies in it.
    """

    parameters: dict[str, Any]
    named: str
    asked: Callable[[], str] = lambda: ""
    truth: Sequence[Found] | None = None
    compared: str = "as it is"
    side: float = SIDE
    on_map: Callable[[Box], Box] = lambda box: box
    copies: int = 1


@dataclass
class Table:
    """What all routes gave."""

    rows: list[tuple[str, ...]] = field(default_factory=list)

    HEAD = (
        "kind",
        "named as",
        "compared with the file",
        "objects",
        "greatest offset, pixels",
        "greatest difference of confidence",
        "asked",
    )

    def text(self) -> str:
        rows = [self.HEAD, *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.HEAD))]
        lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
        lines.insert(1, " | ".join("-" * width for width in widths))
        return "\n".join(f"| {line} |" for line in lines)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """The table; printed and written when all routes are through."""
    made = Table()
    yield made
    text = made.text()
    print(f"\n{text}")
    (ROOT / "build" / "routes.md").write_text(f"{text}\n", "utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("routes")


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for all, so that the network is measured once."""
    monkeypatch.setenv("KESTREL_CACHE", str(folder / "cache"))


def run(**parameters: Any) -> list[Found]:
    inputs = {"MODEL": str(MODEL), "OUTPUT": "memory:objects", "PROCESSOR_TYPE": "CPU", **parameters}
    around = context()
    results, is_good = algorithm().run(inputs, around, Listener(), catchExceptions=False)
    assert is_good
    layer = around.getMapLayer(results["OUTPUT"])
    assert isinstance(layer, QgsVectorLayer)
    return objects_in(layer)


def objects_in(layer: QgsVectorLayer) -> list[Found]:
    return in_order([_found(feature) for feature in layer.getFeatures()])


def _found(feature: Any) -> Found:
    box = feature.geometry().boundingBox()
    return Found((box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum()), feature["Confidence"])


def in_order(objects: Sequence[Found]) -> list[Found]:
    return sorted(objects, key=lambda found: (round(found.confidence, 3), *(round(side, 2) for side in found.box)))


@pytest.fixture(scope="module")
def local(folder: Path) -> list[Found]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KESTREL_CACHE", str(folder / "cache"))
        return run(INPUT=str(IMAGE))


@pytest.fixture(scope="module")
def scene(folder: Path) -> Path:
    """The demo image without its value for no data: what is drawn of it has no holes then; the objects are the same."""
    return without_nodata(IMAGE, folder / "scene.tif")


def layer(source: str, provider: str = "gdal") -> QgsRasterLayer:
    made = QgsRasterLayer(source, "the layer", provider)
    assert made.isValid()
    QgsProject.instance().addMapLayer(made)
    return made


Open = Callable[[Any], Any]
"""Enters a context that is left after the run, or gives the fixture of a name."""
Maker = Callable[[Path, Path, Open], Route]


# -- Files and what GDAL opens -----------------------------------------------------------------------------------------


def a_file(scene: Path, folder: Path, enter: Open) -> Route:
    return Route({"INPUT": layer(str(scene))}, "INPUT: a layer")


def a_vrt(scene: Path, folder: Path, enter: Open) -> Route:
    gdal.BuildVRT(str(folder / "scene.vrt"), [str(scene)]).FlushCache()
    return Route({"INPUT": layer(str(folder / "scene.vrt"))}, "INPUT: a layer")


def a_zip(scene: Path, folder: Path, enter: Open) -> Route:
    with zipfile.ZipFile(folder / "scene.zip", "w") as archive:
        archive.write(scene, "scene.tif")
    return Route({"INPUT_SOURCE": f"/vsizip/{folder / 'scene.zip'}/scene.tif"}, "INPUT_SOURCE: /vsizip/...")


def a_geopackage(scene: Path, folder: Path, enter: Open) -> Route:
    options = ["RASTER_TABLE=trees", "TILE_FORMAT=PNG", "BLOCKSIZE=128"]
    for name, more in (("other", []), ("trees", ["APPEND_SUBDATASET=YES"])):
        gdal.Translate(str(folder / "scene.gpkg"), str(scene), format="GPKG",
                       creationOptions=[*options[1:], f"RASTER_TABLE={name}", *more])  # fmt: skip
    return Route({"INPUT": layer(f"GPKG:{folder / 'scene.gpkg'}:trees")}, "INPUT: a layer, GPKG:...:trees")


def over_http(scene: Path, folder: Path, enter: Open) -> Route:
    gdal.Translate(str(folder / "cog.tif"), str(scene), format="COG", creationOptions=["BLOCKSIZE=128"])
    server = enter(serving_apart({"/scene.tif": (folder / "cog.tif").read_bytes()}))
    return Route({"INPUT_SOURCE": f"{server.url}/scene.tif"}, "INPUT_SOURCE: http://.../scene.tif",
                 asked=lambda: requests(server.told()[0]))  # fmt: skip


_STORE = """
import sys
from pathlib import Path
import boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
address = "{}:{}".format(*server.get_host_and_port())
keys = {"aws_access_key_id": "the-key", "aws_secret_access_key": "canary", "region_name": "us-east-1"}
client = boto3.client("s3", endpoint_url=f"http://{address}", **keys)
client.create_bucket(Bucket="scenes")
client.put_object(Bucket="scenes", Key="scene.tif", Body=Path(sys.argv[1]).read_bytes())
print(address, flush=True)
sys.stdin.read()
"""


@contextmanager
def object_store(file: Path) -> Iterator[str]:
    """Run moto's S3, which only the other environment has, with a file in it; give host and port."""
    python = ROOT / "build" / "env" / "inference" / "bin" / "python"
    child = subprocess.Popen(
        [str(python), "-c", _STORE, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = child.stdout.readline().strip()
        assert address, "moto's server did not start"
        yield address
    finally:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def store(scene: Path) -> Iterator[str]:
    with object_store(scene) as address:
        yield address


def in_an_object_store(scene: Path, folder: Path, enter: Open) -> Route:
    options = {
        "AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": "canary", "AWS_REGION": "us-east-1",
        "AWS_S3_ENDPOINT": enter("store"), "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
    }  # fmt: skip
    source = "/vsis3/scenes/scene.tif" + "".join(f"|credential:{key}={value}" for key, value in options.items())
    return Route({"INPUT": layer(source)}, "INPUT: a layer, /vsis3/...|credential:...")


@pytest.fixture(scope="module")
def database(scene: Path) -> Iterator[Postgres]:
    """A database with the scene as a table of tiles."""
    with postgres_server() as server:
        content = scene.read_bytes().hex()
        server.sql(f"""
            CREATE EXTENSION postgis_raster;
            SET postgis.gdal_enabled_drivers = 'GTiff';
            CREATE TABLE trees (rid serial PRIMARY KEY, rast raster);
            INSERT INTO trees (rast)
                SELECT ST_Tile(ST_SetSRID(ST_FromGDALRaster('\\x{content}'::bytea), 32617), 100, 100);
            SELECT AddRasterConstraints('trees'::name, 'rast'::name);
        """)
        yield server


def in_postgis(scene: Path, folder: Path, enter: Open) -> Route:
    source = f"{enter('database').uri} mode=2 schema='public' column='rast' table='trees'"
    return Route({"INPUT": layer(source, "postgresraster")}, "INPUT: a layer of the provider postgresraster")


def padded(scene: Path, path: Path, left: int, top: int, width: int, height: int) -> str:
    """Write the scene onto a larger grid of its pixels: a server's tiles begin elsewhere, and so does what a network
    takes together."""
    x, y = CORNER[0] - left * SIDE, CORNER[1] + top * SIDE
    bounds = (x, y - height * SIDE, x + width * SIDE, y)
    gdal.Warp(str(path), str(scene), outputBounds=bounds, xRes=SIDE, yRes=SIDE, dstAlpha=True).FlushCache()
    return str(path)


# -- ArcGIS ------------------------------------------------------------------------------------------------------------


def requests(count: int) -> str:
    return f"{count} requests"


def arcgis_route(double: ArcGis, parameters: dict[str, Any], named: str, **more: Any) -> Route:
    return Route(parameters, named, asked=lambda: requests(len(double.server.asked)), **more)


def an_image_service(scene: Path, folder: Path, enter: Open) -> Route:
    double = enter(image_server(open_image(scene)))
    return arcgis_route(double, {"INPUT_SOURCE": double.image}, "INPUT_SOURCE: .../ImageServer")


def an_image_service_in_json(scene: Path, folder: Path, enter: Open) -> Route:
    double = enter(image_server(open_image(scene), max_size=(150, 150)))
    return arcgis_route(double, {"INPUT_SOURCE": {"url": double.image}}, 'INPUT_SOURCE: {"url": ".../ImageServer"}')


def an_image_service_as_layer(scene: Path, folder: Path, enter: Open) -> Route:
    double = enter(image_server(open_image(scene), token="canary-9"))
    source = f"crs='EPSG:32617' format='PNG' layer='' url='{double.image}' authcfg='{enter('token')}'"
    return arcgis_route(double, {"INPUT": layer(source, "arcgismapserver")}, "INPUT: a layer, signed in with a token")


def a_map_service(scene: Path, folder: Path, enter: Open) -> Route:
    double = enter(image_server(open_image(scene)))
    return arcgis_route(double, {"INPUT_SOURCE": double.map, "CELL_SIZE": SIDE}, "INPUT_SOURCE: .../MapServer")


def a_tiled_map_service(scene: Path, folder: Path, enter: Open) -> Route:
    double = enter(image_server(open_image(scene)))
    truth = run(INPUT=padded(scene, folder / "cache.tif", 10, 6, 410, 406))
    return arcgis_route(
        double, {"INPUT_SOURCE": double.tiled}, "INPUT_SOURCE: .../MapServer with a cache", truth=truth, compared=GRID
    )


def a_map_service_as_layer(scene: Path, folder: Path, enter: Open) -> Route:
    double = enter(image_server(open_image(scene)))
    made = layer(f"crs='EPSG:32617' format='PNG32' layer='' url='{double.map}'", "arcgismapserver")
    return arcgis_route(double, {"INPUT": made, "CELL_SIZE": SIDE}, "INPUT: a layer")


def a_portal_s_service(scene: Path, folder: Path, enter: Open) -> Route:
    double = enter(image_server(open_image(scene), token="canary-9"))
    owner = enter(portal({ITEM: Item("Image Service", url=double.image, private=True)}, token="canary-9"))
    owner.servers = [double.server.url]
    parameters = {"INPUT_SOURCE": {"itemId": ITEM}, "PORTAL": owner.server.url, "AUTHENTICATION": enter("token")}
    return arcgis_route(double, parameters, 'INPUT_SOURCE: {"itemId": ...}, signed in with a token')


def a_portal_s_file(scene: Path, folder: Path, enter: Open) -> Route:
    item = Item("Image", "A file", name="scene.tif", data=scene.read_bytes(), private=True)
    owner = enter(portal({OTHER_ITEM: item}, token="canary-9"))
    parameters = {"INPUT_SOURCE": {"itemId": OTHER_ITEM}, "PORTAL": owner.server.url, "AUTHENTICATION": enter("token")}
    return Route(parameters, 'INPUT_SOURCE: {"itemId": ...}, signed in with a token',
                 asked=lambda: requests(len(owner.server.asked)))  # fmt: skip


# -- The web, and what QGIS draws --------------------------------------------------------------------------------------


def xyz_tiles(scene: Path, folder: Path, enter: Open) -> Route:
    tiles = enter(serving(demo_tiles(folder / "tiles.tif")))
    extent = inner_extent(tiles)
    truth = run(INPUT=str(folder / "tiles.tif"), EXTENT=extent)
    return Route({"INPUT": layer(tiles.uri, "wms"), "EXTENT": extent}, "INPUT: a layer", truth=truth, compared=GRID,
                 side=resolution(tiles.zoom), asked=lambda: requests(len(tiles.server.asked)))  # fmt: skip


@pytest.fixture(scope="module")
def ogc(scene: Path, folder: Path) -> Iterator[QgisServer]:
    """QGIS Server with the scene; its WMTS has a level with the scene's own pixels."""
    with qgis_server(scene, folder) as server:
        yield server


def a_wms(scene: Path, folder: Path, enter: Open) -> Route:
    return Route({"INPUT": layer(enter("ogc").wms(), "wms"), "CELL_SIZE": SIDE}, "INPUT: a layer")


def a_wmts(scene: Path, folder: Path, enter: Open) -> Route:
    made = layer(enter("ogc").wmts("EPSG:32617"), "wms")
    truth = run(INPUT=padded(scene, folder / "wmts.tif", 4, 4, 408, 408))
    return Route({"INPUT": made}, "INPUT: a layer", truth=truth, compared=GRID)


def a_wcs(scene: Path, folder: Path, enter: Open) -> Route:
    return Route({"INPUT": layer(enter("ogc").wcs(), "wcs"), "CELL_SIZE": SIDE}, "INPUT: a layer")


def as_displayed(scene: Path, folder: Path, enter: Open) -> Route:
    return Route({"INPUT": layer(str(scene)), "AS_DISPLAYED": True}, "INPUT: a layer, AS_DISPLAYED")


def layers_drawn(scene: Path, folder: Path, enter: Open) -> Route:
    drawn = [layer(path) for path in quarters(scene, folder / "drawn")]
    return Route({"RENDER_LAYERS": drawn, "CELL_SIZE": SIDE}, "RENDER_LAYERS: four quarters")


def polygons_over_a_raster(scene: Path, folder: Path, enter: Open) -> Route:
    """A white polygon hides the left half; in the file of the truth that half is white."""
    x, y = CORNER
    above = polygon_layer(f"POLYGON(({x} {y},{x + 20} {y},{x + 20} {y - 40},{x} {y - 40},{x} {y}))", crs="EPSG:32617")
    above.renderer().setSymbol(QgsFillSymbol.createSimple({"color": "255,255,255", "outline_style": "no"}))
    shutil.copy(scene, folder / "half.tif")
    half = gdal.Open(str(folder / "half.tif"), gdal.GA_Update)
    half.WriteRaster(0, 0, 200, 400, bytes([255]) * (200 * 400 * 3))
    half.FlushCache()
    truth = run(INPUT=str(folder / "half.tif"))
    return Route({"RENDER_LAYERS": [above, layer(str(scene))], "CELL_SIZE": SIDE},
                 "RENDER_LAYERS: polygons over a raster", truth=truth, compared="half of it white")  # fmt: skip


# -- Several, and pictures ---------------------------------------------------------------------------------------------


def quarters(scene: Path, folder: Path) -> list[str]:
    """Cut the scene into four files."""
    folder.mkdir()
    paths = [str(folder / f"{number}.tif") for number in range(4)]
    for number, path in enumerate(paths):
        gdal.Translate(path, str(scene), srcWin=[number % 2 * 200, number // 2 * 200, 200, 200])
    return paths


def a_mosaic(scene: Path, folder: Path, enter: Open) -> Route:
    first, *others = quarters(scene, folder / "parts")
    return Route({"INPUT": layer(first), "MORE_INPUTS": others}, "INPUT and MORE_INPUTS: four quarters")


def a_mosaic_with_services(scene: Path, folder: Path, enter: Open) -> Route:
    double = enter(image_server(open_image(scene)))
    first, *_ = quarters(scene, folder / "below")
    parameters = {"INPUT_SOURCE": [first, double.image, double.map], "CELL_SIZE": SIDE}
    return arcgis_route(double, parameters, "INPUT_SOURCE: [a quarter, .../ImageServer, .../MapServer]")


def a_folder(scene: Path, folder: Path, enter: Open) -> Route:
    quarters(scene, folder / "quarters")
    return Route({"INPUT_SOURCE": str(folder / "quarters")}, "INPUT_SOURCE: a folder of four quarters")


def one_by_one(scene: Path, folder: Path, enter: Open) -> Route:
    (folder / "copies").mkdir()
    for name in ("a", "b"):
        shutil.copy(scene, folder / "copies" / f"{name}.tif")
    parameters = {"INPUT_SOURCE": str(folder / "copies"), "PROCESSING_MODE": "PROCESS_ITEMS_SEPARATELY"}
    return Route(parameters, "INPUT_SOURCE: a folder with the scene twice", copies=2)


def a_picture(scene: Path, folder: Path, enter: Open) -> Route:
    gdal.Translate(str(folder / "scene.png"), str(scene), format="PNG")
    (folder / "scene.png.aux.xml").unlink()

    def on_map(box: Box) -> Box:
        x, y = CORNER
        return (x + box[0] * SIDE, y + box[1] * SIDE, x + box[2] * SIDE, y + box[3] * SIDE)

    return Route({"INPUT": layer(str(folder / "scene.png"))}, "INPUT: a layer without a place", on_map=on_map)


ROUTES: dict[str, Maker] = {
    "GeoTIFF": a_file,
    "VRT": a_vrt,
    "zipped file": a_zip,
    "raster table of a GeoPackage": a_geopackage,
    "COG on a web server": over_http,
    "object store (S3)": in_an_object_store,
    "PostGIS raster": in_postgis,
    "ArcGIS image service": an_image_service,
    "ArcGIS image service, replies of 150 pixels": an_image_service_in_json,
    "ArcGIS image service, layer": an_image_service_as_layer,
    "ArcGIS map service": a_map_service,
    "ArcGIS map service, tiles": a_tiled_map_service,
    "ArcGIS map service, layer": a_map_service_as_layer,
    "portal item, service": a_portal_s_service,
    "portal item, file": a_portal_s_file,
    "XYZ tiles": xyz_tiles,
    "WMS": a_wms,
    "WMTS": a_wmts,
    "WCS": a_wcs,
    "layer as displayed": as_displayed,
    "layers drawn over one another": layers_drawn,
    "polygons drawn over a raster": polygons_over_a_raster,
    "mosaic": a_mosaic,
    "mosaic of a file and services": a_mosaic_with_services,
    "folder": a_folder,
    "one by one": one_by_one,
    "picture without georeference": a_picture,
}


def opener(stack: ExitStack, request: pytest.FixtureRequest) -> Open:
    """Give what makers of routes enter contexts and ask for fixtures with."""
    return lambda what: request.getfixturevalue(what) if isinstance(what, str) else stack.enter_context(what)


@pytest.mark.usefixtures("widgets")
@pytest.mark.parametrize("kind", ROUTES)
def test_each_route_gives_the_objects_of_the_local_file(
    kind: str, table: Table, local: list[Found], scene: Path, folder: Path, request: pytest.FixtureRequest
) -> None:
    with ExitStack() as stack:
        enter = opener(stack, request)
        route = ROUTES[kind](scene, folder, enter)
        by_layer = rasters_of(route.parameters)
        assert rasters_of({key: as_text(value) for key, value in route.parameters.items()}) == by_layer
        assert rasters_of(from_dialog(route.parameters)) == by_layer
        truth = in_order([found for found in route.truth or local for _ in range(route.copies)])
        found = in_order([Found(route.on_map(one.box), one.confidence) for one in run(**route.parameters)])
        asked = route.asked()
    offset, change = differences(found, truth, route.side)
    counts = f"{len(found)} of {len(truth)}"
    named = route.named.replace("|", "\\|")
    table.rows.append((kind, named, route.compared, counts, f"{offset:.4f}", f"{change:.4f}", asked))
    assert len(local) == N_OBJECTS
    assert len(found) == len(truth) > 30
    assert max(offset, change) < ALMOST


MANY = (
    "GeoTIFF", "VRT", "raster table of a GeoPackage", "object store (S3)", "PostGIS raster", "WMS", "WCS",
    "ArcGIS map service, layer", "COG on a web server", "zipped file", "ArcGIS image service", "ArcGIS map service",
)  # fmt: skip


def test_qgis_process_searches_many_kinds_one_by_one(
    local: list[Found], scene: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Those that are layers are named as MORE_INPUTS, the others in one list as INPUT_SOURCE."""
    with ExitStack() as stack:
        routes = [ROUTES[kind](scene, tmp_path, opener(stack, request)).parameters for kind in MANY]
        inputs = {
            "INPUT_SOURCE": [given["INPUT_SOURCE"] for given in routes if "INPUT_SOURCE" in given],
            "MORE_INPUTS": [as_text(given["INPUT"]) for given in routes if "INPUT" in given],
            "CELL_SIZE": SIDE, "PROCESSING_MODE": "PROCESS_ITEMS_SEPARATELY",
            "MODEL": str(MODEL), "OUTPUT": str(tmp_path / "trees.gpkg"),
        }  # fmt: skip
        done = subprocess.run(
            [str(ROOT / "tools" / "qgis_process.sh"), "run", "kestrel:detectobjects", "-"],
            input=json.dumps({"inputs": inputs}), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_source: dict[str, list[Found]] = {}
    for feature in QgsVectorLayer(inputs["OUTPUT"]).getFeatures():
        by_source.setdefault(feature["Source"], []).append(_found(feature))
    print("\n" + "\n".join(f"{len(found)} objects in {source}" for source, found in by_source.items()))
    assert len(by_source) == len(MANY)
    assert all(len(found) == N_OBJECTS for found in by_source.values())
    assert all(max(differences(in_order(found), local)) < ALMOST for found in by_source.values())


def rasters_of(parameters: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Give what a run would read."""
    items = input_list(ParameterReader(algorithm(), parameters, context())).items
    return [(item.kind, item.source, item.options) for item in items]


def as_text(value: Any) -> Any:
    """Give a parameter as scripts and qgis_process write it; a layer that is only in the project by its id."""
    if isinstance(value, list):
        return [as_text(part) for part in value]
    if isinstance(value, QgsRasterLayer):
        is_file = value.providerType() == "gdal"
        return value.source() if is_file else f"{value.providerType()}://{value.source()}"
    return value.id() if isinstance(value, QgsMapLayer) else value


def from_dialog(parameters: dict[str, Any]) -> dict[str, Any]:
    """Give what QGIS's own dialog hands on when these are chosen and typed in its widgets."""
    from processing.gui.AlgorithmDialog import AlgorithmDialog

    dialog = AlgorithmDialog(algorithm())
    try:
        dialog.setParameters(
            {"MODEL": str(MODEL), **{key: _for_widget(key, value) for key, value in parameters.items()}}
        )
        given = dialog.createProcessingParameters()
    finally:
        dialog.deleteLater()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    return dict(given)


def _for_widget(key: str, value: Any) -> Any:
    if key == "INPUT_SOURCE" and not isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return [_for_widget(key, part) for part in value]
    return value.id() if isinstance(value, QgsMapLayer) else value


def differences(found: Sequence[Found], truth: Sequence[Found], side: float = SIDE) -> tuple[float, float]:
    """Give the greatest offset of an edge in pixels, and the greatest difference of a confidence."""
    pairs = list(zip(found, truth))
    offset = max((abs(a - b) for one, other in pairs for a, b in zip(one.box, other.box)), default=0.0)
    return offset / side, max((abs(one.confidence - other.confidence) for one, other in pairs), default=0.0)


@pytest.fixture
def token(sign_with: Callable[..., str]) -> str:
    """An authentication configuration that QGIS's own method for ArcGIS makes a token of."""
    return sign_with("EsriToken", token="canary-9")
