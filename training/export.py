"""Export trained weights to ONNX, check the file against PyTorch, and pack it as a deep learning package."""

from __future__ import annotations

import argparse
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from evaluate import Detector
from network import ALIGNMENT, STRIDE, CrownNet, ExportHead
from torch import nn

MODEL_VERSION = "1.0.0"
LICENSE = "GPL-2.0-or-later"
DESCRIPTION = (
    "Tree crowns in 10 cm true-colour aerial imagery. Trained from scratch on 53 plots of the National Ecological "
    "Observatory Network (NEON, CC0 1.0) with the crown boxes of NeonTreeEvaluation / DeepForest (Weinstein et al.)."
)
ROOT = Path(__file__).resolve().parent.parent
TEXT_FILES = (ROOT / "docs" / "model_card.md", ROOT / "training" / "LICENSES.md")
ARCHIVE_TIME = (2020, 1, 1, 0, 0, 0)
"""One fixed time for all entries, so that equal contents make an equal file."""


def load_head(weights: Path, scale: float, offset: float) -> ExportHead:
    """Read weights.

    Args:
        weights: A state dictionary written by the training.
        scale: Factor of the score's logit.
        offset: Added to the scaled logit.

    Returns:
        The network with its head in evaluation mode.
    """
    network = CrownNet()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return ExportHead(network, scale, offset).eval()


def fold_batch_norms(module: nn.Module) -> None:
    """Merge every batch norm into the convolution before it.

    Args:
        module: Changed in place; in evaluation mode.
    """
    for child in module.children():
        fold_batch_norms(child)
    if isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
        module[0] = nn.utils.fusion.fuse_conv_bn_eval(module[0], module[1])
        module[1] = nn.Identity()


def export_onnx(head: ExportHead, path: Path) -> None:
    """Write the network with its head as one ONNX file.

    Args:
        head: In evaluation mode; its batch norms are folded in place.
        path: Output; input ``images`` uint8 (N, 3, H, W), output ``output0`` float32 (N, 5, A).
    """
    fold_batch_norms(head)
    rows, columns = torch.export.Dim("rows", min=2, max=512), torch.export.Dim("columns", min=2, max=512)
    sizes = {0: torch.export.Dim("batch", min=1, max=1024), 2: ALIGNMENT * rows, 3: ALIGNMENT * columns}
    example = torch.zeros(2, 3, 6 * ALIGNMENT, 8 * ALIGNMENT, dtype=torch.uint8)
    program = torch.onnx.export(
        head,
        (example,),
        dynamo=True,
        opset_version=18,
        input_names=["images"],
        output_names=["output0"],
        dynamic_shapes={"images": sizes},
        verbose=False,
    )
    model = program.model_proto
    strip_debug_text(model)
    metadata = {
        "stride": str(ALIGNMENT),
        "names": json.dumps({"0": "Tree"}),
        "task": "detect",
        "description": DESCRIPTION,
        "license": LICENSE,
    }
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def strip_debug_text(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about source lines, which would carry local paths.

    Args:
        model: Changed in place.
    """
    graph = model.graph
    for item in [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del item.metadata_props[:]
        item.doc_string = ""


def onnx_detector(path: Path, threads: int = 1) -> Detector:
    """Open an exported file.

    Args:
        path: The ONNX file.
        threads: Threads of one call.

    Returns:
        A function from uint8 (N, 3, H, W) to float32 (N, 5, A).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def largest_difference(head: ExportHead, path: Path, size: int = 20 * ALIGNMENT) -> float:
    """Compare ONNX Runtime with PyTorch on random images of another shape than the example.

    Args:
        head: In evaluation mode.
        path: The exported file.
        size: Image height in pixels; the width is one alignment more.

    Returns:
        Largest difference of a box coordinate, in pixels.
    """
    images = np.random.default_rng(0).integers(0, 256, (3, 3, size, size + ALIGNMENT), dtype=np.uint8)
    with torch.no_grad():
        expected = head(torch.from_numpy(images)).numpy()
    return float(np.abs(onnx_detector(path)(images) - expected)[:, :4].max())


def measure_reach(path: Path, size: int = 48 * ALIGNMENT) -> int:
    """Measure the receptive field: how far from a changed pixel any output changes.

    Args:
        path: The exported file.
        size: Side of the test image in pixels.

    Returns:
        Largest distance along an axis between a changed pixel and the centre of a changed cell, in pixels.
    """
    detector, cells, reach = onnx_detector(path), size // STRIDE, 0.0
    centres = (np.arange(cells) + 0.5) * STRIDE
    base = np.random.default_rng(1).integers(0, 256, (1, 3, size, size), dtype=np.uint8)
    before = detector(base).reshape(5, cells, cells)
    for shift in range(0, ALIGNMENT, 3):
        pixel = size // 2 + shift
        changed = base.copy()
        changed[:, :, pixel, pixel] = 255 - changed[:, :, pixel, pixel]
        moved = (detector(changed).reshape(5, cells, cells) != before).any(0)
        touched = np.concatenate((centres[moved.any(0)], centres[moved.any(1)]))
        reach = max(reach, float(np.abs(touched - pixel - 0.5).max()))
    return math.ceil(reach)


def model_definition(threshold: float, overlap: float, reach: int, precision: float) -> dict[str, object]:
    """Compose the Esri model definition.

    Args:
        threshold: Default score threshold.
        overlap: Default overlap allowed between detections.
        reach: Receptive-field radius in pixels.
        precision: Average precision at IoU 0.5 on the validation plots.

    Returns:
        The content of the ``.emd`` file.
    """
    padding = math.ceil(reach / ALIGNMENT) * ALIGNMENT
    reference = {"wkid": 32617, "latestWkid": 32617}
    return {
        "Framework": "ONNX",
        "ModelConfiguration": "YOLOv8",
        "ModelType": "ObjectDetection",
        "ModelName": "Kestrel tree crowns",
        "ModelVersion": MODEL_VERSION,
        "Description": DESCRIPTION,
        "License": LICENSE,
        "ModelFile": "tree_crowns.onnx",
        "ModelFormat": "NCHW",
        "ImageHeight": 1024,
        "ImageWidth": 1024,
        "SupportsVariableTileSize": True,
        "ExtractBands": [0, 1, 2],
        "DataRange": [0, 255],
        "ImageSpaceUsed": "MAP_SPACE",
        "MinCellSize": {"x": 0.08, "y": 0.08, "spatialReference": reference},
        "MaxCellSize": {"x": 0.13, "y": 0.13, "spatialReference": reference},
        "Classes": [{"Value": 1, "Name": "Tree", "Color": [34, 139, 34]}],
        "average_precision_score": {"Tree": round(precision, 3)},
        "Kestrel": {
            "schema": 1,
            "head": "yolov8",
            "stride": ALIGNMENT,
            "receptive_field_radius": reach,
            "arguments": {"threshold": threshold, "nms_overlap": overlap, "padding": padding},
        },
    }


def write_archive(path: Path, contents: dict[str, bytes]) -> None:
    """Write a zip file that depends on the contents only.

    Args:
        path: Output.
        contents: File contents by name, in order.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, ARCHIVE_TIME)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(entry, content)


def build_package(weights: Path, validation: Path, out: Path) -> Path:
    """Export weights and pack them with definition and texts.

    Args:
        weights: State dictionary.
        validation: JSON written by the training.
        out: Folder for ``tree_crowns.onnx``, ``tree_crowns.emd`` and ``tree_crowns.dlpk``.

    Returns:
        Path of the package.

    Raises:
        ValueError: ONNX Runtime and PyTorch disagree.
    """
    report, onnx_path = json.loads(validation.read_text()), out / "tree_crowns.onnx"
    head = load_head(weights, report["score_scale"], report["score_offset"])
    export_onnx(head, onnx_path)
    difference = largest_difference(head, onnx_path)
    if difference > 1e-3:
        raise ValueError(f"ONNX Runtime differs from PyTorch by {difference} px")
    definition = model_definition(
        round(report["threshold"], 2), report["nms_overlap"], measure_reach(onnx_path), report["ap50"]
    )
    emd = (json.dumps(definition, indent=2) + "\n").encode()
    (out / "tree_crowns.emd").write_bytes(emd)
    contents = {"tree_crowns.emd": emd, "tree_crowns.onnx": onnx_path.read_bytes()}
    contents |= {path.name: path.read_bytes() for path in TEXT_FILES}
    write_archive(out / "tree_crowns.dlpk", contents)
    return out / "tree_crowns.dlpk"


def main() -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="state dictionary written by train.py")
    parser.add_argument("--validation", type=Path, required=True, help="validation.json written by train.py")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    build_package(options.weights, options.validation, options.out)


if __name__ == "__main__":
    main()
