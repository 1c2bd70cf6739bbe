"""Detectors of transformers, exported to ONNX by torch and opened bare: the library's own objects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import DetectorSettings
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.overrides import overruled
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.framework_exports import export_transformer
from kestrel.tests.fixtures.huggingface import NAMES, SIDE, make_network

PROCESSORS = {
    "detr": "DetrImageProcessor", "yolos": "YolosImageProcessor", "rt_detr": "RTDetrImageProcessor",
    "d_fine": "RTDetrImageProcessor",
}  # fmt: skip
"""Of RF-DETR the exporter cannot do the antialiased resize; its outputs stand in test_layouts.py."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROCESSORS)
def test_an_export_opened_bare_gives_the_librarys_own_objects(tmp_path: Path, kind: str) -> None:
    import transformers

    network = make_network(kind)
    path = export_transformer(network, tmp_path / "model.onnx", SIDE)
    (tmp_path / "model.txt").write_text("\n".join(NAMES.values()))
    image = np.random.default_rng(5).integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8)
    with torch.inference_mode():
        raw = network(torch.from_numpy(image[None].astype(np.float32) / 255))
        post_process = getattr(transformers, PROCESSORS[kind]).post_process_object_detection
        (every,) = post_process(None, raw, threshold=0.0, target_sizes=[(SIDE, SIDE)])
    threshold = float(every["scores"].sort().values[-9:-7].mean())
    package = open_package(str(path))
    values = resolve_arguments(package.definition, {"threshold": threshold, "scale": "0-1"}).values
    package = replace(package, definition=overruled(package.definition, values))
    (tmp_path / "unpacked").mkdir()
    settings = DetectorSettings("cpu", 1, sample=lambda size, place: image)
    (found,) = load_detector(package, values, settings, tmp_path / "unpacked").predict(image[None])
    assert list(NAMES.values()) == [item.name for item in package.definition.classes]
    expected = {key: value[every["scores"] > threshold].numpy() for key, value in every.items()}
    assert len(expected["scores"]) == len(found) == 8
    _compare(expected, found)


def _compare(expected: dict[str, np.ndarray], found: Any) -> None:
    for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"]):
        alike = (found.labels == label) & (np.abs(found.scores - score) < 1e-3)
        assert alike.any()
        assert np.abs(found.boxes[alike] - box).max(axis=1).min() < 0.5
