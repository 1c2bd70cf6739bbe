"""ONNX exports of RT-DETR: images and their sizes go in, labels, boxes and scores come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import ModelUnsupportedError
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.onnx_graphs import GraphBuilder
from kestrel.tests.fixtures.runs import write_definition

SHARES = [[0.0, 0.0, 0.5, 0.25], [0.25, 0.5, 1.0, 1.0], [0.1, 0.1, 0.2, 0.2]]
LABELS = [1, 2, 0]


def rtdetr_network(
    path: Path, batch: Any = "n", size: Any = "s", sizes: str = "orig_target_sizes", sizes_type: int = TensorProto.INT64
) -> Path:
    """Write a graph with RT-DETR's inputs and outputs.

    It always finds three boxes, whose scores are the image's mean, half of it, and the mean again.
    """
    b = GraphBuilder()
    mean = b.op("ReduceMean", "images", b.constant([1, 2, 3], np.int64), keepdims=0)
    column = b.op("Unsqueeze", mean, b.constant([1], np.int64))
    b.op("Mul", column, b.constant([[1.0, 0.5, 1.0]]), output="scores")
    zeros = b.op("Mul", column, b.constant([[0.0, 0.0, 0.0]]))
    b.op("Cast", b.op("Add", zeros, b.constant([LABELS])), to=TensorProto.INT64, output="labels")
    side = b.op("Tile", b.op("Cast", sizes, to=TensorProto.FLOAT), b.constant([1, 2], np.int64))
    b.op("Mul", b.op("Unsqueeze", side, b.constant([1], np.int64)), b.constant([SHARES]), output="boxes")
    graph = helper.make_graph(
        b.nodes,
        "test",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size]),
         helper.make_tensor_value_info(sizes, sizes_type, [batch, 2])],
        [helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, 3]),
         helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, 3, 4]),
         helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])],
        b.constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def load(folder: Path, threshold: float = 0.3) -> Detector:
    kind = {"kind": "onnx", "weights": "model.onnx", "label_offset": 1}
    package = open_package(str(write_definition(folder, "model.onnx", 2, detector=kind)))
    target = folder / "unpacked"
    target.mkdir()
    arguments = resolve_arguments(package.definition, {"threshold": threshold}).values
    return load_detector(package, arguments, DetectorSettings(), target)


def batch(*values: int, side: int = 64) -> Any:
    return np.stack([np.full((3, side, side), value, np.uint8) for value in values])


@pytest.mark.parametrize("n", ["n", 1, 2, 3])
def test_boxes_come_in_network_pixels_whatever_the_batch(tmp_path: Path, n: Any) -> None:
    rtdetr_network(tmp_path / "model.onnx", batch=n)
    bright, dim = load(tmp_path).predict(batch(255, 102))
    assert [[0, 0, 32, 16], [16, 32, 64, 64]] == bright.boxes.tolist()
    assert ([0, 1], [1.0, 0.5]) == (bright.labels.tolist(), pytest.approx(bright.scores.tolist()))
    assert ([0], [pytest.approx(0.4, abs=1e-5)]) == (dim.labels.tolist(), dim.scores.tolist())  # label 0 is no class


def test_the_sizes_are_those_of_the_tiles(tmp_path: Path) -> None:
    rtdetr_network(tmp_path / "model.onnx")
    detector = load(tmp_path)
    assert detector.traits.network_size is None
    for side in (32, 96):
        (found,) = detector.predict(batch(255, side=side))
        assert [0, 0, side / 2, side / 4] == found.boxes[0].tolist()


def test_a_fixed_size_is_kept(tmp_path: Path) -> None:
    rtdetr_network(tmp_path / "model.onnx", size=64)
    assert 64 == load(tmp_path).traits.network_size


@pytest.mark.parametrize(
    "how", [{"sizes": "im_shape"}, {"sizes_type": TensorProto.FLOAT}], ids=["another name", "another type"]
)
def test_another_second_input_is_refused_by_name(tmp_path: Path, how: dict[str, Any]) -> None:
    rtdetr_network(tmp_path / "model.onnx", **how)
    name = how.get("sizes", "orig_target_sizes")
    with pytest.raises(ModelUnsupportedError, match=rf"takes images .*, {name} "):
        load(tmp_path)
