"""Plan a run: which tiles, how large, with how much padding, in which batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .detectors.protocol import Traits
from .models.definition import ModelDefinition
from .rasters.source import RasterInfo
from .region import Region
from .tiling import TileGrid, align_up

_LARGEST_AUTOMATIC_TILE = 1536
_TILE_OVER_PADDING = 6
"""A tile six times its padding looks at each pixel 2.25 times; a smaller one wastes more."""
_GPU_BATCH = 8


@dataclass(frozen=True)
class Plan:
    """The tiles of a run, in raster pixels, and the size that the network wants them to have."""

    grid: TileGrid
    network_size: tuple[int, int]
    """Width and height of the network's images."""
    batch_size: int
    is_exact: bool
    """The result equals one pass over the whole raster."""
    notes: tuple[str, ...]
    """What the user should hear about the plan."""


def make_plan(
    definition: ModelDefinition, arguments: Mapping[str, Any], given: Mapping[str, Any], traits: Traits,
    region: Region, device: str,
) -> Plan:  # fmt: skip
    """Settle tile size, padding and batch size.

    Args:
        definition: The model.
        arguments: Resolved arguments.
        given: The arguments that the user gave; others may be adapted to the network.
        traits: The network.
        region: What is searched.
        device: Where the network runs.
    """
    chooser = _SizeChooser(definition, arguments, given.get("tile_size") not in (None, ""), traits, region.info)
    tile_size, padding = chooser.tile_size(), chooser.padding()
    resized = traits.network_size is not None and traits.network_size != tile_size
    is_single = tile_size >= max(region.info.width, region.info.height)
    radius = traits.receptive_field_radius
    is_stretched = chooser.is_stretched()
    unit = 1 if resized or is_stretched else chooser.unit()
    is_seamless = radius is not None and padding >= radius and unit == traits.stride
    is_exact = traits.is_exact and not resized and not is_stretched and (is_single or is_seamless)
    is_cropped = is_stretched or (traits.is_exact and traits.network_size is None)
    grid = TileGrid(
        region.info.width, region.info.height, region.window, tile_size, padding, unit, chooser.tile_height(),
        is_cropped, hangs_over=traits.padding is not None,
    )  # fmt: skip
    width, height = traits.network_size, traits.network_height or traits.network_size
    return Plan(
        grid,
        (width or grid.columns.size, height or grid.rows.size),
        _batch_size(arguments["batch_size"], traits, device),
        is_exact,
        tuple(_notes(grid, traits, is_exact=is_exact, resized=resized)),
    )


@dataclass(frozen=True)
class _SizeChooser:
    definition: ModelDefinition
    arguments: Mapping[str, Any]
    is_size_given: bool
    traits: Traits
    info: RasterInfo

    def wanted_padding(self) -> int | None:
        """Give the padding that the network, the user, the package, or exactness asks for."""
        if self.traits.padding is not None:
            return self.traits.padding
        stated = self.arguments["padding"]
        if stated is None:
            stated = self.definition.tile.padding
        if stated is None and self.traits.is_dense:
            stated = self.traits.receptive_field_radius
        return None if stated is None else int(stated)

    def unit(self) -> int:
        """Give what origins and paddings are multiples of: the stride, unless that leaves no room for any padding.

        Where seams cannot be exact anyway, seeing beyond them matters more than the stride.
        """
        size, stride = self.tile_size(), self.traits.stride
        has_room = size % stride == 0 and (self.traits.is_dense or size // 4 >= stride)
        return stride if has_room else 1

    def tile_size(self) -> int:
        """Give the tiles' side: a multiple of the stride, and not much larger than a small raster."""
        stride, network = self.traits.stride, self.traits.network_size
        is_only = self.traits.wants_raw or self.definition.input.resize == "none" or not self.is_size_given
        if network is not None and is_only:
            return network
        if network is not None and network != int(self.arguments["tile_size"]):
            return int(self.arguments["tile_size"])  # resized: the stride is that of another scale
        size = align_up(int(self.arguments["tile_size"]), stride)
        if network is not None or not self.definition.tile.is_variable or self.definition.kind == "arcgis":
            return size  # ArcGIS's chips are as large as those of the training, also where the raster is smaller
        if not self.is_size_given:
            padding = align_up(self.wanted_padding() or 0, stride)
            roomy = align_up(_TILE_OVER_PADDING * padding, stride)
            size = max(size, min(roomy, _LARGEST_AUTOMATIC_TILE))
        return min(size, align_up(max(self.info.width, self.info.height), stride))

    def tile_height(self) -> int:
        """Give the tiles' height: their sides are as those of the network's images."""
        width, height = self.traits.network_size, self.traits.network_height
        return round(self.tile_size() * height / width) if width and height else self.tile_size()

    def is_stretched(self) -> bool:
        """Tell whether the raster is smaller than a tile, and to be pulled over the whole of the network's image."""
        is_small = self.info.width < self.tile_size() or self.info.height < self.tile_height()
        return self.definition.input.resize == "stretch" and self.traits.network_size is not None and is_small

    def padding(self) -> int:
        """Give the padding: what is wanted, at most what leaves the inner window half of the tile."""
        size, wanted, unit = min(self.tile_size(), self.tile_height()), self.wanted_padding(), self.unit()
        most = size // 4 // unit * unit
        if wanted is None:
            return most
        given = self.arguments["padding"] is not None or self.traits.padding is not None
        return min(align_up(wanted, unit), (size - 1) // 2 // unit * unit if given else most)


def _batch_size(stated: int | None, traits: Traits, device: str) -> int:
    size = stated if stated is not None else (1 if device == "cpu" else _GPU_BATCH)
    return min(size, traits.max_batch or size)


def _notes(grid: TileGrid, traits: Traits, *, is_exact: bool, resized: bool) -> list[str]:
    width, height, padding = grid.columns.size, grid.rows.size, grid.padding
    notes = [f"Tiles of {width} x {height} pixels, padding {padding}."]
    if resized:
        size = f"{traits.network_size} x {traits.network_height or traits.network_size}"
        notes.append(f"The network takes {size} pixels: tiles are resized to that.")
    if not is_exact and traits.is_exact:
        notes.append(
            f"The network sees {traits.receptive_field_radius} pixels around an object; with a padding of {padding} "
            "objects at the edges of tiles may differ slightly from those of one pass over the whole raster."
        )
    return notes


def usable_cores() -> int:
    """Give the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
