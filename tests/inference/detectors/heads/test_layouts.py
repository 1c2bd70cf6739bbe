"""Layouts of outputs that no framework at hand writes: bare graphs that always give the same, read as documented."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kestrel.inference.detections import Detections
from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.errors import InferenceError, ModelIncompatibleError, ModelUnsupportedError
from kestrel.inference.merge import suppress_once
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.overrides import overruled
from kestrel.inference.models.package import open_package

SIDE = 64
IMAGE = np.zeros((1, 3, SIDE, SIDE), np.uint8)
BOXES = np.array([[8, 16, 24, 48], [30, 4, 60, 20], [1, 1, 3, 3]], np.float32)
"""x0 y0 x1 y1, pixels."""
SCORES = np.array([0.9, 0.6, 0.1], np.float32)
LABELS = np.array([1, 0, 2], np.int64)
MASK = np.zeros((3, SIDE, SIDE), np.float32)
MASK[0, 20:40, 10:20] = MASK[1, 5:10, 31:59] = 0.9


def write(
    path: Path, shape: tuple[Any, ...] = (1, 3, SIDE, SIDE), dtype: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None, **outputs: Any,
) -> Path:  # fmt: skip
    """Write a network that gives the same for every image."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
             for name, value in arrays.items()]  # fmt: skip
    declared = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in arrays.items()]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("image", dtype, shape)], declared)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, str(path))
    return path


def load(path: Path, names: tuple[str, ...] = ("Tree", "Car", "House"), **options: Any) -> Detector:
    """Open a bare graph with a list of classes beside it, or a definition with some options."""
    target = path.parent / f"unpacked{len(list(path.parent.iterdir()))}"
    target.mkdir()
    if options:
        detector = {"kind": "onnx", "weights": path.name, **options}
        classes = [{"name": name} for name in names]
        definition = {"kestrel_definition": 1, "name": "m", "detector": detector, "classes": classes}
        path = path.with_suffix(".json")
        path.write_text(json.dumps(definition))
    else:
        path.with_suffix(".txt").write_text("\n".join(names))
    package = open_package(str(path))
    values = resolve_arguments(package.definition, {"threshold": 0.3, "nms_overlap": 0.5}).values
    return load_detector(package, values, DetectorSettings("cpu", 1), target)


def found_in(path: Path, **options: Any) -> Detections:
    (found,) = load(path, **options).predict(IMAGE)
    return found


def expect_two(found: Detections, labels: tuple[int, int] = (1, 0)) -> None:
    assert np.allclose(BOXES[:2], found.boxes, atol=1e-3)
    assert np.allclose(SCORES[:2], found.scores, atol=1e-3)
    assert list(labels) == found.labels.tolist()


def centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def logit(values: np.ndarray) -> np.ndarray:
    return np.log(values / (1 - values)).astype(np.float32)


FRACTIONS = BOXES / SIDE
OF_TENSORFLOW = FRACTIONS[:, [1, 0, 3, 2]]
PER_CLASS = np.full((3, 3), 0.01, np.float32)
PER_CLASS[[0, 1, 2], LABELS] = SCORES


LAYOUTS: dict[str, dict[str, Any]] = {
    "TensorFlow's Object Detection API": {
        "detection_boxes": OF_TENSORFLOW[None], "detection_scores": SCORES[None],
        "detection_classes": (LABELS + 1.0).astype(np.float32)[None], "num_detections": np.array([3.0], np.float32),
    },
    "TensorFlow Lite's post-processing": {
        "TFLite_Detection_PostProcess": OF_TENSORFLOW[None],
        "TFLite_Detection_PostProcess:1": LABELS.astype(np.float32)[None],
        "TFLite_Detection_PostProcess:2": SCORES[None],
        "TFLite_Detection_PostProcess:3": np.array([3.0], np.float32),
    },
    "MMDeploy": {"dets": np.concatenate([BOXES, SCORES[:, None]], axis=1)[None], "labels": LABELS[None]},
    "TensorRT's EfficientNMS": {
        "num_dets": np.array([[2]], np.int32), "det_boxes": BOXES[None], "det_scores": SCORES[None],
        "det_classes": LABELS.astype(np.int32)[None],
    },
    "RF-DETR": {"dets": centred(FRACTIONS)[None], "labels": logit(PER_CLASS)[None]},
    "rows": {"output0": np.concatenate([BOXES, SCORES[:, None], LABELS[:, None]], 1).astype(np.float32)[None]},
    "rows with the image's number": {
        "output": np.concatenate([np.zeros((3, 1)), BOXES, LABELS[:, None], SCORES[:, None]], 1).astype(np.float32),
    },
    "three outputs without a name": {"a": BOXES, "b": LABELS, "c": SCORES},
    "DETR in one table": {"output0": np.concatenate([centred(FRACTIONS), PER_CLASS], axis=1)[None]},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised_and_read(tmp_path: Path, name: str) -> None:
    expect_two(found_in(write(tmp_path / "model.onnx", **LAYOUTS[name])))


def test_a_count_ends_the_list(tmp_path: Path) -> None:
    outputs = {**LAYOUTS["TensorRT's EfficientNMS"], "num_dets": np.array([[1]], np.int32)}
    assert 1 == len(found_in(write(tmp_path / "model.onnx", **outputs)))


def test_detr_s_last_class_is_no_object(tmp_path: Path) -> None:
    logits = np.full((3, 4), -4, np.float32)
    logits[[0, 1, 2], [1, 0, 3]] = (5, 3, 6)
    detector = load(write(tmp_path / "model.onnx", logits=logits[None], pred_boxes=centred(FRACTIONS)[None]))
    (found,) = detector.predict(IMAGE)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = raised / raised.sum(axis=1, keepdims=True)
    assert np.allclose(probabilities[[0, 1], [1, 0]], found.scores, atol=1e-5)
    assert ([1, 0], 3) == (found.labels.tolist(), detector.traits.max_detections)
    assert np.allclose(BOXES[:2], found.boxes, atol=1e-3)
    assert any("softmax" in note and "last of its 4 classes" in note for note in detector.traits.notes)


def test_candidates_of_an_ssd_are_suppressed_and_the_background_left_out(tmp_path: Path) -> None:
    boxes = np.concatenate([np.repeat(FRACTIONS[:1], 500, axis=0), np.repeat(FRACTIONS[1:2], 700, axis=0)])
    boxes = boxes.astype(np.float32) + np.linspace(0, 0.001, 1200, dtype=np.float32)[:, None]
    scores = np.tile(np.array([[0.9, 0.05, 0.03, 0.02]], np.float32), (1200, 1))
    scores[0], scores[1], scores[600] = (0.05, 0.03, 0.9, 0.02), (0.15, 0.03, 0.8, 0.02), (0.3, 0.6, 0.05, 0.05)
    detector = load(write(tmp_path / "model.onnx", scores=scores[None], boxes=boxes[None]))
    (found,) = detector.predict(IMAGE)
    assert sorted(found.labels.tolist()) == [0, 1]
    assert np.allclose(sorted(found.scores), [0.6, 0.9])
    assert any("first of its 4 classes" in note and "fractions" in note for note in detector.traits.notes)


def test_masks_of_the_whole_image_become_outlines(tmp_path: Path) -> None:
    found = found_in(write(tmp_path / "model.onnx", boxes=BOXES, labels=LABELS, scores=SCORES, masks=MASK[:, None]))
    assert found.shapes is not None
    assert [(10, 20, 20, 40), (31, 5, 59, 10)] == [shape.bounds for shape in found.shapes]


def test_small_masks_fill_their_boxes(tmp_path: Path) -> None:
    masks = np.zeros((1, 3, 8, 8), np.float32)
    masks[0, :, :, :4] = 1  # the left half of each box
    outputs = {**LAYOUTS["TensorFlow's Object Detection API"], "detection_masks": masks}
    found = found_in(write(tmp_path / "model.onnx", **outputs))
    assert found.shapes is not None
    assert [(8, 16, 16, 48), (30, 4, 45, 20)] == [shape.bounds for shape in found.shapes]


def raw_yolox(side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Give YOLOX's numbers for two objects, undecoded and decoded."""
    cells = [(s, y, x) for s in (8, 16, 32) for y in range(side // s) for x in range(side // s)]
    raw = np.zeros((len(cells), 8), np.float32)
    raw[:, 4:] = 0.001
    for box, score, label in zip(BOXES[:2], SCORES, LABELS):
        (cx, cy, w, h), stride = centred(box[None])[0], 8
        index = cells.index((stride, int(cy // stride), int(cx // stride)))
        raw[index, :4] = (
            cx / stride - cx // stride,
            cy / stride - cy // stride,
            np.log(w / stride),
            np.log(h / stride),
        )
        raw[index, 4], raw[index, 5 + label] = 1.0, score
    strides = np.array([c[0] for c in cells])[:, None]
    corner = np.array([(c[2], c[1]) for c in cells])
    decoded = np.concatenate([(raw[:, :2] + corner) * strides, np.exp(raw[:, 2:4]) * strides, raw[:, 4:]], axis=1)
    return raw, decoded.astype(np.float32)


@pytest.mark.parametrize(("index", "head"), [(0, "yolox"), (1, "yolov5")])
def test_raw_and_decoded_boxes_are_told_apart_by_their_values(tmp_path: Path, index: int, head: str) -> None:
    detector = load(write(tmp_path / "model.onnx", output=raw_yolox()[index][None]))
    (found,) = detector.predict(IMAGE)
    order = np.argsort(-found.scores)
    expect_two(found.take(order))
    assert any(f"read as '{head}'" in note and "argument head" in note for note in detector.traits.notes)


@pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_channels_may_come_last_and_pixels_in_any_type(tmp_path: Path, dtype: int) -> None:
    shape = ("n", SIDE, SIDE, 3)
    path = write(tmp_path / "model.onnx", shape, dtype, **LAYOUTS["MMDeploy"])
    expect_two(found_in(path))


def test_a_definition_s_words_count_more_than_what_the_outputs_look_like(tmp_path: Path) -> None:
    corners = np.concatenate([BOXES[:, :2], BOXES[:, 2:] - BOXES[:, :2]], axis=1) / SIDE
    path = write(tmp_path / "model.onnx", boxes=corners[None], scores=SCORES[None], labels=LABELS[None] + 1)
    expect_two(found_in(path, head="boxes", box_format="xywh", box_units="fractions", label_offset=1))


@pytest.mark.parametrize(
    ("outputs", "error", "told"),
    [
        ({"heat": np.zeros((1, 3, 16, 16), np.float32)}, ModelUnsupportedError, r"heat float32 \[1, 3, 16, 16\]"),
        ({"probabilities": np.zeros((1, 1000), np.float32)}, ModelUnsupportedError, "probabilities"),
        (
            {"a": np.zeros((1, 4, 4, 9), np.float32), "b": np.zeros((1, 8, 8, 9), np.float32)},
            ModelUnsupportedError,
            "b",
        ),
    ],
)
def test_foreign_outputs_are_refused_with_what_was_found(
    tmp_path: Path, outputs: dict[str, Any], error: type[InferenceError], told: str
) -> None:
    with pytest.raises(error, match=told):
        load(write(tmp_path / "model.onnx", **outputs))


def test_a_table_that_fits_no_grid_is_no_yolo(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", output=np.zeros((1, 7, 1234), np.float32))
    with pytest.raises(ModelIncompatibleError, match="1234 candidates"):
        load(path, head="yolov8").predict(IMAGE)


def test_what_is_no_number_is_handed_on_to_be_counted(tmp_path: Path) -> None:
    boxes = BOXES.copy()
    boxes[1, 2] = np.nan
    found = found_in(write(tmp_path / "model.onnx", boxes=boxes, labels=LABELS, scores=SCORES))
    assert [True, False] == np.isfinite(found.boxes).all(axis=1).tolist()


def test_a_second_input_is_refused_with_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", **LAYOUTS["rows"])
    model = onnx.load(str(path))
    model.graph.input.append(helper.make_tensor_value_info("prompt", TensorProto.FLOAT, [1, 3, 8, 8]))
    onnx.save(model, str(path))
    with pytest.raises(ModelUnsupportedError, match=r"image float32 \[1, 3, 64, 64\], prompt float32"):
        load(path)


# -- Real models, with what is known of them ---------------------------------------------------------------------------


def real(shared_data: Path, tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.write_bytes((shared_data / "models" / name).read_bytes())
    return path


@pytest.mark.shared_data
def test_ultraface_finds_the_faces_of_the_photo(shared_data: Path, tmp_path: Path) -> None:
    import onnxruntime
    import rasterio
    import torch
    import torchvision

    from kestrel.inference.preprocess import Preprocess
    from kestrel.inference.tiling import Window

    path = real(shared_data, tmp_path, "ultraface_RFB-320.onnx")
    definition = {
        "kestrel_definition": 1, "name": "Faces", "classes": [{"name": "face"}],
        "detector": {"kind": "onnx", "weights": path.name},
        "input": {"mean": 127, "std": 128, "resize": "stretch"},
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(definition))
    package = open_package(str(path.with_suffix(".json")))
    values = resolve_arguments(package.definition, {"threshold": 0.6, "nms_overlap": 0.3}).values
    detector = load_detector(package, values, DetectorSettings("cpu", 1), tmp_path)
    with rasterio.open(shared_data / "models" / "sample_people.jpg") as dataset:
        photo = dataset.read()
    window = Window(0, 0, photo.shape[2], photo.shape[1])
    assert (320, 240) == (detector.traits.network_size, detector.traits.network_height)
    preprocess = Preprocess(320, 240)
    image = preprocess.to_network(photo, window)
    (found,) = detector.predict(image[None])
    faces = preprocess.to_raster(found, window)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    fed = ((image.astype(np.float32) - 127) / 128)[None]
    scores, boxes = onnxruntime.InferenceSession(str(path), options).run(None, {"input": fed})
    index = np.flatnonzero(scores[0, :, 1] > 0.6)
    tensors = (torch.from_numpy(boxes[0, index]), torch.from_numpy(scores[0, index, 1]))
    expected = index[torchvision.ops.nms(*tensors, 0.3).numpy()]
    assert len(expected) == len(faces)
    # 47 are known; with the resampling that makes the small image it is one more or less.
    assert 46 <= len(faces) <= 48
    order = np.argsort(-faces.scores)
    assert np.allclose(boxes[0, expected] * [720, 478, 720, 478], faces.boxes[order], atol=0.5)
    assert np.allclose(scores[0, expected, 1], faces.scores[order], atol=1e-3)


@pytest.mark.shared_data
def test_yolox_gives_the_boxes_of_its_own_formulae(shared_data: Path, tmp_path: Path) -> None:
    import onnxruntime
    import torch
    import torchvision

    path = real(shared_data, tmp_path, "yolox_nano.onnx")
    image = np.random.default_rng(1).integers(0, 256, (1, 3, 416, 416)).astype(np.uint8)
    image[:, :, 100:300, 100:300] = 90
    (raw,) = onnxruntime.InferenceSession(str(path)).run(None, {"images": image[:, ::-1].astype(np.float32)})
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(416 // s) for x in range(416 // s)]
    corner, strides = np.array(cells)[:, :2], np.array(cells)[:, 2:]
    middle, side = (raw[0, :, :2] + corner) * strides, np.exp(raw[0, :, 2:4]) * strides
    boxes, scores = np.concatenate([middle - side / 2, middle + side / 2], axis=1), raw[0, :, 4:5] * raw[0, :, 5:]
    best, labels = scores.max(axis=1), scores.argmax(axis=1)
    threshold = float(np.sort(best)[-40])
    index = np.flatnonzero(best > threshold)
    tensors = [torch.from_numpy(values[index].astype(np.float64)) for values in (boxes, best, labels)]
    expected = index[torchvision.ops.batched_nms(*tensors, 0.45).numpy()]

    package = open_package(str(path))
    values = resolve_arguments(package.definition, {"threshold": threshold}).values
    settings = DetectorSettings("cpu", 1, sample=lambda size, place: image[0])
    (found,) = load_detector(package, values, settings, tmp_path).predict(image)
    kept = suppress_once(found, 0.45)
    assert len(expected) == len(kept) > 5
    order = np.argsort(-kept.scores)
    assert np.allclose(boxes[expected], kept.boxes[order], atol=0.5)
    assert np.allclose(best[expected], kept.scores[order], atol=1e-3)


# -- What a trial tile must not get wrong ------------------------------------------------------------------------------


def test_a_trial_tile_without_objects_decides_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    empty = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64), "scores": np.zeros(0, np.float32)}
    detector = load(write(tmp_path / "model.onnx", **empty))
    assert 0 == len(detector.predict(IMAGE)[0])
    # torchvision counts from the background.
    assert any("counted from 1" in note for note in detector.traits.notes)


@pytest.mark.parametrize(("factor", "expected"), [(1, [0]), (0, list(range(9)))])
def test_a_tile_with_objects_is_looked_for_until_there_is_one(tmp_path: Path, factor: int, expected: list[int]) -> None:
    path = write(tmp_path / "model.onnx", output0=LAYOUTS["rows"]["output0"] * np.float32(factor))
    places: list[int] = []

    def sample(size: Any, place: int) -> np.ndarray:
        places.append(place)
        return IMAGE[0]

    path.with_suffix(".txt").write_text("Tree\nCar\nHouse")
    package = open_package(str(path))
    values = resolve_arguments(package.definition, {"threshold": 0.3}).values
    (tmp_path / "unpacked").mkdir()
    load_detector(package, values, DetectorSettings("cpu", 1, sample=sample), tmp_path / "unpacked")
    assert expected == places


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("strongest", [0, -1])
def test_sigmoids_have_no_background_whichever_class_is_the_strongest(
    tmp_path: Path, n_classes: int, strongest: int
) -> None:
    logits = np.full((1, 300, n_classes), -6, np.float32)
    logits[0, :, strongest] = -3
    logits[0, 7, 0], logits[0, 9, n_classes - 1] = 3.0, 2.0
    boxes = np.tile(centred(FRACTIONS[:1]), (1, 300, 1))
    path = write(tmp_path / "model.onnx", logits=logits, pred_boxes=boxes)
    (found,) = load(path, names=("Tree", "Car", "House")[:n_classes]).predict(IMAGE)
    assert sorted([0, n_classes - 1]) == sorted(found.labels.tolist())


@pytest.mark.parametrize("n_classes", [1, 2])
def test_rf_detr_keeps_its_classes_though_it_has_a_column_more(tmp_path: Path, n_classes: int) -> None:
    logits = np.full((1, 300, n_classes + 1), -5, np.float32)
    logits[0, :4, 0] = 2.0
    boxes = np.tile(centred(FRACTIONS[:1]), (1, 300, 1))
    path = write(tmp_path / "model.onnx", dets=boxes, labels=logits)
    (found,) = load(path, names=("Tree", "Car")[:n_classes]).predict(IMAGE)
    assert [0] * 4 == found.labels.tolist()


def test_rows_at_a_size_that_they_would_fill_a_grid_of_are_still_rows(tmp_path: Path) -> None:
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, 0] = (10, 20, 60, 80, 0.9, 0)
    path = write(tmp_path / "model.onnx", (1, 3, 320, 320), output0=rows)
    (found,) = load(path, names=("Tree",)).predict(np.zeros((1, 3, 320, 320), np.uint8))
    assert [[10, 20, 60, 80]] == found.boxes.tolist()


@pytest.mark.parametrize("name", ["class_idx", "pred_classes", "category_ids", "whatever"])
def test_classes_are_found_whatever_their_output_is_called(tmp_path: Path, name: str) -> None:
    outputs = {"boxes": BOXES[None], "scores": SCORES[None], name: LABELS[None]}
    expect_two(found_in(write(tmp_path / "model.onnx", **outputs)))


def test_raw_maps_beside_the_table_are_passed_over(tmp_path: Path) -> None:
    raw = {f"map{n}": np.zeros((1, 3, n, n, 8), np.float32) for n in (8, 4, 2)}
    found = found_in(write(tmp_path / "model.onnx", output=raw_yolox()[1][None], **raw))
    assert 2 == len(found)


def test_scores_of_four_classes_are_not_taken_for_boxes(tmp_path: Path) -> None:
    scores = np.full((1, 1200, 4), 0.01, np.float32)
    scores[0, 5, 2] = 0.9
    boxes = np.tile(BOXES[:1], (1200, 1))[None]
    path = write(tmp_path / "model.onnx", a=scores, b=boxes)
    (found,) = load(path, names=("a", "b", "c", "d")).predict(IMAGE)
    assert [2] == found.labels.tolist()
    assert np.allclose(BOXES[:1], found.boxes)


@pytest.mark.parametrize(("head", "n"), [("rows", 5), ("rows-obb", 6)])
def test_a_head_that_reads_more_numbers_than_there_are_is_refused(tmp_path: Path, head: str, n: int) -> None:
    path = write(tmp_path / "model.onnx", output=np.ones((1, 40, n), np.float32))
    with pytest.raises(ModelIncompatibleError, match=f"has {n} numbers in a row"):
        load(path, head=head).predict(IMAGE)


def test_a_stated_head_counts_classes_that_nobody_named(tmp_path: Path) -> None:
    table = np.zeros((1, 336, 84), np.float32)
    table[0, 3, :4], table[0, 3, 4 + 7] = (20, 20, 10, 10), 0.9
    path = write(tmp_path / "model.onnx", (1, 3, 128, 128), output=table)
    package = open_package(str(path))
    values = resolve_arguments(package.definition, {"threshold": 0.3, "head": "yolov8"}).values
    package = replace(package, definition=overruled(package.definition, values))
    (tmp_path / "unpacked").mkdir()
    image = np.zeros((1, 3, 128, 128), np.uint8)
    (found,) = load_detector(package, values, DetectorSettings("cpu", 1), tmp_path / "unpacked").predict(image)
    assert [7] == found.labels.tolist()
