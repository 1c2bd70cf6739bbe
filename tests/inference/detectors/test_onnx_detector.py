from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import (
    InferenceError,
    ModelError,
    ModelIncompatibleError,
    ModelPackageError,
    ModelUnsupportedError,
)
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.onnx_graphs import CELL, boxes_network, cell_network, random_network
from kestrel.tests.fixtures.packages import write_zip
from kestrel.tests.fixtures.rasters import cells, noise
from kestrel.tests.fixtures.runs import write_definition


def load(
    folder: Path, weights: str = "model.onnx", n_classes: int = 3, head: str | None = "yolov8", n_threads: int = 1,
    threshold: float = 0.5, options: dict[str, Any] | None = None, **members: Any,
) -> Detector:  # fmt: skip
    """Load the network in `folder` by a definition beside it."""
    detector = {"kind": "onnx", "weights": weights, **({"head": head} if head else {}), **(options or {})}
    path = write_definition(folder, weights, n_classes, detector=detector, **members)
    return load_package(folder, path, n_threads, threshold=threshold)


def load_package(folder: Path, path: Path, n_threads: int = 1, **arguments: Any) -> Detector:
    package = open_package(str(path))
    target = folder / f"unpacked{len(list(folder.iterdir()))}"
    target.mkdir()
    values = resolve_arguments(package.definition, arguments).values
    return load_detector(package, values, DetectorSettings("cpu", n_threads), target)


def places(found: Any) -> set[tuple[int, int, int]]:
    """Give band, row and column of the cells that were found."""
    return {(int(label), int(y // CELL), int(x // CELL)) for label, (x, y) in zip(found.labels, found.anchors)}


LIT = [(0, 1, 2), (1, 3, 3), (2, 0, 0)]
BATCH = np.stack([cells(3, 4, 4, LIT), cells(3, 4, 4, [])])


@pytest.mark.parametrize(("head", "has_objectness"), [("yolov8", False), ("yolov5", True), (None, False), (None, True)])
def test_a_dense_head_is_read_whether_it_is_named_or_recognised(
    tmp_path: Path, head: str | None, has_objectness: bool
) -> None:
    cell_network(tmp_path / "model.onnx", has_objectness=has_objectness)
    lit, dark = load(tmp_path, head=head).predict(BATCH)
    assert (set(LIT), set()) == (places(lit), places(dark))
    for box, anchor in zip(lit.boxes, lit.anchors):
        assert [*(anchor - CELL / 2), *(anchor + CELL / 2)] == box.tolist()


def test_stride_and_radius_are_measured(tmp_path: Path) -> None:
    random_network(tmp_path / "model.onnx")
    traits = load(tmp_path, n_classes=2, n_threads=3).traits
    assert (8, True, None, None, 3) == (
        traits.stride, traits.is_dense, traits.network_size, traits.max_batch, traits.n_callers
    )  # fmt: skip
    assert 16 <= (traits.receptive_field_radius or 0) <= 31


@pytest.mark.parametrize(
    ("tile", "expected"),
    [({"stride": 64, "receptive_field_radius": 99}, (64, 99)), ({"stride": 64}, (64, None)),
     ({"receptive_field_radius": 0}, (8, 0)), ({"receptive_field_radius": 99}, (8, 99))],
)  # fmt: skip
def test_what_the_package_states_is_not_measured(
    tmp_path: Path, tile: dict[str, int], expected: tuple[int, int | None]
) -> None:
    random_network(tmp_path / "model.onnx")
    traits = load(tmp_path, n_classes=2, tile=tile).traits
    assert expected[0] == traits.stride
    assert traits.receptive_field_radius == expected[1] or (
        expected[1] is None and 16 <= traits.receptive_field_radius <= 31
    )


def test_sizes_that_the_graph_fixes_are_known(tmp_path: Path) -> None:
    cell_network(tmp_path / "model.onnx", size=64)
    assert 64 == load(tmp_path).traits.network_size
    random_network(tmp_path / "model.onnx", batch=1)
    assert 1 == load(tmp_path, n_classes=2).traits.max_batch


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_a_graph_of_a_fixed_number_of_images_takes_any(tmp_path: Path, n: int) -> None:
    random_network(tmp_path / "any.onnx")
    random_network(tmp_path / "model.onnx", batch=3)
    batch = np.stack([noise(3, 96, 96, seed=i) for i in range(n)])
    detector = load(tmp_path, n_classes=2)
    expected, found = load(tmp_path, "any.onnx", n_classes=2).predict(batch), detector.predict(batch)
    assert (3, n) == (detector.traits.max_batch, len(found))
    for one, other in zip(expected, found):
        assert 10 < len(one)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


@pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT16])
def test_pixels_are_fed_in_the_type_that_the_graph_takes(tmp_path: Path, dtype: int) -> None:
    cell_network(tmp_path / "model.onnx", input_dtype=dtype)
    (found, _) = load(tmp_path, threshold=0.9, input={"scale": 1.0}).predict(BATCH)
    assert set(LIT) <= places(found)
    assert {10.0, 200.0} == set(found.scores.tolist())


def test_a_graph_of_8_bits_takes_no_other_rasters(tmp_path: Path) -> None:
    cell_network(tmp_path / "model.onnx", input_dtype=TensorProto.UINT8)
    with pytest.raises(ModelIncompatibleError, match="8-bit pixels, and the raster's are float32"):
        load(tmp_path, input={"scale": 1.0}).predict(BATCH.astype(np.float32) * 10)
    whole = load(tmp_path, input={"scale": 1.0})
    as_floats = (BATCH + np.float32(0.25)).astype(np.float32)
    assert [places(part) for part in whole.predict(BATCH)] == [places(part) for part in whole.predict(as_floats)]
    with pytest.raises(ModelIncompatibleError, match="definition scales them"):
        load(tmp_path)


def test_the_definition_s_normalisation_is_applied(tmp_path: Path) -> None:
    cell_network(tmp_path / "model.onnx")
    (found, _) = load(tmp_path, input={"scale": 0.01, "mean": 0.5, "std": 2.0}).predict(BATCH)
    assert [(200 * 0.01 - 0.5) / 2] * 3 == pytest.approx(found.scores.tolist())


# -- Suppression inside the graph --------------------------------------------------------------------------------------


def write_constant(path: Path, **outputs: Any) -> Path:
    """Write a network that always gives the same."""
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))
             for name, value in outputs.items()]  # fmt: skip
    declared = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype),
                                              np.asarray(value).shape) for name, value in outputs.items()]  # fmt: skip
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])
    graph = helper.make_graph(nodes, "g", [image], declared)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


BOXES = np.array([[0, 0, 5, 5], [10, 10, 20, 30], [1, 1, 2, 2]], np.float32)
SCORES = np.array([0.9, 0.6, 0.4], np.float32)


@pytest.mark.parametrize("has_batch_axis", [True, False])
@pytest.mark.parametrize(
    ("labels", "offset", "expected"),
    [(None, 0, [0, 0]), ([0, 1, 1], 0, [0, 1]), ([1, 2, 1], 1, [0, 1]), ([0, 1, 1], 1, [0]), ([0, 9, 0], 0, [0])],
)
def test_boxes_scores_and_labels_are_read_as_they_are(
    tmp_path: Path, has_batch_axis: bool, labels: list[int] | None, offset: int, expected: list[int]
) -> None:
    outputs = {"boxes": BOXES, "scores": SCORES, **({} if labels is None else {"labels": np.array(labels)})}
    write_constant(tmp_path / "model.onnx", **{k: v[None] if has_batch_axis else v for k, v in outputs.items()})
    detector = load(tmp_path, n_classes=2, head=None, options={"label_offset": offset})
    (found,) = detector.predict(BATCH[:1])
    assert expected == found.labels.tolist()
    assert len(expected) == len(found.boxes)
    assert (False, 1) == (detector.traits.is_dense, detector.traits.max_batch)


def any_batch(path: Path, batch: Any = "n", *, is_declared: bool = True) -> Path:
    """Let the network of bright discs, which gives one image's boxes, take any batch: it looks at the first image."""
    boxes_network(path)
    model = onnx.load(str(path))
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    dimension.Clear()
    setattr(dimension, "dim_param" if isinstance(batch, str) else "dim_value", batch)
    model.graph.initializer.extend([
        numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("zero", 0), ("one", 1))
    ])  # fmt: skip
    model.graph.node.insert(0, helper.make_node("Slice", ["image", "zero", "one", "zero"], ["first"]))
    for node in model.graph.node[1:]:
        node.input[:] = ["first" if name == "image" else name for name in node.input]
    if not is_declared:
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_graph_that_gives_one_image_s_boxes_is_fed_one_by_one(tmp_path: Path, is_declared: bool) -> None:
    any_batch(tmp_path / "model.onnx", is_declared=is_declared)
    images = np.zeros((3, 3, 64, 64), np.uint8)
    images[0, :, 8:16, 8:16] = images[2, :, 40:48, 16:24] = 255
    detector = load(tmp_path, n_classes=1, head=None, options={"label_offset": 1})
    found = detector.predict(images)
    assert [[[0, 0, 24, 24]], [], [[8, 32, 32, 56]]] == [part.boxes.tolist() for part in found]
    assert not is_declared or detector.traits.max_batch == 1


def test_a_batch_axis_of_one_whatever_goes_in_is_fed_one_by_one_too(tmp_path: Path) -> None:
    path = any_batch(tmp_path / "model.onnx", is_declared=False)
    model = onnx.load(str(path))
    for output in model.graph.output:
        name = output.name
        for node in model.graph.node:
            node.output[:] = [f"{name}_flat" if other == name else other for other in node.output]
            node.input[:] = [f"{name}_flat" if other == name else other for other in node.input]
        model.graph.node.append(helper.make_node("Unsqueeze", [f"{name}_flat", "zero"], [name]))
    onnx.save(model, str(path))
    images = np.zeros((3, 3, 64, 64), np.uint8)
    images[0, :, 8:16, 8:16] = images[2, :, 40:48, 16:24] = 255
    found = load(tmp_path, n_classes=1, head="boxes", options={"label_offset": 1}).predict(images)
    assert [[[0, 0, 24, 24]], [], [[8, 32, 32, 56]]] == [part.boxes.tolist() for part in found]


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_graph_that_mixes_the_boxes_of_several_images_is_refused(tmp_path: Path, is_declared: bool) -> None:
    any_batch(tmp_path / "model.onnx", 2, is_declared=is_declared)
    with pytest.raises(ModelUnsupportedError, match="2 images at a time, and does not tell whose boxes"):
        load(tmp_path, n_classes=1, head=None).predict(np.zeros((2, 3, 64, 64), np.uint8))


def test_scores_for_each_class_give_the_best_class(tmp_path: Path) -> None:
    scores = np.array([[0.1, 0.9], [0.7, 0.2], [0.1, 0.2]], np.float32)
    write_constant(tmp_path / "model.onnx", boxes=BOXES, scores=scores)
    (found,) = load(tmp_path, n_classes=2, head="boxes").predict(BATCH[:1])
    assert ([1, 0], BOXES[:2].tolist()) == (found.labels.tolist(), found.boxes.tolist())


def test_a_graph_that_finds_nothing_gives_nothing(tmp_path: Path) -> None:
    boxes_network(tmp_path / "model.onnx")
    (found,) = load(tmp_path, n_classes=1, head=None, options={"label_offset": 1}).predict(
        np.zeros((1, 3, 64, 64), np.uint8)
    )
    assert 0 == len(found)


# -- What is refused ---------------------------------------------------------------------------------------------------


def write_graph(path: Path, shape: list[Any], *, output: str = "output", dtype: int = TensorProto.FLOAT,
                op: str = "Identity", domain: str = "", opset: int = 18) -> Path:  # fmt: skip
    node = helper.make_node(op, ["image"], [output], domain=domain)
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("image", dtype, shape)],
                              [helper.make_tensor_value_info(output, dtype, shape)])  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    return path


@pytest.mark.parametrize(
    ("graph", "head", "expected", "reason"),
    [
        ({"shape": ["n", 4, "h", "w"]}, "yolov8", ModelIncompatibleError, "4 channels, and its definition names 3"),
        ({"shape": ["n", 3, 320, "w"]}, "yolov8", ModelUnsupportedError, "any x 320 pixels"),
        ({"shape": ["n", 3]}, "yolov8", ModelUnsupportedError, "one image batch"),
        ({"shape": ["n", 3, "h", "w"], "dtype": TensorProto.INT64}, "yolov8", ModelUnsupportedError, "one image batch"),
        ({"shape": ["n", 3, "h", "w"]}, None, ModelUnsupportedError, "none that Kestrel knows"),
        ({"shape": ["n", 3, "h", "w"]}, "boxes", ModelUnsupportedError, "no outputs named boxes and scores"),
        ({"shape": ["n", 3, "h", "w"]}, "centernet", ModelUnsupportedError, "head 'centernet'.*yolov8, yolov5"),
        ({"shape": ["n", 3, "h", "w"]}, "yolov8", ModelUnsupportedError, "no table of objects"),
        (
            {"shape": ["n", 3, "h", "w"], "op": "Evil", "domain": "com.evil"},
            "yolov8",
            ModelUnsupportedError,
            "com.evil",
        ),
        ({"shape": ["n", 3, "h", "w"], "op": "NoSuchOp"}, "yolov8", ModelError, "cannot load"),
        ({"shape": ["n", 3, "h", "w"], "opset": 9999}, "yolov8", ModelError, "cannot load"),
    ],
)
def test_a_graph_of_another_kind_is_refused(
    tmp_path: Path, graph: dict[str, Any], head: str | None, expected: type[InferenceError], reason: str
) -> None:
    write_graph(tmp_path / "model.onnx", **graph)
    with pytest.raises(expected, match=reason):
        load(tmp_path, head=head)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x00" * 100, b"\xff" * 100, b"\x08\x09"])
def test_a_file_that_is_no_onnx_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError):
        load(tmp_path)


@pytest.mark.parametrize("options", [{"label_offset": "one"}, {"label_offset": []}, {"label_offset": -1}])
def test_an_offset_that_is_no_count_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    write_constant(tmp_path / "model.onnx", boxes=BOXES, scores=SCORES)
    with pytest.raises(ModelPackageError, match="label_offset"):
        load(tmp_path, head=None, options=options)


def test_a_network_that_fails_while_it_runs_is_a_model_error(tmp_path: Path) -> None:
    cell_network(tmp_path / "model.onnx", size=64)
    detector = load(tmp_path)
    with pytest.raises(ModelError):
        detector.predict(np.zeros((1, 3, 72, 72), np.uint8))


# -- External data -----------------------------------------------------------------------------------------------------


def external(location: str) -> TensorProto:
    """Give a tensor whose data lies in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_external(path: Path, location: str, where: str = "initializer") -> Path:
    """Write the network of cells with one more tensor, in a file of its own."""
    cell_network(path)
    model = onnx.load(str(path))
    constant = helper.make_node("Constant", [], ["w"], value=external(location))
    if where == "initializer":
        model.graph.initializer.append(external(location))
    elif where == "attribute":
        model.graph.node.append(constant)
    elif where == "sparse":
        sparse = model.graph.sparse_initializer.add()
        sparse.dims.append(3)
        sparse.values.CopyFrom(external(location))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(3), "w_indices"))
    elif where == "function":
        body = model.functions.add(name="F", domain="")
        body.node.append(constant)
        body.opset_import.append(helper.make_opsetid("", 18))
    else:
        branch = helper.make_graph(
            [constant], "branch", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [3])]
        )
        if where == "subgraph initializer":
            identity = helper.make_node("Identity", ["w"], ["v"])
            branch = helper.make_graph([identity], "branch", [], [helper.make_tensor_value_info("v", 1, [3])])
            branch.initializer.append(external(location))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        model.graph.node.append(helper.make_node("If", ["yes"], ["x"], then_branch=branch, else_branch=branch))
    path.write_bytes(model.SerializeToString())
    return path


PLACES = ["initializer", "attribute", "sparse", "function", "subgraph", "subgraph initializer"]
OUTSIDE = ["../secret.bin", "/etc/passwd", "C:\\secret.bin", "sub/../../secret.bin", "sub/secret.bin", "", ".", "..",
           "*/_ORT_MEM_ADDR_/*", "model.onnx", "a\x00b"]  # fmt: skip


@pytest.mark.parametrize("location", OUTSIDE)
@pytest.mark.parametrize("where", PLACES)
def test_external_data_outside_the_package_is_refused(tmp_path: Path, where: str, location: str) -> None:
    inner = tmp_path / "inner"
    (inner / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.bin", inner / "sub" / "secret.bin"):
        place.write_bytes(b"\x00" * 12)
    write_external(inner / "model.onnx", location, where)
    with pytest.raises(ModelPackageError, match=r"outside the package|does not hold"):
        load(inner)


@pytest.mark.parametrize("make", ["symlink_to", "hardlink_to"])
def test_external_data_that_are_a_link_to_another_place_are_refused(tmp_path: Path, make: str) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\x00" * 12)
    inner = tmp_path / "inner"
    inner.mkdir()
    write_external(inner / "model.onnx", "weights.bin")
    getattr(inner / "weights.bin", make)(secret)
    with pytest.raises(ModelPackageError, match="is a link to another place"):
        load(inner)


def test_external_data_in_the_package_are_loaded(tmp_path: Path) -> None:
    write_external(tmp_path / "model.onnx", "weights.bin")
    (tmp_path / "weights.bin").write_bytes(np.ones(3, np.float32).tobytes())
    assert set(LIT) == places(load(tmp_path).predict(BATCH)[0])
    definition = write_definition(tmp_path, "model.onnx")
    path = write_zip(tmp_path / "p.dlpk", [
        ("f/m.kestrel.json", definition.read_bytes()), ("f/model.onnx", (tmp_path / "model.onnx").read_bytes()),
        ("f/weights.bin", (tmp_path / "weights.bin").read_bytes()),
    ])  # fmt: skip
    assert set(LIT) == places(load_package(tmp_path, path).predict(BATCH)[0])


def test_external_data_lie_beside_the_weights_and_count_in_the_hash(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_external(tmp_path / "sub" / "model.onnx", "weights.bin")
    (tmp_path / "sub" / "weights.bin").write_bytes(np.ones(3, np.float32).tobytes())
    assert set(LIT) == places(load(tmp_path, "sub/model.onnx").predict(BATCH)[0])
    first = open_package(str(tmp_path / "model.json")).sha256()
    (tmp_path / "sub" / "weights.bin").write_bytes(np.zeros(3, np.float32).tobytes())
    assert first != open_package(str(tmp_path / "model.json")).sha256()


@pytest.mark.parametrize("where", PLACES)
def test_the_hash_finds_external_data_where_onnx_does(tmp_path: Path, where: str) -> None:
    write_external(tmp_path / "model.onnx", "weights.bin", where)
    path = write_definition(tmp_path, "model.onnx")
    first = open_package(str(path)).sha256()
    (tmp_path / "weights.bin").write_bytes(b"weights")
    assert first != open_package(str(path)).sha256()


def test_a_network_is_the_same_after_it_was_put_into_a_package(tmp_path: Path) -> None:
    random_network(tmp_path / "model.onnx")
    batch = noise(3, 96, 96)[None]
    (loose,) = load(tmp_path, n_classes=2).predict(batch)
    emd = {"Framework": "ONNX", "ModelConfiguration": "YOLOv8", "ModelFile": "model.onnx", "ExtractBands": [0, 1, 2],
           "ImageHeight": 96, "ImageWidth": 96, "Kestrel": {"input": {"scale": 1 / 255}},
           "Classes": [{"Value": 1, "Name": "a"}, {"Value": 2, "Name": "b"}]}  # fmt: skip
    path = write_zip(tmp_path / "p.dlpk", [
        ("m.emd", json.dumps(emd)), ("model.onnx", (tmp_path / "model.onnx").read_bytes())
    ])  # fmt: skip
    (packed,) = load_package(tmp_path, path).predict(batch)
    assert 10 < len(loose)
    assert (loose.boxes.tolist(), loose.scores.tolist()) == (packed.boxes.tolist(), packed.scores.tolist())


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links on this system")
def test_an_unpacked_graph_is_a_file_of_our_own(tmp_path: Path) -> None:
    cell_network(tmp_path / "elsewhere.onnx")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    load(tmp_path / "m")
    (copy,) = (tmp_path / "m").glob("unpacked*/*")
    assert not copy.is_symlink()


def test_external_data_that_the_hash_does_not_see_are_refused(tmp_path: Path) -> None:
    path = random_network(tmp_path / "model.onnx")
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=500)
    load(tmp_path, n_classes=2)
    data = path.read_bytes()
    usual, swapped = b"\x0a\x08location\x12\x05w.bin", b"\x12\x05w.bin\x0a\x08location"
    assert usual in data
    path.write_bytes(data.replace(usual, swapped))
    assert onnx.load(str(path)).graph.initializer  # the library reads it all the same
    with pytest.raises(ModelPackageError, match="its hash does not cover"):
        load(tmp_path, n_classes=2)
