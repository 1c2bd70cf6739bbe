"""The networks that are trained here are the ones that Kestrel runs: same weights, same boxes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import DetectorSettings
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package

TRAINING = Path(__file__).resolve().parents[2] / "training"


@pytest.fixture(scope="module")
def families() -> Iterator[Any]:
    """The script, imported as it imports its own modules."""
    sys.path.insert(0, str(TRAINING))
    yield importlib.import_module("arcgis_families")
    sys.path.remove(str(TRAINING))


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Give a network whose running means and variances are those of a picture, so that its outputs are of use."""
    generator = torch.Generator().manual_seed(3)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, 256, 256, generator=generator))
        for name, parameter in network.named_parameters():
            if name.endswith(("oconv1.bias", "classifier.4.bias")):
                parameter.fill_(0.5)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssd", "retinanet"])
def test_a_package_of_a_trained_network_gives_that_networks_boxes(families: Any, name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = randomised(families.NETWORKS[name]())
    package = open_package(str(families.write_package(name, network, tmp_path)))
    given = {"threshold": 0.5, "nms_overlap": 0.4, **({"box_decoding": "textbook"} if name == "retinanet" else {})}
    arguments = resolve_arguments(package.definition, given).values
    detector = load_detector(package, arguments, DetectorSettings("cpu", 2), tmp_path)
    picture = np.random.default_rng(5).integers(0, 256, (1, 3, 256, 256), dtype=np.uint8)
    (found,) = detector.predict(picture)
    with torch.inference_mode():
        logits, boxes = network(families.normalised(torch.from_numpy(picture)))
    scores = logits[0].sigmoid()
    keep = scores > 0.5
    wanted, best = boxes[0][keep], scores[keep]
    if name == "retinanet":
        wanted = wanted.clamp(0, 256)  # only there boxes end with the tile
    kept = nms(wanted, best, 0.4)[: 50 if name == "ssd" else None]
    assert len(kept) == len(found) > 5
    assert np.allclose(best[kept].numpy(), found.scores, atol=1e-5)
    assert np.allclose(wanted[kept].numpy(), found.boxes, atol=0.01)


@pytest.mark.slow
def test_a_few_steps_of_training_make_the_loss_smaller(families: Any) -> None:
    boxes = torch.tensor([[40.0, 40, 100, 100], [150, 120, 210, 190]])
    torch.manual_seed(1)
    network = families.NETWORKS["ssd"]()
    anchors = families.anchors_of(network)
    picture = torch.zeros(1, 3, 256, 256)
    for x0, y0, x1, y1 in boxes.int().tolist():
        picture[:, :, y0:y1, x0:x1] = 1.0
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        logits, predicted = network(picture)
        loss = families.loss_of(logits[0], predicted[0], anchors, boxes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_anchors_near_no_crown_are_background_and_each_crown_has_one(families: Any) -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4.5], [50, 50, 60, 60]])
    chosen, _ = families.assign(anchors, torch.tensor([[0.0, 0, 10, 10], [58, 58, 70, 70]]))
    assert [0, 0, -2, 1] == chosen.tolist()
    assert [-1] * 4 == families.assign(anchors, torch.empty(0, 4))[0].tolist()
