"""A run: everything that a job's words stand for, opened, loaded and planned."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .detectors import load_detector
from .detectors.augmented import (
    MAP_ORIENTATIONS,
    PICTURE_ORIENTATIONS,
    Augmentation,
    AugmentedDetector,
    parse_scales,
)
from .detectors.protocol import Detector, DetectorSettings, close_detector
from .device import choose_device
from .errors import ModelHashError, RasterReadError
from .events import Message, Report
from .fit import fit_warnings
from .job import DetectionJob, parse_parallel_factor
from .models.arguments import resolve_arguments
from .models.definition import ModelDefinition
from .models.overrides import overruled
from .models.package import ModelPackage, open_package
from .pipeline import BatchSize, Pipeline
from .plan import Plan, make_plan, usable_cores
from .preprocess import Preprocess
from .rasters.access import ALONE, RasterAccess
from .rasters.model_raster import ModelRaster
from .rasters.source import RasterInfo
from .reading import open_raster
from .region import Region, make_region
from .tiling import Window, align_up
from .versions import installed_versions

_VIEW_SHARE = 0.25
"""Share of the threshold that an object needs in one view: the mean over all views is what has to reach it."""
SEAM_TOLERANCE = 8.0
"""Pixels by which two tiles may disagree about the place of the same object, for networks that are not exact."""


@dataclass(frozen=True)
class Run:
    """Everything that a job's words stand for."""

    job: DetectionJob
    package: ModelPackage
    sha256: str
    arguments: Mapping[str, Any]
    source: ModelRaster
    region: Region
    detector: Detector
    plan: Plan
    device: str
    n_threads: int


class OpenModel:
    """A job's model: opened once, its network loaded when the first raster is there; `close` it in the end.

    Args:
        job: The job.
        unpacked: An empty private folder for the model's files.

    Raises:
        InferenceError: it cannot be opened, or is not the one of the job.
    """

    def __init__(self, job: DetectionJob, unpacked: Path) -> None:
        """Open the package."""
        package = open_package(job.model)
        self.sha256 = package.sha256()
        if job.model_sha256 not in ("", self.sha256):
            raise ModelHashError("The model package has changed since the job was made.", hint="Start the job anew.")
        self.resolved = resolve_arguments(package.definition, job.arguments)
        self.package = replace(package, definition=overruled(package.definition, self.resolved.values))
        self._job, self._unpacked = job, unpacked
        self._device = ""
        self._detector: Detector | None = None

    @property
    def definition(self) -> ModelDefinition:
        """Give what the package says, and what the user's arguments overrule of it."""
        return self.package.definition

    @property
    def device(self) -> str:
        """Give the device that the network runs on."""
        self._device = self._device or choose_device(self._job.processor, self._job.gpu_id, self.definition.kind)
        return self._device

    @property
    def n_threads(self) -> int:
        """Give the number of threads that inference may use."""
        return parse_parallel_factor(self._job.parallel_processing_factor, usable_cores())

    def detector(self, sample: Sampler) -> Detector:
        """Give the network, loaded with a look at the raster that asks first."""
        if self._detector is None:
            self._detector = self._load(DetectorSettings(self.device, self.n_threads, self._job.allowed_code, sample))
        return self._detector

    def _load(self, settings: DetectorSettings) -> Detector:
        values = self.resolved.values
        if not values["test_time_augmentation"]:
            return load_detector(self.package, values, settings, self._unpacked)
        lower = {**values, "threshold": values["threshold"] * _VIEW_SHARE}
        return _augmented(load_detector(self.package, lower, settings, self._unpacked), self.definition, values)

    def close(self) -> None:
        """Let go of what the network holds besides memory."""
        if self._detector is not None:
            close_detector(self._detector)


def prepare(job: DetectionJob, model: OpenModel, report: Report, access: RasterAccess = ALONE) -> Run:
    """Open, load and plan what a job names.

    Args:
        job: The job.
        model: Its model.
        report: Told about the plan, and what does not fit together well.
        access: What reading the raster needs besides its name.

    Raises:
        InferenceError: something cannot be opened, or model and raster do not fit together.
    """
    source, told = open_raster(job, model.definition, model.resolved.values, access)
    try:
        return _planned(job, model, source, told, report)
    except BaseException:
        source.close()
        raise


def _planned(job: DetectionJob, model: OpenModel, source: ModelRaster, told: Sequence[Message], report: Report) -> Run:
    definition, resolved = model.definition, model.resolved
    region = make_region(job, source.info)
    is_size_given = job.arguments.get("tile_size") not in (None, "")
    detector = model.detector(Sampler(source, region, definition, int(resolved.values["tile_size"]), is_size_given))
    plan = make_plan(definition, resolved.values, job.arguments, detector.traits, region, model.device)
    for text in definition.notes:
        report(Message("warning", "package", text))
    for text in resolved.warnings:
        report(Message("warning", "argument", text))
    for message in told:
        report(message)
    for text in fit_warnings(definition, source.info):
        report(Message("warning", "fit", text))
    for text in detector.traits.notes:
        report(Message("info", "model", text))
    for text in (f"Model: {definition.name} {definition.version}".strip() + f", on {model.device}.", *plan.notes):
        report(Message("info", "plan", text))
    return Run(
        job, model.package, model.sha256, resolved.values, source, region, detector, plan, model.device,
        model.n_threads,
    )  # fmt: skip


_PLACES = tuple(product((0.5, 0.25, 0.75), repeat=2))
"""Where a sample is looked for, as shares of the searched region's sides."""
_SAMPLE_SIDE, _SAMPLE_STRIDE = 640, 32


@dataclass(frozen=True)
class Sampler:
    """Gives tiles of the searched region, the fullest first, as the run will show them to the network."""

    source: ModelRaster
    region: Region
    definition: ModelDefinition
    tile_size: int
    is_size_given: bool

    def __call__(self, size: tuple[int, int] | None, place: int) -> NDArray[Any]:
        """Give (C, height, width), see `DetectorSettings.sample`."""
        height, width = size or self._free_size()
        window_size = self._window_size(height, width) if size else (height, width)
        window = self._chosen(*window_size, place)
        pixels, _ = self.source.read(window)
        preprocess = make_preprocess(self.source.info, self.definition, (width, height))
        return preprocess.to_network(pixels, window)

    def _chosen(self, height: int, width: int, place: int) -> Window:
        """Give the window that is `place` in the order of how many pixels windows have."""
        readable: list[tuple[int, Window]] = []
        for y, x in _PLACES:
            window = self._window(x, y, height, width)
            try:
                n_valid = int(self.source.read(window)[1].sum())
            except RasterReadError:
                continue
            if place == 0 and n_valid == height * width:
                return window  # no other has more, and the first of equals counts
            readable.append((-n_valid, window))
        if not readable:
            raise RasterReadError(f"The raster '{self.source.name}' cannot be read: no part of it that was tried.")
        ordered = sorted(readable, key=lambda item: item[0])
        return ordered[place if place < len(ordered) else 0][1]

    def _free_size(self) -> tuple[int, int]:
        info = self.source.info
        side = min(self.tile_size, _SAMPLE_SIDE, align_up(max(info.width, info.height), _SAMPLE_STRIDE))
        side = max(side // _SAMPLE_STRIDE, 1) * _SAMPLE_STRIDE
        return side, side

    def _window_size(self, height: int, width: int) -> tuple[int, int]:
        """Give height and width of the part of the raster that becomes one image, as the plan has it."""
        resize = self.definition.input.resize
        wide = self.tile_size if self.is_size_given and resize != "none" else width
        high = max(round(wide * height / width), 1)
        if resize == "stretch":
            wide, high = min(wide, self.source.info.width), min(high, self.source.info.height)
        return high, wide

    def _window(self, x: float, y: float, height: int, width: int) -> Window:
        area, info = self.region.window, self.source.info
        left = min(max(0, round(area.x + x * area.width - width / 2)), max(0, info.width - width))
        top = min(max(0, round(area.y + y * area.height - height / 2)), max(0, info.height - height))
        return Window(left, top, width, height)


def make_preprocess(info: RasterInfo, definition: ModelDefinition, size: tuple[int, int]) -> Preprocess:
    """Give the way of a raster's tiles into images of (width, height)."""
    return Preprocess(*size, (info.width, info.height), definition.input.pad_value)


def make_pipeline(run: Run) -> Pipeline:
    """Give the parts that a run's tiles go through."""
    return Pipeline(
        run.source,
        make_preprocess(run.source.info, run.package.definition, run.plan.network_size),
        run.detector,
        BatchSize(run.plan.batch_size),
        n_readers=max(1, run.n_threads // 2),
        n_callers=run.detector.traits.n_callers,
    )


def _augmented(detector: Detector, definition: ModelDefinition, arguments: Mapping[str, Any]) -> Detector:
    how = Augmentation(
        MAP_ORIENTATIONS if definition.is_map_space else PICTURE_ORIENTATIONS,
        threshold=arguments["threshold"],
        max_overlap=arguments["nms_overlap"],
        scales=parse_scales(str(arguments.get("tta_scales", "1"))),
        merge_policy=str(arguments.get("merge_policy", "mean")),
    )
    return AugmentedDetector(detector, how)


def fingerprint(run: Run) -> str:
    """Hash all that decides the result; device, threads and batch size do not.

    Runs of equal fingerprints may go on from each other's journal. So a raster that cannot be told from a changed one
    (it lies on a server or in an archive) has a new fingerprint each time.
    """
    job, grid, info = run.job, run.plan.grid, run.source.info
    facts = [
        _code_hash(), installed_versions(), run.sha256, [asdict(item) for item in job.rasters],
        run.source.pixels.identity() or secrets.token_hex(16),
        info.width, info.height, list(info.transform), info.crs_wkt,
        run.source.stretch and asdict(run.source.stretch),
        list(run.detector.traits.notes), job.extent, job.cell_size, job.mask_wkb,
        job.snap, job.resampling, job.bands, job.crs_wkt,
        grid.tile_size, grid.tile_height, grid.padding, grid.stride, run.plan.network_size,
        {name: run.arguments[name] for name in sorted(run.arguments) if name != "batch_size"},
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _code_hash() -> str:
    """Hash this package's own source: tiles of an older version must not be mixed with those of a newer one."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
