"""Bare programs of PyTorch: recognised, described, asked consent for, and run."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import Detector, DetectorSettings, close_detector
from kestrel.inference.errors import ModelUnsupportedError, UntrustedCodeError
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.description import describe_package
from kestrel.inference.models.package import open_package
from kestrel.inference.models.program import program_sha256
from kestrel.tests.fixtures.rasters import noise, write_raster
from kestrel.tests.fixtures.runs import run

Load = Callable[..., Detector]
SIDE = 64
N_CANDIDATES = sum((SIDE // stride) ** 2 for stride in (8, 16, 32))
CONFIG = {
    "description": "Ultralytics YOLOv8n model", "license": "AGPL-3.0", "version": "8.4", "stride": 32,
    "task": "detect", "imgsz": [SIDE, SIDE], "names": {"0": "Palm", "1": "Roof"}, "channels": 3,
}  # fmt: skip


class Dense(torch.nn.Module):
    """Gives (N, 4 + 2, A) as YOLOv8 does: in each cell a box of the size that the image's mean has, in pixels."""

    def __init__(self, n_classes: int = 2) -> None:
        super().__init__()
        centres = []
        for stride in (8, 16, 32):
            steps = (torch.arange(SIDE // stride) + 0.5) * stride
            y, x = torch.meshgrid(steps, steps, indexing="ij")
            centres.append(torch.stack([x.flatten(), y.flatten()]))
        self.register_buffer("centres", torch.cat(centres, 1))
        self.n_classes = n_classes
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        n, a = images.shape[0], self.centres.shape[1]
        size = images.mean(dim=(1, 2, 3)).reshape(n, 1, 1).expand(n, 2, a) * 10 * self.scale
        scores = torch.zeros(n, self.n_classes, a)
        scores[:, 1, 3] = 0.9
        return torch.cat([self.centres.unsqueeze(0).expand(n, 2, a), size, scores], 1)


class Nested(torch.nn.Module):
    """Gives finished boxes as a tuple, from an exported program too."""

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        boxes = torch.stack([batch.mean() * 0 + side for side in (2.0, 3.0, 20.0, 30.0)]).reshape(1, 4)
        return boxes, batch.mean().reshape(1) * 0 + 0.75, (batch.mean().reshape(1) * 0 + 1).long()


class Picture(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch * 2


def traced(path: Path, network: torch.nn.Module, config: Any = None) -> Path:
    extra = {} if config is None else {"config.txt": json.dumps(config)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.jit.trace(network.eval(), torch.zeros(1, 3, SIDE, SIDE))
        torch.jit.save(program, str(path), _extra_files=extra)
    return path


def exported(path: Path, network: torch.nn.Module, **extra: Any) -> Path:
    program = torch.export.export(network.eval(), (torch.zeros(1, 3, SIDE, SIDE),))
    torch.export.save(program, path, **extra)
    return path


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Load what a path means, with consent, and end its process afterwards."""
    loaded: list[Detector] = []

    def load(reference: Path, allowed: str | None = None, **arguments: Any) -> Detector:
        package = open_package(str(reference))
        folder = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        values = resolve_arguments(package.definition, {"threshold": 0.5, **arguments}).values
        code = program_sha256(package) if allowed is None else allowed
        loaded.append(load_detector(package, values, DetectorSettings("cpu", 1, code), folder))
        return loaded[-1]

    yield load
    for detector in loaded:
        close_detector(detector)


# -- Recognised without a run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.torchscript", "net.pt", "net.pth"])
def test_torchscript_is_known_by_what_it_holds_and_tells_its_classes(tmp_path: Path, name: str) -> None:
    package = open_package(str(traced(tmp_path / name, Dense(), CONFIG)))
    definition = package.definition
    assert ("torchscript", name, name) == (definition.kind, definition.weights, definition.program)
    assert ["Palm", "Roof"] == [item.name for item in definition.classes]
    assert (SIDE, False, 32) == (definition.tile.size, definition.tile.is_variable, definition.tile.stride)
    assert (definition.options, definition.license) == ({"head": "yolov8", "label_offset": 0}, "AGPL-3.0")
    assert definition.notes == ()
    told = describe_package(package)["code"]
    assert (told["is_run"], told["sha256"]) == (True, program_sha256(package))


def test_an_exported_program_is_known_and_tells_its_shapes(tmp_path: Path) -> None:
    definition = open_package(str(exported(tmp_path / "net.pt2", Dense()))).definition
    assert ("torch_export", "net.pt2") == (definition.kind, definition.program)
    assert (SIDE, False, (0, 1, 2)) == (definition.tile.size, definition.tile.is_variable, definition.input.bands)
    assert len(definition.classes) == 2
    assert "does not name its classes" in definition.notes[0]
    assert "red, green and blue were assumed" in definition.notes[1]
    assert definition.options["numbered_classes"] is True


def test_classes_are_taken_from_a_list_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("Palm\n\n Roof \n", "utf-8")
    definition = open_package(str(traced(tmp_path / "net.pt", Dense()))).definition
    assert ["Palm", "Roof"] == [item.name for item in definition.classes]
    assert "classes.txt" in definition.notes[0]


def test_a_list_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret\nwords\n", "utf-8")
    path = traced(tmp_path / "net.pt", Dense())
    (tmp_path / "classes.txt").symlink_to(tmp_path / "private")
    assert "secret" not in {item.name for item in open_package(str(path)).definition.classes}


@pytest.mark.parametrize(
    ("config", "text"),
    [({"task": "classify"}, "image classification"), ({"imgsz": [64, 96]}, "96 x 64 pixels; Kestrel cuts square")],
)
def test_a_program_for_something_else_is_refused_by_what_it_is(tmp_path: Path, config: Any, text: str) -> None:
    path = traced(tmp_path / "net.torchscript", Dense(), {**CONFIG, **config})
    with pytest.raises(ModelUnsupportedError, match=text):
        open_package(str(path))


@pytest.mark.parametrize(
    "config",
    [
        "not a mapping", {"names": {"0": "a" * 10**6}}, {"names": {"99999999": "a"}}, {"names": [[]] * 3},
        {"imgsz": "640"}, {"imgsz": [10**9, 10**9]}, {"stride": True, "channels": -1, "names": None, "args": 5},
    ],
)  # fmt: skip
def test_a_note_that_makes_no_sense_is_passed_over(tmp_path: Path, config: Any) -> None:
    definition = open_package(str(traced(tmp_path / "net.pt", Dense(), config))).definition
    assert definition.kind == "torchscript"
    assert 0 < len(definition.classes) <= 100
    assert all(len(item.name) <= 200 for item in definition.classes)


def test_a_note_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    path = traced(tmp_path / "net.pt", Dense())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/extra/config.txt", b"[" * 2**26)
    assert open_package(str(path)).definition.kind == "torchscript"


# -- Run after consent -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [traced, exported])
def test_without_consent_nothing_runs_and_the_hash_is_told(tmp_path: Path, load: Load, make: Any) -> None:
    path = make(tmp_path / "net.pt2", Dense())
    with pytest.raises(UntrustedCodeError) as caught:
        load(path, allowed="")
    assert caught.value.context["sha256"] == program_sha256(open_package(str(path)))
    with pytest.raises(UntrustedCodeError, match="is not the one that was allowed"):
        load(path, allowed="0" * 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "name", "config"),
    [(traced, "net.torchscript", CONFIG), (exported, "net.pt2", None), (traced, "silent.pt", None)],
)
def test_a_bare_output_is_read_like_the_head_of_a_graph(
    tmp_path: Path, load: Load, make: Any, name: str, config: Any
) -> None:
    path = make(tmp_path / name, Dense(), config) if config else make(tmp_path / name, Dense())
    detector = load(path)
    batch = np.full((2, 3, SIDE, SIDE), 255, np.uint8)
    batch[1] = 51
    first, second = detector.predict(batch)
    assert (detector.traits.is_dense, detector.traits.max_batch) == (True, 1)
    assert np.allclose(first.boxes, [[23, -1, 33, 9]], atol=1e-4)
    assert np.allclose(second.boxes, [[27, 3, 29, 5]], atol=1e-4)
    assert (first.labels.tolist(), first.anchors.tolist()) == ([1], [[28, 4]])
    assert np.allclose(first.scores, 0.9)


@pytest.mark.slow
def test_an_exported_program_with_finished_boxes_runs(tmp_path: Path, load: Load) -> None:
    (tmp_path / "classes.txt").write_text("Palm\nRoof\n", "utf-8")
    (found,) = load(exported(tmp_path / "net.pt2", Nested())).predict(np.zeros((1, 3, SIDE, SIDE), np.uint8))
    assert (found.boxes.tolist(), found.labels.tolist()) == ([[2, 3, 20, 30]], [1])


@pytest.mark.slow
def test_a_program_is_named_by_a_definition_too(tmp_path: Path, load: Load) -> None:
    exported(tmp_path / "net.pt2", Dense())
    content = {
        "kestrel_definition": 1, "name": "n", "classes": [{"name": "Palm"}, {"name": "Roof"}],
        "detector": {"kind": "torch_export", "weights": "net.pt2", "head": "yolov8"},
        "input": {"scale": 1 / 255}, "tile": {"size": SIDE, "variable": False},
    }  # fmt: skip
    (tmp_path / "n.json").write_text(json.dumps(content), "utf-8")
    raster = write_raster(tmp_path / "r.tif", noise(3, 80, 90))
    code = program_sha256(open_package(str(tmp_path / "n.json")))
    result = run(tmp_path / "job", raster, tmp_path / "n.json", allowed_code=code, arguments={"threshold": 0.5})
    assert set(result.labels) == {1}
    assert len(result) == result.summary["objects"] > 0


@pytest.mark.slow
def test_an_output_that_is_no_head_is_refused_with_its_shape(tmp_path: Path, load: Load) -> None:
    with pytest.raises(ModelUnsupportedError, match="none that Kestrel knows"):
        load(traced(tmp_path / "net.pt", Picture()))


def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """Let Ultralytics export a network with random weights."""
    ultralytics = pytest.importorskip("ultralytics")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = ultralytics.YOLO(f"{name}.yaml", verbose=False)
    model.model.names = {number: f"name {number}" for number in range(80)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(model.export(format="torchscript", imgsz=SIDE, verbose=False))
    return path.rename(tmp_path / "net.torchscript")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolov8n-seg"])
def test_ultralytics_own_export_finds_what_the_network_gives(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = export(tmp_path, monkeypatch, name)
    definition = open_package(str(path)).definition
    assert [item.name for item in definition.classes][:2] == ["name 0", "name 1"]
    assert definition.geometry == ("polygon" if "seg" in name else "box")
    pixels = noise(3, SIDE, SIDE)[None]
    with torch.inference_mode():
        outputs = torch.jit.load(str(path))(torch.from_numpy(pixels).float() / 255)
    rows = (outputs[0] if isinstance(outputs, tuple) else outputs)[0].numpy()
    scores = rows[4:84].max(axis=0)
    threshold = float(np.sort(scores)[-6])
    (found,) = load(path, threshold=threshold).predict(pixels)
    best = np.flatnonzero(scores > threshold)
    assert 0 < len(found) <= len(best)
    nearest = np.abs(found.scores[:, None] - scores[best][None]).min(axis=1)
    assert nearest.max() < 1e-5
    if name == "yolov8n":
        centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
        assert len(found) == len(best)
        assert np.allclose(np.sort(centres[:, 0]), np.sort(rows[0, best]), atol=1e-2)
    else:
        assert found.shapes is not None
        assert all(shape.area > 0 for shape in found.shapes)


def test_a_traced_program_tells_the_size_that_it_was_traced_with(tmp_path: Path) -> None:
    path = traced(tmp_path / "net.pt", Dense())
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("traced_inputs.pkl") for name in archive.namelist()):
            pytest.skip("this version of torch does not keep it")
    definition = open_package(str(path)).definition
    assert (definition.tile.size, definition.tile.is_variable, definition.input.is_assumed) == (SIDE, False, True)
