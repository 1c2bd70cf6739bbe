"""The description of a model as HTML. Every text of a package passes `to_ui`: it may hold anything."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

from qgis.core import Qgis, QgsCoordinateReferenceSystem, QgsUnitTypes

from ..inference.models.definition import CellSizeRange
from .code_consent import Consent
from .text import size_text, to_ui, tr

_MOST_CLASSES = 30
_MOST_METRICS = 12
_LONG = 2000
_LICENSE = 20_000

Row = tuple[str, str]
"""A label, and HTML."""


def essentials(description: Mapping[str, Any], consent: Consent | None) -> str:
    """Give what a person should see beside the model's name, as HTML without a head.

    Args:
        description: Of inference/models/description.py.
        consent: Whether its program may run; None: it has none.
    """
    return "".join([_notes(description), _table(_essential_rows(description, consent))])


def page(description: Mapping[str, Any], consent: Consent | None, fit: Iterable[str] | None = None) -> str:
    """Give everything that is known of a model, as a whole page.

    Args:
        description: Of inference/models/description.py.
        consent: Whether its program may run; None: it has none.
        fit: What does not suit about a raster; None: no raster was looked at.
    """
    title = to_ui(f"{description['name']} {description['version']}".strip())
    parts = [
        f"<h1>{title}</h1>",
        _paragraphs(description["description"], _LONG),
        _fit(fit, description.get("fit", {}).get("remarks", ())),
        _notes(description),
        _table([*_essential_rows(description, consent), *_further_rows(description)]),
        f"<h2>{tr('Arguments')}</h2>",
        _arguments(description["arguments"]),
        _license(description["license"]),
        f"<h2>{tr('Files')}</h2>",
        _files(description["files"]),
        _definition(description.get("definition")),
    ]
    return (
        '<!DOCTYPE html><html><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


_STYLE = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;line-height:1.4}"
    "th{text-align:left;vertical-align:top;padding:.2em 1em .2em 0;font-weight:600}"
    "td{vertical-align:top;padding:.2em 1em .2em 0}.warning{color:#8a4b00}"
    ".swatch{display:inline-block;width:1em;height:1em;border:1px solid #888;vertical-align:-.15em}"
)


def _essential_rows(description: Mapping[str, Any], consent: Consent | None) -> list[Row]:
    rows = [
        (tr("Family"), _family(description)),
        (tr("Classes"), _classes(description["classes"])),
        (tr("Bands"), _bands(description)),
        (tr("Tile"), tile_text(description["tile"])),
        (tr("Cell size"), cell_size_text(description["cell_size"])),
        (tr("Objects"), _geometry(description["geometry"])),
        (tr("Metrics"), _metrics(description["metrics"])),
        (tr("Program"), code_text(description.get("code"), consent)),
    ]
    return [row for row in rows if row[1]]


def _further_rows(description: Mapping[str, Any]) -> list[Row]:
    values = description["input"]["values"]
    rows = [
        (tr("Run by"), to_ui(description["run_by"])),
        (tr("Framework"), to_ui(description["framework"])),
        (tr("Model type"), to_ui(description["model_type"])),
        (tr("ArcGIS API version"), to_ui(description["arcgis_learn_version"])),
        (tr("Pixel values"), to_ui(f"{values[0]:.4g} \u2013 {values[1]:.4g}") if values else ""),
        (tr("Normalisation"), to_ui(description["normalisation"], 600)),
        (tr("Model card"), ", ".join(to_ui(name) for name in description["cards"])),
        (tr("Thumbnail"), ", ".join(to_ui(name) for name in description["thumbnails"][:5])),
        *((to_ui(name.replace("_", " ")), to_ui(_json(value), 600)) for name, value in description["facts"].items()),
        ("SHA-256", to_ui(description["sha256"])),
    ]
    return [row for row in rows if row[1]]


def _family(description: Mapping[str, Any]) -> str:
    backbone, family = to_ui(description["backbone"]), to_ui(description["family"])
    parts = [f"{family}, {backbone}" if family and backbone else family or backbone]
    if description["framework"].startswith("arcgis"):
        parts.append(f"arcgis.learn {to_ui(description['arcgis_learn_version'])}".strip())
    elif description["framework"]:
        parts.append(to_ui(description["framework"]))
    return " \u00b7 ".join(part for part in parts if part)


def _classes(classes: list[Mapping[str, Any]]) -> str:
    shown = [f"{_swatch(item['color'])}&nbsp;{to_ui(item['name'], 60)}&nbsp;({item['value']})"
             for item in classes[:_MOST_CLASSES]]  # fmt: skip
    if len(classes) > _MOST_CLASSES:
        shown.append(tr("and {count} more").format(count=len(classes) - _MOST_CLASSES))
    return ", ".join(shown)


def _swatch(color: list[int]) -> str:
    # Three spaces on a coloured ground: Qt's rich text knows no boxes.
    shade = "#" + "".join(f"{value:02x}" for value in color)
    return f'<span class="swatch" style="background-color:{shade}">&nbsp;&nbsp;&nbsp;</span>'


def _bands(description: Mapping[str, Any]) -> str:
    shown = []
    for band in description["bands"]:
        number = "" if band["number"] is None else str(band["number"])
        name = to_ui(band["name"], 60)
        shown.append(f"{number} {name}".strip())
    return ", ".join(shown)


def tile_text(tile: Mapping[str, Any]) -> str:
    """Say how large tiles are, as HTML."""
    parts = [tr("{size} pixels").format(size=to_ui(tile["size"]))]
    if tile["padding"] is not None:
        parts.append(tr("padding {padding}").format(padding=to_ui(tile["padding"])))
    return ", ".join(parts)


def cell_size_text(cell_size: Mapping[str, Any] | None) -> str:
    """Say how large the pixels of the training were, with their unit, as HTML."""
    if cell_size is None:
        return ""
    low, high = f"{cell_size['min']:.4g}", f"{cell_size['max']:.4g}"
    size = low if low == high else f"{low} \u2013 {high}"
    wanted = cell_size.get("read_at")
    read = ", " + tr("read at {size} m").format(size=f"{wanted:.4g}") if wanted else ""
    return f"{size} {to_ui(unit_name(CellSizeRange(cell_size['min'], cell_size['max'], cell_size['wkid'])))}{read}"


def unit_name(cell_size: CellSizeRange) -> str:
    """Give the short name of the unit of a model's cell size."""
    for authority in ("EPSG", "ESRI"):
        crs = QgsCoordinateReferenceSystem(f"{authority}:{cell_size.wkid}")
        if cell_size.wkid is not None and crs.isValid():
            return str(QgsUnitTypes.toAbbreviatedString(crs.mapUnits()))
    return str(QgsUnitTypes.toAbbreviatedString(Qgis.DistanceUnit.Meters))


def _geometry(geometry: str) -> str:
    return {
        "box": tr("boxes"),
        "polygon": tr("outlines"),
        "any": tr("boxes, outlines, points or lines, as its program gives them"),
    }.get(geometry, to_ui(geometry))


def _metrics(metrics: Mapping[str, Any]) -> str:
    lines = []
    for name, value in list(metrics.items())[:_MOST_METRICS]:
        label = to_ui(name.replace("_", " "), 80)
        if not isinstance(value, dict):
            lines.append(f"{label}: {to_ui(_figure(value), 80)}")
            continue
        figures = [f"{to_ui(key, 60)} {to_ui(_figure(item), 120)}" for key, item in list(value.items())[:_MOST_METRICS]]
        rest = len(value) - len(figures)
        figures += [tr("and {count} more").format(count=rest)] if rest else []
        lines.append(f"{label}: {', '.join(figures)}")
    return "<br>".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _json(value)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def code_text(code: Mapping[str, Any] | None, consent: Consent | None) -> str:
    """Say what programs a package holds and whether they run, as HTML."""
    if code is None:
        return ""
    parts = []
    if code["is_run"]:
        size = sum(file["size"] or 0 for file in code["files"])
        files = tr("{count} files, {size}").format(count=len(code["files"]), size=size_text(size))
        parts.append(f"{to_ui(code['program'])} ({files}): {consent_text(consent)}")
        parts += [f"SHA-256 {to_ui(code['sha256'])}"] if code["sha256"] else []
    if code["never_run"]:
        names = ", ".join(to_ui(name, 60) for name in code["never_run"][:5])
        more = ", \u2026" if len(code["never_run"]) > 5 else ""
        parts.append(tr("Never run: {names}").format(names=names + more))
    return "<br>".join(parts) or tr("none")


def consent_text(consent: Consent | None) -> str:
    """Say whether a program may run."""
    if consent is None:
        return ""
    return {
        Consent.GIVEN: tr("allowed to run"),
        Consent.MISSING: tr("waits for your consent"),
        Consent.DENIED: tr("forbidden by the administrator"),
        Consent.UNKNOWN: tr("not looked at yet"),
    }[consent]


def _notes(description: Mapping[str, Any]) -> str:
    return "".join(f'<p class="warning" style="color:#8a4b00">{to_ui(note, 600)}</p>' for note in description["notes"])


def _fit(texts: Iterable[str] | None, remarks: Iterable[str]) -> str:
    if texts is None:
        return ""
    found = "".join(f'<p class="warning">{to_ui(text, 800)}</p>' for text in texts)
    found += "".join(f"<p>{to_ui(remark, 800)}</p>" for remark in remarks)
    return f"<h2>{tr('Does the raster suit?')}</h2>" + (found or f"<p>{tr('Nothing speaks against it.')}</p>")


def _table(rows: list[Row]) -> str:
    cells = "".join(f"<tr><th align=\"left\" valign=\"top\">{label}&nbsp;&nbsp;</th><td>{text}</td></tr>"
                    for label, text in rows)  # fmt: skip
    return f"<table>{cells}</table>"


def _arguments(arguments: list[Mapping[str, Any]]) -> str:
    heads = "".join(f'<th align="left">{text}</th>' for text in (tr("Argument"), tr("Default"), tr("Meaning")))
    rows = "".join(
        f"<tr><td>{_named(item)}</td><td>{_default(item)}</td>"
        f"<td>{to_ui(item['help'], 800)} ({to_ui(item['expected'], 400)})</td></tr>"
        for item in arguments
    )
    return f"<table><tr>{heads}</tr>{rows}</table>"


def _named(item: Mapping[str, Any]) -> str:
    name = f"<code>{to_ui(item['name'], 80)}</code>"
    return f"{to_ui(item['label'], 80)}<br>{name}" if item["label"] else name


def _default(item: Mapping[str, Any]) -> str:
    return tr("automatic") if item["default"] is None else to_ui(_json(item["default"]), 80)


def _license(text: str) -> str:
    return f"<h2>{tr('Licence')}</h2>{_paragraphs(text, _LICENSE)}" if text else ""


def _paragraphs(text: str, longest: int) -> str:
    lines = [to_ui(line, 2000) for line in text[:longest].splitlines()]
    return "<p>" + "<br>".join(lines) + "</p>" if any(lines) else ""


def _files(files: list[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{to_ui(file['name'])}</td><td>{'' if file['size'] is None else size_text(file['size'])}</td></tr>"
        for file in files
    )
    return f"<table>{rows}</table>"


def _definition(content: Mapping[str, Any] | None) -> str:
    """Show Kestrel's own definition of the model, line by line: what may hold anything passes `to_ui`."""
    if content is None:
        return ""
    lines = "\n".join(to_ui(line, _LONG) for line in definition_text(content).splitlines())
    return f"<h2>{tr('Definition')}</h2><pre>{lines}</pre>"


def definition_text(content: Mapping[str, Any]) -> str:
    """Give a definition as the text of a file."""
    return json.dumps(content, indent=2, ensure_ascii=False)


def as_plain(description: Mapping[str, Any], consent: Consent | None) -> list[str]:
    """Give the essentials as lines for a log."""
    lines = [f"{description['name']} {description['version']}".strip()]
    for label, text in [*_essential_rows(description, consent), *_further_rows(description)]:
        lines.append(f"{label}: {_without_tags(text)}")
    return lines


def _without_tags(text: str) -> str:
    """Turn this module's own HTML into text; tags of a package are escaped in it, and stay as they are."""
    for tag in ("<br>", "&nbsp;"):
        text = text.replace(tag, "; " if tag == "<br>" else " ")
    while "<span" in text:
        start = text.index("<span")
        text = text[:start] + text[text.index("</span>", start) + len("</span>") :]
    return " ".join(html.unescape(text).split())
