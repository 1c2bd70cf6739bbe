"""The help text of the algorithm: what it does, then every parameter and output of the tables."""

from __future__ import annotations

import html
from collections.abc import Iterable

from .parameters import Output, Parameter, output_table, parameter_table
from .text import tr


def algorithm_help() -> str:
    """Give the help as HTML."""
    return f"{_introduction()}{_tables(parameter_table(), output_table())}{_fields()}"


def table_help(introduction: str, parameters: Iterable[Parameter], outputs: Iterable[Output]) -> str:
    """Give the help of an algorithm that needs no more than an introduction, as HTML."""
    return f"<p>{html.escape(introduction, quote=False)}</p>{_tables(parameters, outputs)}"


def _tables(parameters: Iterable[Parameter], outputs: Iterable[Output]) -> str:
    return "".join(
        [
            f"<h2>{tr('Parameters')}</h2>",
            *(_entry(row.label, row.help) for row in parameters),
            f"<h2>{tr('Outputs')}</h2>",
            *(_entry(row.label, row.help) for row in outputs),
        ]
    )


def _introduction() -> str:
    return "".join(
        [
            "<p>",
            tr("Finds objects in an image - trees, buildings, vehicles - with a trained deep learning model, and "
               "writes one feature for each of them."),
            "</p><p>",
            tr("Choose an image and a model and press <b>Run</b>. Everything else has a default that comes from the "
               "model. Large images are cut into overlapping tiles and put together again without seams; the image "
               "itself is never loaded as a whole."),
            "</p><p>",
            tr("Below the model stands what a run will have to do: pixels, tiles, memory. <b>Estimate time</b> tries "
               "one tile in the background and tells how long the run will take."),
            "</p><p>",
            tr("Too few objects? Lower the argument <b>threshold</b>. Too many? Raise it. Boxes upon boxes? Lower "
               "<b>nms_overlap</b>. Nothing at all? Compare the image's cell size with the one that the model was "
               "trained on; it stands below the model's name."),
            "</p>",
        ]
    )  # fmt: skip


def _entry(label: str, text: str) -> str:
    return f"<h3>{label}</h3><p>{html.escape(text, quote=False)}</p>"


def _fields() -> str:
    rows = (
        ("Class", tr("class name")),
        ("Confidence", tr("0 to 100")),
        ("ClassValue", tr("the model's number for the class")),
        ("ModelName", tr("name of the model")),
        ("Tile", tr("number of the tile that found the object")),
        ("CutByEdge", tr("the object reaches the edge of the image, or of what its tile saw, so it may be incomplete")),
        ("JobId", tr("name of the run")),
    )
    others = tr("Models with a program of their own may add further fields.")
    items = "".join(f"<li><b>{name}</b>: {text}</li>" for name, text in rows)
    return f"<h2>{tr('Fields of the objects')}</h2><ul>{items}</ul><p>{others}</p>"
