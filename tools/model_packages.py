"""Writes the tables of docs/model_packages.md from what the tests run: families with backbones, and every refusal.

    build/env/inference/bin/python tools/model_packages.py

`tests/inference/models/test_model_packages_doc.py` fails where the document is behind.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "model_packages.md"

_PROOFS = {
    "FasterRCNN": "test_rcnn.py::test_faster_rcnn_finds_what_torchvision_finds",
    "MaskRCNN": "test_rcnn.py::test_mask_rcnn_finds_what_torchvision_finds",
    "SingleShotDetector": "test_ssd.py::test_backbones_give_the_objects_of_the_formulae",
    "RetinaNet": "test_retinanet.py::test_objects_are_those_of_the_formulae",
    "YOLOv3": "test_yolov3.py::test_objects_are_those_of_the_formulae",
    "RTDetrV2": "test_rtdetr.py::test_the_network_equals_a_slow_computation",
    "DeepForest": "test_deepforest.py::test_trees_are_those_of_torchvision",
}
"""The test that holds each family against a second implementation."""
_OBJECTS = "test_matrix.py::test_a_package_of_each_family_on_each_backbone_gives_objects"
_WAYS = "test_matrix.py::test_containers_eras_and_layouts_of_a_family_hold_the_same_model"
_CONTAINERS = {
    "bare": "a state dict, zip container", "zip": "the same", "legacy": "a state dict, container before torch 1.6",
    "model_opt": "`{model, opt}`, zip container",
    "model_opt_numpy": "`{model, opt}` with numpy scalars of a one-cycle schedule",
    "legacy_model_opt_numpy": "the same, container before torch 1.6", "safetensors": "safetensors",
}  # fmt: skip


def main() -> None:
    """Bring the document up to date."""
    sys.path.insert(0, str(ROOT / "build" / "plugins"))
    DOCUMENT.write_text(rendered(DOCUMENT.read_text("utf-8")), "utf-8")


def rendered(text: str) -> str:
    """Give the document with its tables made anew."""
    tables = {"families": _families, "ways": _ways, "refusals": _refusals, "text": _unreadable, "files": _files}
    for name, table in tables.items():
        block = f"<!-- {name} -->\n" + "\n".join(table()) + f"\n<!-- end of {name} -->"
        pattern = rf"<!-- {name} -->\n.*?<!-- end of {name} -->"
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"docs/model_packages.md has no place for the table '{name}'")
    return text


def _families() -> Iterator[str]:
    from kestrel.tests.fixtures.esri_models import MODELS

    yield "| family | backbone | held against a second implementation | from the package to objects |"
    yield "| --- | --- | --- | --- |"
    for model in MODELS:
        yield f"| {model.family} | {model.backbone} | `{_PROOFS[model.family]}` | `{_OBJECTS}[{model.name}]` |"


def _ways() -> Iterator[str]:
    from kestrel.tests.fixtures.esri_models import SMALLEST
    from kestrel.tests.fixtures.esri_packages import CONTAINERS, ERAS, LAYOUTS

    families = ", ".join(SMALLEST)
    yield "| what differs | values | for | test |"
    yield "| --- | --- | --- | --- |"
    for container in CONTAINERS:
        yield f"| container | {container}: {_CONTAINERS[container]} | {families} | `{_WAYS}` |"
    for era in ERAS:
        yield f"| era | arcgis.learn {era} | {families} | `{_WAYS}` |"
    for layout in LAYOUTS:
        yield f"| layout of the .dlpk | {layout} | {families} | `{_WAYS}` |"
    yield f"| loose | an .emd beside its files; their folder | {families} | `{_WAYS}` |"


def _refusals() -> Iterator[str]:
    """Tell what each definition is refused with, as it is told."""
    from kestrel.tests.inference.models.test_esri import REFUSALS, read

    yield from _table(
        "what the definition is",
        ((name, lambda members=members: read(**members)) for name, (members, *_) in REFUSALS.items()),
    )


def _unreadable() -> Iterator[str]:
    from kestrel.inference.models.emd_text import read_emd
    from kestrel.tests.inference.models.test_emd_text import REFUSALS

    yield from _table(
        "text of the .emd",
        ((name, lambda data=data: read_emd(data, "'x.emd'")) for name, (data, *_) in REFUSALS.items()),
    )


def _files() -> Iterator[str]:
    from kestrel.inference.models.package import open_package
    from kestrel.tests.inference.models.test_package import EVIL

    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, (name, (make, _)) in enumerate(EVIL.items()):
            place = Path(folder) / str(number)
            place.mkdir()
            rows.append((name, lambda make=make, place=place: open_package(str(make(place / "package.dlpk")))))
        yield from (line.replace(folder, "...") for line in _table("file", rows))


def _table(title: str, rows: Any) -> Iterator[str]:
    yield f"| {title} | code | what is said |"
    yield "| --- | --- | --- |"
    for name, action in rows:
        code, text = _refused(action)
        yield f"| {_cell(name)} | `{code}` | {_cell(text)} |"


def _refused(action: Callable[[], object]) -> tuple[str, str]:
    from kestrel.inference.errors import InferenceError

    try:
        action()
    except InferenceError as error:
        return error.code, str(error)
    raise SystemExit("something of the tables of refusals is not refused")


def _cell(text: str) -> str:
    plain = " ".join(str(text).split())
    plain = re.sub(r"/\d+/", "/", plain).replace("|", "\\|").replace("<", "&lt;")
    plain = re.sub(r"is damaged: [^.]*\.", "is damaged: ….", plain)  # why: in the words of Python's version
    return "".join(character if character.isprintable() else "?" for character in plain)[:400]


if __name__ == "__main__":
    main()
