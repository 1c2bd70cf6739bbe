"""Models that are items of a portal: downloaded when the run begins, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsProcessingException, QgsVectorLayer

from kestrel.inference.errors import InferenceError
from kestrel.processing_provider.job_builder import model_reference
from kestrel.processing_provider.model_source import named_model
from kestrel.tests.fixtures.servers.portal import ITEM, Item, Portal, portal
from kestrel.tests.qgis.examples import Listener, algorithm, context, refusal, write_raster


@pytest.fixture
def double(repository: Path) -> Iterator[Portal]:
    """A portal that holds the demo model."""
    data = (repository / "resources" / "models" / "tree_crowns.dlpk").read_bytes()
    with portal({ITEM: Item("Deep Learning Package", "Crowns", name="tree_crowns.dlpk", data=data)}) as server:
        yield server


@pytest.fixture
def good(double: Portal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters with the item as model, and a cache of their own."""
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    return {"INPUT": write_raster(tmp_path / "raster.tif"), "MODEL": {"itemId": ITEM}, "PORTAL": double.server.url,
            "OUTPUT": str(tmp_path / "out.gpkg")}  # fmt: skip


def test_nothing_is_downloaded_while_the_parameters_are_checked(good: dict[str, Any], double: Portal) -> None:
    assert refusal(good) == ""
    assert algorithm().prepare(good, context(), Listener())
    assert double.server.asked == []


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("MODEL", {"itemId": "../x"}, "not the id of a portal's item"),
        ("MODEL", {"url": "https://example.org/model.dlpk"}, "is not the address of a portal's item"),
        ("MODEL", "https://example.org/model.dlpk", "is not the address of a portal's item"),
        ("INPUT", None, "No raster is given"),
        ("PARALLEL_PROCESSING_FACTOR", "many", "neither a count nor a percentage"),
        ("ARGUMENTS", "{", "arguments"),
        ("OUTPUT", None, "Nothing says where the objects are to be written"),
        ("OUTPUT", "/no/such/folder/out.gpkg", "cannot be written"),
        ("SUMMARY_FILE", "/no/such/folder/x.json", "its folder does not exist"),
    ],
)
def test_what_can_be_refused_before_the_download_is(
    good: dict[str, Any], parameter: str, value: Any, expected: str
) -> None:
    assert expected in refusal({**good, parameter: value})


@pytest.mark.slow
def test_a_run_downloads_the_model_once_and_tells_what_it_is(
    good: dict[str, Any], double: Portal, repository: Path, tmp_path: Path
) -> None:
    scene = {"INPUT": str(repository / "resources" / "demo" / "OSBS_029.tif")}
    counts = []
    page = f"{double.server.url}/home/item.html?id={ITEM}"
    for number, model in enumerate(({"itemId": ITEM}, page)):
        listener = Listener()
        given = {**good, **scene, "MODEL": model, "OUTPUT": str(tmp_path / f"{number}.gpkg")}
        results, _ = algorithm().run(given, context(), listener, catchExceptions=False)
        counts.append(QgsVectorLayer(results["OUTPUT"], "", "ogr").featureCount())
        assert any("Model of the portal's item Crowns" in text and "SHA-256" in text for _, text in listener.said)
    assert counts[0] == counts[1] > 50
    assert 1 == sum(request.path.endswith("/data") for request in double.server.asked)


def test_an_item_that_the_portal_does_not_know_ends_the_run(good: dict[str, Any]) -> None:
    with pytest.raises(QgsProcessingException, match=r"does not know the item f{32}.*\[service\]"):
        algorithm().run({**good, "MODEL": {"itemId": "f" * 32}}, context(), Listener(), catchExceptions=False)


def test_a_uri_is_a_path_and_a_definition_is_no_reference(tmp_path: Path) -> None:
    assert model_reference(f'{{"uri": "{tmp_path}/a.dlpk"}}') == f"{tmp_path}/a.dlpk"
    for text in ('{"kestrel_definition": 1, "name": "x"}', '{"ModelFile": "a.pth", "uri": "x"}', "{", "C:/a.dlpk", ""):
        assert named_model(text) is None, text
    with pytest.raises(InferenceError, match="downloaded when a detection begins"):
        model_reference(f'{{"itemId": "{ITEM}"}}')
