"""Train two of arcgis.learn's families on tree crowns for some minutes, package them as ArcGIS would, and judge them.

The packages are run by Kestrel itself, from the file to the objects, on the held-out images. What comes out stands in
docs/model_packages.md. Run with ``--help`` for the arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from arcgis_networks import TrainedRetinaNet, TrainedSSD
from augment import CALM, STRONG, SceneMaker
from dataset import Plot, read_plot, read_plots, split_plots
from evaluate import Detections, measure
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from torchvision.ops import box_iou, generalized_box_iou_loss

ROOT = Path(__file__).resolve().parent.parent
CHIP = 256
BATCH = 4
NETWORKS = {"ssd": TrainedSSD, "retinanet": TrainedRetinaNet}
POSITIVE, NEGATIVE = 0.5, 0.4
"""Overlap with a crown from which an anchor stands for it, and below which it stands for the background."""
FOCUS, BALANCE = 2.0, 0.25
SETTLED = 0.65
"""Part of the training after which norms that several levels share are measured and kept."""
MEASURED_BATCHES = 8
MEAN, DEVIATION = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

logger = logging.getLogger("arcgis_families")


class SceneStream(IterableDataset[tuple[Tensor, list[Tensor]]]):
    """Batches of training scenes; batch number k of a seed is always the same."""

    def __init__(self, plots: list[Plot], seed: int, steps: int) -> None:
        """Prepare the stream."""
        self.maker, self.seed, self.steps = SceneMaker(plots, CHIP), seed, steps

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield uint8 images (N, 3, H, W) and N box tensors (n, 4) in pixels."""
        torch.set_num_threads(1)
        for number in range(self.steps):
            rng = np.random.default_rng((self.seed, number))
            scenes = [self.maker.make(rng, STRONG if number < self.steps * 0.5 else CALM) for _ in range(BATCH)]
            images = torch.stack([(scene.image * 255).round().byte() for scene in scenes])
            yield images, [torch.from_numpy(scene.boxes) for scene in scenes]


def normalised(images: Tensor) -> Tensor:
    """Normalise uint8 images as arcgis.learn does for 8-bit RGB."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return (images.float() / 255 - mean) / deviation


def assign(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Give each anchor its crown, or -1 for the background and -2 for neither; and the overlaps.

    Shape:
        anchors (A, 4), boxes (n, 4), xyxy in pixels; gives (A,) and (A, n).
    """
    overlaps = box_iou(anchors, boxes)
    if len(boxes) == 0:
        return torch.full((len(anchors),), -1), overlaps
    best, crown = overlaps.max(1)
    chosen = torch.where(best >= POSITIVE, crown, torch.where(best < NEGATIVE, -1, -2))
    # Each crown has at least the anchor that fits it best.
    chosen[overlaps.argmax(0)] = torch.arange(len(boxes))
    return chosen, overlaps


def loss_of(logits: Tensor, predicted: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
    """Give one image's loss: focal loss of the scores, generalised IoU of the boxes.

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", 2017; Rezatofighi et al., "Generalized Intersection over
        Union", 2019.
    """
    chosen, _ = assign(anchors, boxes)
    is_crown, counts = chosen >= 0, chosen != -2
    target = is_crown.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    chance = torch.sigmoid(logits.detach())
    weight = torch.where(is_crown, BALANCE * (1 - chance) ** FOCUS, (1 - BALANCE) * chance**FOCUS)
    score = (entropy * weight)[counts].sum() / max(1, int(is_crown.sum()))
    if not is_crown.any():
        return score
    return score + generalized_box_iou_loss(predicted[is_crown], boxes[chosen[is_crown]], reduction="mean")


def anchors_of(network: torch.nn.Module) -> Tensor:
    """Give the network's anchors in pixels of a chip: what it predicts where all activations are zero."""
    blank = type(network)()
    for name, parameter in blank.named_parameters():
        if "oconv2" in name or name.startswith("box_regressor.4"):
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        return blank.eval()(torch.zeros(1, 3, CHIP, CHIP))[1][0]


def train(name: str, plots: list[Plot], options: argparse.Namespace) -> torch.nn.Module:
    """Train one family and give its network."""
    torch.manual_seed(options.seed)
    network = NETWORKS[name]().to(memory_format=torch.channels_last)
    anchors = anchors_of(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=0.02)
    loader = DataLoader(SceneStream(plots, options.seed, options.steps), batch_size=None, num_workers=1)
    started, total = time.monotonic(), 0.0
    network.train()
    seen: deque[Tensor] = deque(maxlen=MEASURED_BATCHES)
    for step, (images, boxes) in enumerate(loader, 1):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            logits, predicted = network(normalised(images).contiguous(memory_format=torch.channels_last))
        loss = sum(loss_of(*parts, anchors, truth) for *parts, truth in zip(logits, predicted, boxes, strict=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        total += float(loss.detach()) / BATCH
        seen.append(images)
        if step == int(SETTLED * options.steps):
            network.settle_norms([normalised(batch) for batch in seen])
        if step % 50 == 0:
            logger.info("%s step %d of %d, %.0f s, loss %.3f", name, step, options.steps, time.monotonic() - started,
                        total / 50)  # fmt: skip
            total = 0.0
    return network.eval()


def write_package(name: str, network: torch.nn.Module, folder: Path) -> Path:
    """Write a .dlpk in arcgis.learn's layout."""
    weights, package = folder / f"{name}.pth", folder / f"{name}_trees.dlpk"
    torch.save({key: value.clone().contiguous() for key, value in network.weights().items()}, weights)
    cell = {"x": 0.1, "y": 0.1, "spatialReference": {"wkid": 32617, "latestWkid": 32617}}
    emd = {
        "Framework": "arcgis.learn.models._inferencing",
        "ModelType": "ObjectDetection",
        "ModelFile": f"{name}_trees.pth",
        "InferenceFunction": "ArcGISObjectDetector.py",
        "ImageHeight": CHIP,
        "ImageWidth": CHIP,
        "ImageSpaceUsed": "MAP_SPACE",
        "ExtractBands": [0, 1, 2],
        "MinCellSize": cell,
        "MaxCellSize": cell,
        "Classes": [{"Value": 1, "Name": "Tree", "Color": [34, 139, 34]}],
        "ArcGISLearnVersion": "2.4.0",
        **network.definition,
    }
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}_trees.emd", json.dumps(emd, indent=2))
        archive.write(weights, f"{name}_trees.pth", zipfile.ZIP_STORED)
    weights.unlink()
    return package


def run_package(package: Path, plot: Plot, raster: Path, arguments: dict[str, object]) -> Detections:
    """Run a package with Kestrel, and give what it found in pixels of the raster, best first."""
    import rasterio
    import shapely

    from kestrel.inference.detect import detect
    from kestrel.inference.events import Objects
    from kestrel.inference.job import DetectionJob
    from kestrel.inference.object_file import read_objects

    with tempfile.TemporaryDirectory() as folder:
        events = []
        job = DetectionJob("judge", str(raster), str(package), arguments=arguments, processor="cpu")
        detect(job, Path(folder), events.append, lambda: False)
        objects = [read_objects(Path(event.path)) for event in events if isinstance(event, Objects)]
    with rasterio.open(raster) as source:
        inverse = ~source.transform
    bounds = np.array([shapely.from_wkb(wkb).bounds for part in objects for wkb in part.wkb]).reshape(-1, 4)
    scores = np.concatenate([part.scores for part in objects] or [np.empty(0, np.float32)])
    x, y = (np.array(inverse @ (bounds[:, [0, 2]].ravel(), bounds[:, [1, 3]].ravel())) if len(bounds) else
            np.empty((2, 0)))  # fmt: skip
    x, y = x.reshape(-1, 2), y.reshape(-1, 2)
    boxes = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1) if len(bounds) else np.empty((0, 4))
    order = np.argsort(-scores, kind="stable")
    return Detections(boxes[order].astype(np.float32), scores[order])


def report(package: Path, plots: list[tuple[Plot, Path]], arguments: dict[str, object], threshold: float) -> str:
    """Give one line of figures over the plots, at a score threshold."""
    found = [run_package(package, plot, raster, {**arguments, "threshold": 0.05}) for plot, raster in plots]
    figures = measure(found, [plot for plot, _ in plots], threshold, 0.4)
    return (
        f"threshold {threshold:.2f}: precision {figures.precision:.2f}, recall {figures.recall:.2f}, "
        f"F1 {figures.f1:.2f}, average precision {figures.average_precision:.2f}"
    )


def best_threshold(package: Path, plots: list[tuple[Plot, Path]], arguments: dict[str, object]) -> float:
    """Give the score threshold with the best F1 at IoU 0.4."""
    found = [run_package(package, plot, raster, {**arguments, "threshold": 0.05}) for plot, raster in plots]
    truth = [plot for plot, _ in plots]
    return max((measure(found, truth, t, 0.4).f1, t) for t in np.arange(0.1, 0.8, 0.02).round(2).tolist())[1]


def judge(package: Path, data: Path, validation: list[Plot], arguments: dict[str, object], title: str) -> None:
    """Settle the threshold on validation plots, and tell the figures there and on the held-out image."""
    plots = [(plot, data / "plots" / f"{plot.name}.tif") for plot in validation]
    threshold = best_threshold(package, plots, arguments)
    held_out = [(read_plot(data / "demo" / "OSBS_029.tif"), data / "demo" / "OSBS_029.tif")]
    logger.info("%s, validation plots: %s", title, report(package, plots, arguments, threshold))
    logger.info("%s, OSBS_029: %s", title, report(package, held_out, arguments, threshold))


def main() -> None:
    """Train, package, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with plots/, demo/ and plots_ignore.csv")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "training-arcgis")
    parser.add_argument("--families", nargs="+", choices=sorted(NETWORKS), default=sorted(NETWORKS))
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=2029)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-bfloat16", dest="bfloat16", action="store_false", help="convolve in float32")
    parser.add_argument("--judge-only", action="store_true", help="take the packages that are there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(options.out / "train.log")]
    logging.basicConfig(format="%(asctime)s %(message)s", handlers=handlers)
    logger.setLevel(logging.INFO)
    sys.path.insert(0, str(ROOT / "build" / "plugins"))
    torch.set_num_threads(options.threads)
    training, validation = split_plots(read_plots(options.data))
    for name in options.families:
        package = options.out / f"{name}_trees.dlpk"
        if not options.judge_only:
            package = write_package(name, train(name, training, options), options.out)
            logger.info("wrote %s", package)
        variants = {"": {}} if name == "ssd" else {" (arcgis)": {}, " (textbook)": {"box_decoding": "textbook"}}
        for variant, arguments in variants.items():
            judge(package, options.data, validation, {"nms_overlap": 0.3, **arguments}, name + variant)


if __name__ == "__main__":
    main()
