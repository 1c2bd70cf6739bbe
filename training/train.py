"""Train the tree-crown detector from scratch and write its package.

Two stages: the first leaves the validation plots out and finds the score threshold and the allowed overlap with
them; the second goes on from there with all plots, for the shipped weights. Run with ``--help`` for the arguments.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from augment import CALM, STRONG, SceneMaker
from dataset import Plot, read_plots, split_plots
from evaluate import Detections, apply_calibration, best_settings, calibrate, detect, measure, suppress
from export import build_package
from loss import detection_loss
from network import STRIDE, CrownNet, ExportHead
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

logger = logging.getLogger("train")

SCENE_SIZE = 320
BATCH = 4
WARM_UP = 200
STRONG_SHARE = 0.65
"""Part of a stage before the augmentation calms down."""
EMA_DECAY = 0.998
FINAL_RATE = 0.6
"""Highest learning rate of the second stage, relative to the first."""

Batch = tuple[Tensor, list[Tensor], Tensor]


class SceneStream(IterableDataset[Batch]):
    """Batches of scenes; batch number k of a seed is always the same."""

    def __init__(self, plots: list[Plot], seed: int, steps: int) -> None:
        """Prepare the stream.

        Args:
            plots: Training plots.
            seed: Seed of the run.
            steps: Number of batches.
        """
        self.maker, self.seed, self.steps = SceneMaker(plots, SCENE_SIZE), seed, steps

    def __iter__(self) -> Iterator[Batch]:
        """Yield uint8 images (N, 3, H, W), N box tensors (n, 4) in pixels, bool ignore (N, H / 8, W / 8)."""
        torch.set_num_threads(1)
        for number in range(self.steps):
            rng = np.random.default_rng((self.seed, number))
            strength = STRONG if number < self.steps * STRONG_SHARE else CALM
            scenes = [self.maker.make(rng, strength) for _ in range(BATCH)]
            images = torch.stack([(scene.image * 255).round().byte() for scene in scenes])
            centre = slice(STRIDE // 2, None, STRIDE)
            ignore = np.stack([scene.ignore[centre, centre] for scene in scenes])
            yield images, [torch.from_numpy(scene.boxes) for scene in scenes], torch.from_numpy(ignore)


def make_optimizer(network: CrownNet, rate: float) -> torch.optim.AdamW:
    """Create AdamW with weight decay on the convolution kernels only.

    Args:
        network: The network.
        rate: Highest learning rate.

    Returns:
        The optimizer.
    """
    kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))


def rate_factor(step: int, steps: int) -> float:
    """Learning rate relative to its highest value: linear warm-up, then cosine to 1 %.

    Args:
        step: Steps done.
        steps: Steps of the stage.

    Returns:
        0 to 1.
    """
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.no_grad()
def update_average(average: CrownNet, network: CrownNet, step: int) -> None:
    """Move the averaged weights towards the current ones.

    Args:
        average: Changed in place.
        network: The network in training.
        step: Steps done; the average is shorter at first.
    """
    share = 1 - min(EMA_DECAY, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, share)
        else:
            mean.copy_(value)


@torch.no_grad()
def detect_all(network: CrownNet, plots: list[Plot]) -> list[Detections]:
    """Run the network on whole plots.

    Args:
        network: Weights to evaluate.
        plots: Images.

    Returns:
        Detections before suppression, one entry a plot.
    """
    head = ExportHead(network).eval()
    return [detect(lambda images: head(torch.from_numpy(images)).numpy(), plot.image) for plot in plots]


def validate(network: CrownNet, plots: list[Plot]) -> dict[str, float]:
    """Find the best settings on the validation plots, and the figures of each site.

    Args:
        network: Weights to evaluate.
        plots: Validation plots.

    Returns:
        threshold, nms_overlap, precision, recall, f1, ap40, ap50; score_scale and score_offset, which calibrate the
        scores (the threshold is a calibrated one); precision, recall, f1 and ap40 of each site.
    """
    raw = detect_all(network, plots)
    threshold, overlap = best_settings(raw, plots)
    found = [suppress(detections, 0.0, overlap) for detections in raw]
    best = measure(found, plots, threshold, 0.4)
    scale, offset = calibrate(raw, plots, overlap)
    report = {"threshold": apply_calibration(threshold, scale, offset), "nms_overlap": overlap}
    report |= {"score_scale": scale, "score_offset": offset, "precision": best.precision, "recall": best.recall}
    strict = measure(found, plots, threshold, 0.5)
    report |= {"f1": best.f1, "ap40": best.average_precision, "ap50": strict.average_precision}
    for site in sorted({plot.site for plot in plots}):
        chosen = [index for index, plot in enumerate(plots) if plot.site == site]
        figures = measure([found[i] for i in chosen], [plots[i] for i in chosen], threshold, 0.4)
        report |= {f"{site}_precision": figures.precision, f"{site}_recall": figures.recall}
        report |= {f"{site}_f1": figures.f1, f"{site}_ap40": figures.average_precision}
    return report


def train_step(network: CrownNet, optimizer: torch.optim.Optimizer, batch: Batch, bfloat16: bool) -> dict[str, float]:
    """Do one optimizer step.

    Args:
        network: Changed in place.
        optimizer: Of the network.
        batch: Images, boxes, ignore mask.
        bfloat16: Whether convolutions run in bfloat16.

    Returns:
        Parts of the loss.
    """
    images, boxes, ignore = batch
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits, distances = network(images.contiguous(memory_format=torch.channels_last))
    loss, parts = detection_loss(logits, distances, boxes, ignore)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()
    return parts


def train_stage(
    network: CrownNet, plots: list[Plot], held_out: list[Plot], options: argparse.Namespace, stage: int
) -> CrownNet:
    """Train for one stage.

    Args:
        network: Start weights, changed in place.
        plots: Training plots.
        held_out: Validation plots; none in the second stage.
        options: Command line.
        stage: 1 or 2.

    Returns:
        The averaged weights.
    """
    steps = options.steps if stage == 1 else options.final_steps
    average = copy.deepcopy(network)
    optimizer = make_optimizer(network, options.rate if stage == 1 else options.rate * FINAL_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    stream = SceneStream(plots, options.seed + stage, steps)
    started, sums = time.monotonic(), {"score": 0.0, "box": 0.0, "positive": 0.0}
    network.train()
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4)
    for step, batch in enumerate(loader, 1):
        parts = train_step(network, optimizer, batch, options.bfloat16)
        schedule.step()
        update_average(average, network, step)
        sums = {key: sums[key] + value for key, value in parts.items()}
        if step % options.every == 0 or step == steps:
            means = {key: round(value / options.every, 3) for key, value in sums.items()}
            logger.info("stage %d step %d/%d %.0f s %s", stage, step, steps, time.monotonic() - started, means)
            sums = dict.fromkeys(sums, 0.0)
            torch.save(average.state_dict(), options.out / f"stage{stage}.pt")
        if held_out and (step % (options.every * 3) == 0 or step == steps):
            report = validate(average, held_out)
            logger.info("validation %s", {key: round(value, 3) for key, value in report.items()})
            (options.out / "validation.json").write_text(json.dumps(report, indent=1) + "\n")
    return average


def parse_arguments() -> argparse.Namespace:
    """Read the command line.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with plots/ and plots_ignore.csv")
    parser.add_argument(
        "--out", type=Path, default=Path("build/training"), help="folder for checkpoints, log and package"
    )
    parser.add_argument("--steps", type=int, default=3300, help="steps of the first stage, without validation plots")
    parser.add_argument("--final-steps", type=int, default=3700, help="steps of the second stage, with all plots")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=2029)
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--every", type=int, default=100, help="steps between log lines and checkpoints")
    parser.add_argument("--no-bfloat16", dest="bfloat16", action="store_false", help="convolve in float32")
    return parser.parse_args()


def main() -> None:
    """Run both stages."""
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    handlers = [logging.StreamHandler(), logging.FileHandler(options.out / "train.log")]
    logging.basicConfig(format="%(asctime)s %(message)s", handlers=handlers)
    logger.setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    plots = read_plots(options.data)
    training, validation = split_plots(plots)
    network = CrownNet().to(memory_format=torch.channels_last)
    logger.info("%d parameters", sum(parameter.numel() for parameter in network.parameters()))
    network = train_stage(network, training, validation, options, 1)
    train_stage(network, plots, [], options, 2)
    package = build_package(options.out / "stage2.pt", options.out / "validation.json", options.out)
    logger.info("wrote %s", package)


if __name__ == "__main__":
    main()
