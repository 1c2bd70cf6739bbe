"""DetectionJob: everything a run needs to know, as plain JSON. QGIS writes it, the worker reads it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import JobError

SCHEMA = 2

PROCESSORS = ("auto", "cpu", "gpu")
RASTER_KINDS = ("gdal", "image_service", "picture")
PROCESSING_MODES = ("mosaic", "items")
RESAMPLINGS = ("auto", "nearest", "bilinear", "cubic", "average")
_MOST_THREADS_A_CORE = 4


@dataclass(frozen=True)
class RasterItem:
    """One raster of a job: how the worker gets at its pixels. Nothing secret stands in it."""

    kind: str
    """"gdal", "image_service" (an ArcGIS server's), or "picture" (QGIS draws or reads it, and hands it over)."""
    source: str
    """GDAL connection string (a path, or a /vsi... name), address of the service, or QGIS's name for it."""
    name: str = ""
    """What people call it."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the kind needs besides, see rasters/opening.py."""
    crs_wkt: str = ""
    """Coordinate reference system that overrules the raster's own; empty: its own."""

    def __post_init__(self) -> None:
        """Check the kind.

        Raises:
            JobError: there is no such kind.
        """
        if self.kind not in RASTER_KINDS:
            raise JobError(f"A raster of the kind '{self.kind}' is not one of {', '.join(RASTER_KINDS)}.")

    @property
    def address(self) -> str:
        """Give its source; of an address on a server without what stands behind its question mark: perhaps a secret."""
        is_remote = "://" in self.source or self.source.startswith("/vsi")
        return self.source.split("?")[0] if is_remote else self.source

    @property
    def shown(self) -> str:
        """Give what messages call it: its name, or its address."""
        return self.name or self.address


@dataclass(frozen=True)
class DetectionJob:
    """One run of the detection.

    Units/space: extent, cell_size, snap and mask are in the coordinate reference system of the (first) raster.
    """

    job_id: str
    rasters: tuple[RasterItem, ...]
    """The raster to search, or several: as one mosaic, where a later one lies on top, or one by one."""
    model: str
    """Path of the model package (.dlpk, .emd, .json), or the definition's JSON text."""
    model_sha256: str = ""
    """Content hash of the package when the job was made; empty: not checked."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Model arguments as the user gave them; the defaults come from the package."""
    objects_of_interest: tuple[str, ...] = ()
    """Class names to keep; empty: all."""
    extent: tuple[float, float, float, float] | None = None
    """xmin, ymin, xmax, ymax."""
    cell_size: float | None = None
    """Side of the square pixels that the model shall see; None: the raster's own."""
    snap: tuple[float, float] | None = None
    """A corner of pixels that the grid of pixels is to be aligned with; None: the raster's own grid."""
    resampling: str = "auto"
    """How pixels of another grid are made: "auto", "nearest", "bilinear", "cubic", "average"."""
    bands: tuple[int | str, ...] = ()
    """Bands that the model gets, in its order: 0-based numbers, or names. Empty: as the model says."""
    processing_mode: str = "mosaic"
    """What several rasters are: one "mosaic", or "items" that are searched one by one."""
    crs_wkt: str = ""
    """Of items that are searched one by one: the coordinate reference system of extent, mask and cell size, in which
    the objects are given, too. Empty: each item's own."""
    max_tiles: int | None = None
    """Most tiles that a run may have; None: any number."""
    plan_only: bool = False
    """Tell what the run would have to do, and look for nothing."""
    mask_wkb: str | None = None
    """Polygons to search, hexadecimal WKB; an object counts when its anchor lies inside."""
    run_nms: bool = False
    max_overlap_ratio: float = 0.0
    """Highest intersection over union that two objects of one class may have after run_nms."""
    processor: str = "auto"
    gpu_id: int | None = None
    parallel_processing_factor: str = "100%"
    """Threads: a count ("4"), or a share of the processor's cores ("75%")."""
    allowed_code: str = ""
    """SHA-256 of the package's program that the user consented to; empty: no program is run."""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises:
            JobError: a value is outside its range.
        """
        _check_choice("Processor type", self.processor, PROCESSORS)
        _check_choice("Resampling", self.resampling, RESAMPLINGS)
        _check_choice("Processing mode", self.processing_mode, PROCESSING_MODES)
        if not self.rasters:
            raise JobError("The job names no raster.", hint="Choose the raster to search.")
        if not 0 <= self.max_overlap_ratio <= 1:
            raise JobError(f"Maximum overlap ratio {self.max_overlap_ratio:g} is outside 0 to 1.")
        if self.max_tiles is not None and self.max_tiles < 1:
            raise JobError(f"Maximum number of tiles {self.max_tiles} is not a positive number.")
        if self.cell_size is not None and not 0 < self.cell_size < float("inf"):
            raise JobError(f"Cell size {self.cell_size:g} is not a positive number.")
        if self.extent is not None:
            _check_extent(self.extent)
        parse_parallel_factor(self.parallel_processing_factor, 1)

    def to_json(self) -> str:
        """Give the job as JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise JobError(f"{what} '{value}' is not one of {', '.join(choices)}.")


def _check_extent(extent: tuple[float, float, float, float]) -> None:
    xmin, ymin, xmax, ymax = extent
    if not (xmin < xmax and ymin < ymax and all(math.isfinite(value) for value in extent)):
        raise JobError(
            f"The extent {xmin:g}, {ymin:g}, {xmax:g}, {ymax:g} is empty, inverted or endless.",
            hint="Give xmin, ymin, xmax, ymax with xmin < xmax and ymin < ymax.",
        )


def job_from_json(text: str) -> DetectionJob:
    """Read a job that `DetectionJob.to_json` wrote.

    Raises:
        JobError: not a job, a newer schema, or a value outside its range.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise JobError(f"The job file is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise JobError("The job file does not hold a JSON object.")
    schema = data.get("schema")
    if not isinstance(schema, int):
        raise JobError("The job file does not say which schema it has.")
    if schema > SCHEMA:
        raise JobError("The job was written by a newer version of Kestrel.", hint="Update the plugin.")
    unknown = sorted(set(data) - {item.name for item in fields(DetectionJob)})
    if unknown:
        raise JobError(f"The job has members that this version does not know: {', '.join(unknown)}.")
    try:
        for name in ("extent", "snap"):
            if data.get(name) is not None:
                data[name] = tuple(data[name])
        for name in ("objects_of_interest", "bands"):
            data[name] = tuple(data.get(name, ()))
        data["rasters"] = tuple(RasterItem(**item) for item in data["rasters"])
        return DetectionJob(**data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise JobError(f"The job is incomplete, or a member has the wrong type: {error}.") from error


def parse_parallel_factor(text: str, n_cores: int) -> int:
    """Give the number of threads that a parallel processing factor means.

    Args:
        text: "4", "75%", or "" for all cores. 0 or "0%" means one; more than four threads a core are not started.
        n_cores: Cores that the process may use.

    Raises:
        JobError: neither a count nor a percentage.
    """
    text = text.strip()
    if not text:
        return n_cores
    is_share = text.endswith("%")
    try:
        number = float(text[:-1] if is_share else text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf") or (not is_share and number != int(number)):
        raise JobError(
            f"Parallel processing factor '{text}' is neither a count nor a percentage.",
            hint="Write for example 4, or 75%.",
        )
    count = n_cores * number / 100 if is_share else number
    return min(max(1, int(count)), _MOST_THREADS_A_CORE * n_cores)
