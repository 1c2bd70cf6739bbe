"""TensorFlow's Object Detection API: frozen graphs and SavedModels; what they may not do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

pytest.importorskip("torchvision")  # first: its triton and TensorFlow each bring an LLVM, and bear only this order
pytest.importorskip("tensorflow", reason="the optional library TensorFlow is not installed")

import tensorflow as tf

from kestrel.inference.detectors import tensorflow_detector
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.detectors.tensorflow_detector import label_table, load, mask_outline
from kestrel.inference.errors import (
    BackendMissingError,
    DeviceUnavailableError,
    ModelError,
    ModelIncompatibleError,
    ModelPackageError,
    ModelUnsupportedError,
)
from kestrel.inference.models.definition import InputSpec, ModelClass, ModelDefinition
from kestrel.inference.models.package import FolderMembers, Members, ModelPackage, ZipMembers
from kestrel.tests.fixtures.esri_models import tensorflow_emd
from kestrel.tests.fixtures.tensorflow_graphs import CELL, bright_cells, frozen_graph, old_saved_model, saved_model

CLASSES = tuple(ModelClass(value, name, (0, 0, 0)) for value, name in ((1, "red"), (2, "green"), (3, "blue")))
SIDE = 4 * CELL


def detector(
    folder: Path, weights: str = "graph.pb", members: Members | None = None, settings: DetectorSettings | None = None,
    classes: tuple[ModelClass, ...] = CLASSES, spec: InputSpec | None = None, **arguments: Any,
) -> Detector:  # fmt: skip
    """Load the graph that lies in `folder`."""
    definition = ModelDefinition("test", "tensorflow", weights, classes, input=spec or InputSpec())
    package = ModelPackage(definition, members or FolderMembers(folder), "", b"{}")
    target = folder / "unpacked"
    target.mkdir()
    values = {"threshold": 0.5, "nms_overlap": 0.45, **arguments}
    return load(package, values, settings or DetectorSettings(), target)


def image(*lit: tuple[int, int, int, int], dtype: Any = np.uint8) -> NDArray[Any]:
    """Give pixels (3, SIDE, SIDE), dark but for cells given as channel, row, column, brightness."""
    pixels = np.zeros((3, SIDE, SIDE), dtype)
    for channel, row, column, value in lit:
        pixels[channel, row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = value
    return pixels


TWO = image((0, 0, 1, 255), (2, 3, 2, 204), (1, 1, 1, 51))
DARK = image()


def content(found: Any) -> list[tuple[int, float, list[float]]]:
    """Give label, score and box of what was found, rounded."""
    return [(int(label), round(float(score), 3), [round(float(v), 3) for v in box])
            for label, score, box in zip(found.labels, found.scores, found.boxes)]  # fmt: skip


EXPECTED = [(0, 1.0, [16, 0, 32, 16]), (2, 0.8, [32, 48, 48, 64])]


# -- Graphs that run


def test_a_frozen_graph_gives_its_objects(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb")
    network = detector(tmp_path)
    two, dark = network.predict(np.stack([TWO, DARK]))
    assert (EXPECTED, []) == (content(two), content(dark))
    traits = network.traits
    assert (None, False, None, "box") == (traits.network_size, traits.is_dense, traits.max_batch, traits.geometry)


def test_the_result_does_not_depend_on_the_batch_or_the_threads(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (5, 3, SIDE, SIDE), np.uint8)
    frozen_graph(tmp_path / "graph.pb")
    network = detector(tmp_path, threshold=0.1, settings=DetectorSettings("cpu", 2))
    together = [content(found) for found in network.predict(noise)]
    assert all(together)
    assert together == [content(network.predict(noise[i : i + 1])[0]) for i in range(5)]


@pytest.mark.parametrize("weights", ["saved_model.pb", "", ".\\saved_model.pb"])
def test_a_saved_model_reads_its_variables(tmp_path: Path, weights: str) -> None:
    saved_model(tmp_path, gain=2.0)
    network = detector(tmp_path, weights)
    half = image((0, 0, 1, 127))
    found, dark, again = network.predict(np.stack([half, DARK, half]))
    assert [(0, 0.996, [16, 0, 32, 16])] == content(found) == content(again)
    assert [] == content(dark)
    assert network.traits.max_batch == 1


def test_a_saved_model_of_tensorflow_1_reads_its_variables(tmp_path: Path) -> None:
    old_saved_model(tmp_path / "model", gain=2.0)
    for name in ("saved_model.pb", "variables"):
        shutil.move(tmp_path / "model" / name, tmp_path / name)
    (found,) = detector(tmp_path, "saved_model.pb").predict(image((0, 0, 1, 127))[None])
    assert [(0, 0.996, [16, 0, 32, 16])] == content(found)


@pytest.mark.parametrize("weights", ["model", "model/saved_model.pb", "model\\"])
def test_a_saved_model_lies_in_a_folder_of_an_archive(tmp_path: Path, weights: str) -> None:
    saved_model(tmp_path / "model", gain=2.0)
    with zipfile.ZipFile(tmp_path / "model.dlpk", "w") as archive:
        for path in (tmp_path / "model").rglob("*"):
            archive.write(path, path.relative_to(tmp_path).as_posix())
    with zipfile.ZipFile(tmp_path / "model.dlpk") as archive:
        entries = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    shutil.rmtree(tmp_path / "model")
    network = detector(tmp_path, weights, ZipMembers(tmp_path / "model.dlpk", entries))
    (found,) = network.predict(image((0, 0, 1, 127))[None])
    assert [0] == found.labels.tolist()


def test_a_float_input_gets_normalised_pixels(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", name="input_tensor", dtype=tf.float32)
    network = detector(tmp_path, spec=InputSpec(scale=(0.5,), mean=(-10.0,)))
    (found,) = network.predict(image((1, 2, 0, 500), dtype=np.uint16)[None])
    assert [(1, 1.02, [0, 32, 16, 48])] == content(found)  # (500 * 0.5 + 10) / 255


def test_a_fixed_input_and_a_fixed_batch_are_kept(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", shape=(2, SIDE, SIDE, 3))
    network = detector(tmp_path)
    assert (SIDE, 2) == (network.traits.network_size, network.traits.max_batch)
    assert [EXPECTED] * 3 == [content(found) for found in network.predict(np.stack([TWO] * 3))]


def test_outputs_in_a_scope_are_found(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", scope="import/")
    assert EXPECTED == content(detector(tmp_path).predict(TWO[None])[0])


def test_the_count_of_objects_cuts_what_follows_off(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", extra=lambda scores: scores * 0.0 + 0.9)  # four scores, two of them for nothing
    (found,) = detector(tmp_path).predict(image((0, 0, 1, 255), (2, 3, 2, 204))[None])
    assert 2 == len(found)


def test_a_score_must_be_above_the_threshold(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", extra=lambda scores: tf.minimum(scores, 0.5))
    assert 0 == len(detector(tmp_path, threshold=0.5).predict(TWO[None])[0])


def test_what_overlaps_more_than_allowed_is_suppressed_once_more(tmp_path: Path) -> None:
    graph = tf.Graph()
    with graph.as_default():
        pixels = tf.compat.v1.placeholder(tf.uint8, (None, None, None, 3), "image_tensor")
        n = tf.shape(pixels)[0]
        boxes = tf.constant([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.4], [0.5, 0.5, 1.0, 1.0]])
        tf.tile(boxes[None], [n, 1, 1], name="detection_boxes")
        tf.tile(tf.constant([[0.7, 0.9, 0.6]]), [n, 1], name="detection_scores")
        tf.tile(tf.constant([[1.0, 1.0, 1.0]]), [n, 1], name="detection_classes")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    strict = detector(tmp_path, nms_overlap=0.5).predict(DARK[None])[0]
    assert [0.9, 0.6] == pytest.approx(strict.scores.tolist())
    shutil.rmtree(tmp_path / "unpacked")
    assert 3 == len(detector(tmp_path, nms_overlap=0.85).predict(DARK[None])[0])


# -- Labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 2, 3), {1: 0, 2: 1, 3: 2}),
        ((1, 3, 18), {1: 0, 3: 1, 18: 2}),  # a label map with gaps: 2 is something else
        ((2, 1), {1: 1, 2: 0}),
        ((0, 1), {1: 0, 2: 1}),  # graphs count from 1
        ((5, 5), {1: 0, 2: 1}),
        ((7, 9), {1: 0, 2: 1, 7: 0, 9: 1}),  # attributes rather than numbers of the graph, or both
    ],
)
def test_a_graphs_number_is_a_classs_value_or_place(values: tuple[int, ...], expected: dict[int, int]) -> None:
    assert expected == label_table([ModelClass(value, str(value), (0, 0, 0)) for value in values])


def test_objects_of_no_class_of_the_models_are_dropped(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", ids=(18, 4, 1))
    classes = (ModelClass(1, "person", (0, 0, 0)), ModelClass(18, "dog", (0, 0, 0)))
    (found,) = detector(tmp_path, classes=classes).predict(image((0, 0, 0, 255), (1, 1, 1, 250), (2, 2, 2, 240))[None])
    assert [(1, 1.0), (0, 0.941)] == [item[:2] for item in content(found)]


# -- Masks

RING = np.pad(np.pad(np.zeros((5, 5)), 5, constant_values=1.0), 0)
"""A box's mask of 15 x 15 with a hole of 5 x 5 in its middle."""


def test_masks_become_polygons_with_holes(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", mask=RING)
    network = detector(tmp_path)
    (found,) = network.predict(TWO[None])
    assert "polygon" == network.traits.geometry
    assert found.shapes is not None
    for shape, box, frame in zip(found.shapes, found.boxes, ([16, 0, 32, 16], [32, 48, 48, 64])):
        assert "Polygon" == shape.geom_type
        assert 1 == len(shape.interiors)
        assert shape.bounds == tuple(box)
        assert np.abs(np.array(shape.bounds) - frame).max() <= 1
        assert shapely.Polygon(shape.interiors[0]).centroid.distance(shapely.box(*frame).centroid) <= 1


def test_masks_are_put_into_their_boxes_as_the_api_does(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    mask, side = random.random((9, 7), np.float32), 40
    for box in ([0.1, 0.2, 0.73, 0.91], [0.0, 0.0, 1.0, 1.0], [0.4, 0.45, 0.5, 0.6]):
        low_y, low_x, high_y, high_x = box
        height, width = high_y - low_y, high_x - low_x
        inverse = [-low_y / height, -low_x / width, (1 - low_y) / height, (1 - low_x) / width]
        # What the API itself calls, see its reframe_box_masks_to_image_masks.
        whole = tf.image.crop_and_resize(mask[None, :, :, None], [inverse], [0], (side, side)).numpy()[0, :, :, 0]
        covered = mask_outline(mask, np.array(box), side)
        centres = shapely.points(*np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5))
        clear = np.abs(whole - 0.5) > 1e-4
        assert (shapely.contains(covered, centres) == (whole > 0.5))[clear].all()
        assert covered.is_valid


def test_masks_of_the_whole_image_are_taken_as_they_are(tmp_path: Path) -> None:
    mask = np.zeros((SIDE, SIDE))
    mask[10:20, 30:50] = mask[40:44, 2:5] = 0.9
    frozen_graph(tmp_path / "graph.pb", mask=mask)
    (found,) = detector(tmp_path).predict(image((0, 0, 1, 255))[None])
    assert found.shapes is not None
    assert shapely.union_all([shapely.box(30, 10, 50, 20), shapely.box(2, 40, 5, 44)]).equals(found.shapes[0])
    assert [[2, 10, 50, 44]] == found.boxes.tolist()


def test_an_object_whose_mask_is_empty_is_dropped(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", mask=np.full((15, 15), 0.4))
    assert 0 == len(detector(tmp_path).predict(TWO[None])[0])


def test_rectangles_are_given_where_they_are_asked_for(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb", mask=RING)
    network = detector(tmp_path, return_bboxes=True)
    (found,) = network.predict(TWO[None])
    assert EXPECTED == content(found)
    assert (None, "box") == (found.shapes, network.traits.geometry)


# -- Graphs that do more than calculate


def written(path: Path, graph: tf.Graph) -> None:
    path.write_bytes(graph.as_graph_def().SerializeToString())


def evil(canary: str) -> dict[str, Any]:
    """Give things that a graph may do on the way to its scores, by the operation that does it."""

    def write(scores: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(canary, "x")]):
            return tf.identity(scores)

    def read(scores: Any) -> Any:
        return scores + tf.cast(tf.equal(tf.io.read_file("/etc/hostname"), "x"), tf.float32)

    def look(scores: Any) -> Any:
        return scores + tf.cast(tf.size(tf.io.matching_files("/etc/*")), tf.float32)

    def tell(scores: Any) -> Any:
        with tf.control_dependencies([tf.print(scores, output_stream=f"file://{canary}")]):
            return tf.identity(scores)

    def python(scores: Any) -> Any:
        return tf.reshape(tf.compat.v1.py_func(lambda x: x, [scores], tf.float32), tf.shape(scores))

    def restore(scores: Any) -> Any:
        return scores + tf.raw_ops.RestoreV2(
            prefix="/tmp/other", tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
        )[0]  # fmt: skip

    def save(scores: Any) -> Any:
        operation = tf.raw_ops.SaveV2(prefix=canary, tensor_names=["x"], shape_and_slices=[""], tensors=[scores])
        with tf.control_dependencies([operation]):
            return tf.identity(scores)

    def table(scores: Any) -> Any:
        start = tf.lookup.TextFileInitializer("/etc/passwd", tf.string, 0, tf.int64, 1, delimiter=":")
        found = tf.lookup.StaticHashTable(start, 0).lookup(tf.constant("x"))
        return scores + tf.cast(found, tf.float32)

    def hidden(scores: Any) -> Any:
        @tf.function
        def inner(x: Any) -> Any:
            tf.io.write_file(canary, "x")
            return tf.cond(tf.reduce_sum(x) > 0.0, lambda: x, lambda: x + 1.0)

        return inner(scores)

    def branch(scores: Any) -> Any:
        peek = tf.function(lambda: tf.cast(tf.equal(tf.io.read_file("/etc/hostname"), "x"), tf.float32))
        zero = tf.function(lambda: tf.constant(0.0))
        return scores + tf.raw_ops.StatelessIf(
            cond=tf.reduce_sum(scores) > 1e9, input=[], Tout=[tf.float32], then_branch=peek.get_concrete_function(),
            else_branch=zero.get_concrete_function(),
        )[0]  # fmt: skip

    return {
        "WriteFile": write, "ReadFile": read, "MatchingFiles": look, "PrintV2": tell, "PyFunc": python,
        "RestoreV2": restore, "SaveV2": save, "LookupTableFindV2": table, "WriteFile ": hidden, "ReadFile ": branch,
    }  # fmt: skip


@pytest.mark.parametrize("operation", list(evil("")))
def test_a_graph_that_reaches_beyond_numbers_is_refused_by_name(tmp_path: Path, operation: str) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    frozen_graph(tmp_path / "graph.pb", extra=evil(str(canary))[operation])
    with pytest.raises(ModelUnsupportedError, match=f"the operation '{operation.strip()}'"):
        detector(tmp_path)
    assert "untouched" == canary.read_text()


def test_what_the_outputs_do_not_depend_on_never_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    graph = tf.Graph()
    with graph.as_default():
        outputs = bright_cells(tf.compat.v1.placeholder(tf.uint8, (None, None, None, 3), "image_tensor"))
        for key, tensor in outputs.items():
            tf.identity(tensor, key)
        tf.io.write_file(str(canary), "x")
    written(tmp_path / "graph.pb", graph)
    assert EXPECTED == content(detector(tmp_path).predict(TWO[None])[0])
    assert not canary.exists()


def test_an_evil_saved_model_is_refused_before_its_initialiser_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        pixels = v1.placeholder(tf.uint8, (None, None, None, 3), "image_tensor")
        variable = v1.get_variable("gain", initializer=1.0)
        outputs = bright_cells(pixels, variable)
        session.run(v1.global_variables_initializer())
        start = tf.io.write_file(str(canary), "x")
        signature = v1.saved_model.predict_signature_def({"inputs": pixels}, outputs)
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature}, main_op=start)
        builder.save()
    (found,) = detector(tmp_path / "model", "saved_model.pb").predict(
        TWO[None]
    )  # it runs, and its initialiser does not
    assert EXPECTED == content(found)
    assert not canary.exists()


def add_text(nodes: Any, name: str, op: str, inputs: tuple[str, ...] = (), key: str = "T", value: bytes = b"") -> None:
    """Add a node of texts to a graph or a function."""
    node = nodes.add(name=name, op=op, input=inputs)
    node.attr[key].type = 7
    if value:
        node.attr["value"].tensor.dtype = 7
        node.attr["value"].tensor.string_val.append(value)


def constant(nodes: Any) -> str:
    add_text(nodes, "elsewhere", "Const", key="dtype", value=b"/tmp/elsewhere")
    return "elsewhere"


def variable(nodes: Any) -> str:
    add_text(nodes, "text", "VariableV2", key="dtype")
    nodes[-1].attr["shape"].shape.SetInParent()
    add_text(nodes, "assigned", "Assign", ("text", constant(nodes)))
    add_text(nodes, "read", "Identity", ("text", "^assigned"))
    return "read"


def unassigned(nodes: Any) -> str:
    variable(nodes)
    add_text(nodes, "other", "Identity", ("text",))
    return "other"


def controlled(nodes: Any) -> str:
    add_text(nodes, "later", "Identity", ("save/Const", f"^{constant(nodes)}"))
    return "later"


def packed(nodes: Any) -> str:
    add_text(nodes, "packed", "Pack", (constant(nodes),))
    nodes[-1].attr["N"].i = 1
    add_text(nodes, "plain", "Reshape", ("packed", constant(nodes)))
    return "plain"


def circle(nodes: Any) -> str:
    add_text(nodes, "one", "Identity", ("two",))
    add_text(nodes, "two", "Identity", ("one",))
    return "one"


def output_of_others(nodes: Any) -> str:
    return "save/Const:1"


FILE_NAMES = [constant, variable, unassigned, controlled, packed, circle, output_of_others]


def changed(folder: Path, change: Any) -> None:
    """Change the graph of a SavedModel."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    model = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (graph,) = [meta.graph_def for meta in model.meta_graphs]
    change(graph)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("give_name", FILE_NAMES)
def test_variables_are_read_from_the_models_own_files_only(tmp_path: Path, give_name: Any) -> None:
    def change(graph: Any) -> None:
        name = give_name(graph.node)
        for item in graph.node:
            if item.op == "RestoreV2":
                item.input[0] = name

    old_saved_model(tmp_path / "model")
    changed(tmp_path / "model", change)
    with pytest.raises(ModelUnsupportedError, match=r"'RestoreV2'.*reads other files|keeps texts in a variable"):
        detector(tmp_path / "model", "saved_model.pb")


def test_variables_of_texts_are_refused(tmp_path: Path) -> None:
    def change(graph: Any) -> None:
        variable(graph.node)
        (restore,) = [node for node in graph.node if node.name == "save/restore_all"]
        restore.input.append("^assigned")

    old_saved_model(tmp_path / "model")
    changed(tmp_path / "model", change)
    with pytest.raises(ModelUnsupportedError, match="keeps texts in a variable"):
        detector(tmp_path / "model", "saved_model.pb")


def restoring(graph: Any) -> Any:
    """Give the function that reads the variables."""
    (found,) = [item for item in graph.library.function if "traced_restore" in item.signature.name]
    return found


def in_function(graph: Any) -> None:
    function = restoring(graph)
    name = f"{constant(function.node_def)}:output:0"
    for node in function.node_def:
        if node.op == "RestoreV2":
            node.input[0] = name


def at_call(graph: Any) -> None:
    name = constant(graph.node)
    for node in graph.node:
        if "f" in node.attr and node.attr["f"].func.name == restoring(graph).signature.name:
            node.input[0] = name


def at_one_of_two_calls(graph: Any) -> None:
    name = constant(graph.node)
    (call,) = [
        node for node in graph.node if "f" in node.attr and node.attr["f"].func.name == restoring(graph).signature.name
    ]
    other = graph.node.add()
    other.CopyFrom(call)
    other.name = "other_call"
    other.input[0] = name
    call.input.append("^other_call")


@pytest.mark.parametrize("change", [in_function, at_call, at_one_of_two_calls])
def test_functions_read_from_the_models_own_files_only(tmp_path: Path, change: Any) -> None:
    saved_model(tmp_path / "model")
    changed(tmp_path / "model", change)
    with pytest.raises(ModelUnsupportedError, match=r"'RestoreV2'.*reads other files"):
        detector(tmp_path / "model", "saved_model.pb")


def test_a_path_that_identities_hand_on_is_ours_still(tmp_path: Path) -> None:
    def change(graph: Any) -> None:
        add_text(graph.node, "same", "Identity", ("save/Const",))
        for node in graph.node:
            if node.op == "RestoreV2":
                node.input[0] = "same:0"

    old_saved_model(tmp_path / "model", gain=2.0)
    changed(tmp_path / "model", change)
    (found,) = detector(tmp_path / "model", "saved_model.pb").predict(image((0, 0, 1, 127))[None])
    assert [(0, 0.996, [16, 0, 32, 16])] == content(found)


# -- What does not fit


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"without": ("detection_boxes", "detection_classes")}, ModelUnsupportedError,
         "no output named detection_boxes or detection_classes.*detection_scores"),
        ({"shape": (None, 300, 400, 3)}, ModelUnsupportedError, "400 x 300"),
        ({"dtype": tf.int64}, ModelUnsupportedError, "int64"),
        ({"shape": (None, None, 3)}, ModelUnsupportedError, "'image_tensor:0' takes 3 axes"),
    ],
)  # fmt: skip
def test_graphs_that_do_not_fit_are_refused(
    tmp_path: Path, how: dict[str, Any], error: type[ModelError], message: str
) -> None:
    if how.get("shape") == (None, None, 3):
        graph = tf.Graph()
        with graph.as_default():
            flat = tf.compat.v1.placeholder(tf.uint8, (None, None, 3), "image_tensor")
            for key, tensor in bright_cells(flat[None]).items():
                tf.identity(tensor, key)
        written(tmp_path / "graph.pb", graph)
    else:
        frozen_graph(tmp_path / "graph.pb", **how)
    with pytest.raises(error, match=message):
        detector(tmp_path)


def test_other_bands_than_the_models_are_refused(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb")
    with pytest.raises(ModelIncompatibleError, match="3 channels, and its definition names 4 bands"):
        detector(tmp_path, spec=InputSpec(bands=(0, 1, 2, 3)))


def test_pixels_of_more_than_8_bits_do_not_go_into_a_graph_for_8(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb")
    with pytest.raises(ModelIncompatibleError, match="8-bit pixels, and the raster's are uint16"):
        detector(tmp_path).predict(image(dtype=np.uint16)[None])


def test_a_graph_that_wants_more_than_images_is_refused(tmp_path: Path) -> None:
    def with_switch(scores: Any) -> Any:
        return scores * tf.compat.v1.placeholder(tf.float32, (), "is_training")

    frozen_graph(tmp_path / "graph.pb", extra=with_switch)
    with pytest.raises(ModelUnsupportedError, match=r"takes .*is_training"):
        detector(tmp_path)


def test_a_graph_with_variables_but_no_files_of_them_is_refused(tmp_path: Path) -> None:
    def with_variable(scores: Any) -> Any:
        return scores * tf.compat.v1.get_variable("gain", initializer=1.0)

    frozen_graph(tmp_path / "graph.pb", extra=with_variable)
    with pytest.raises(ModelUnsupportedError, match=r"variables \('gain'\)"):
        detector(tmp_path)


@pytest.mark.parametrize("data", [b"", b"no graph at all", b"\x08\x01rubbish", b"\x0a\xff\xff\xff\xff\x0f"])
def test_what_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "graph.pb").write_bytes(data)
    with pytest.raises((ModelPackageError, ModelUnsupportedError), match="graph"):
        detector(tmp_path)


def test_a_saved_model_without_its_variables_is_refused(tmp_path: Path) -> None:
    saved_model(tmp_path)
    shutil.rmtree(tmp_path / "variables")
    with pytest.raises(ModelPackageError, match="folder 'variables' is missing"):
        detector(tmp_path, "saved_model.pb")


def test_damaged_variables_are_refused(tmp_path: Path) -> None:
    saved_model(tmp_path)
    (tmp_path / "variables" / "variables.index").write_bytes(b"rubbish")
    with pytest.raises(ModelPackageError, match="variables cannot be read"):
        detector(tmp_path, "saved_model.pb")


def test_a_gpu_that_tensorflow_does_not_see_is_refused(tmp_path: Path) -> None:
    frozen_graph(tmp_path / "graph.pb")
    with pytest.raises(DeviceUnavailableError, match="'cuda:7'"):
        detector(tmp_path, settings=DetectorSettings("cuda:7"))


def test_where_the_library_is_missing_the_way_to_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen_graph(tmp_path / "graph.pb")
    monkeypatch.setattr(tensorflow_detector, "find_spec", lambda name: None)
    with pytest.raises(BackendMissingError) as caught:
        detector(tmp_path)
    assert "Settings > Options > Kestrel, 'Install TensorFlow'" in caught.value.hint


ALONE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kestrel.tests.fixtures.runs import run
result = run(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], arguments={"threshold": 0.1})
print(len(result), result.summary["geometry"], "tensorflow" in sys.modules, {"torch", "triton"} & set(sys.modules))
"""


@pytest.mark.slow
def test_a_run_never_loads_torch_which_would_not_bear_tensorflow_beside_it(tmp_path: Path, repository: Path) -> None:
    mask = np.ones((9, 9))
    mask[3:6, 3:6] = 0
    frozen_graph(tmp_path / "graph.pb", mask=mask)
    model = tmp_path / "model.emd"
    model.write_text(json.dumps({**tensorflow_emd(), "ModelType": "InstanceDetection"}), encoding="utf-8")
    image = repository / "resources" / "demo" / "OSBS_029.tif"
    places = [repository / "build" / "plugins", tmp_path / "job", image, model]
    done = subprocess.run([sys.executable, "-c", ALONE, *map(str, places)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("polygon True set()"), done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 0
