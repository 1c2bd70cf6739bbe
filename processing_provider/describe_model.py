"""DescribeModelAlgorithm: what a model package is, without running anything of it and without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)

from ..inference.errors import (
    ModelIncompatibleError,
    ModelUnsupportedError,
    OutputError,
    RasterOpenError,
    UntrustedCodeError,
)
from ..inference.models.description import describe_package, told_of_refused
from ..inference.models.package import ModelPackage, open_package
from .algorithm import KestrelAlgorithm
from .code_consent import Consent, consent_to
from .description_html import as_plain, definition_text, page
from .feedback import foreseen
from .fit_check import fit_report
from .help import table_help
from .job_builder import model_reference
from .parameter_reader import ParameterReader
from .parameters import MODEL_WIDGET, Output, Parameter
from .raster_source import SourceRaster, source_raster
from .text import to_plain, tr

MODEL = "MODEL"
INPUT = "INPUT"
OUTPUT_HTML = "OUTPUT_HTML"
OUTPUT_JSON = "OUTPUT_JSON"
OUTPUT_DEFINITION = "OUTPUT_DEFINITION"

NAME = "NAME"
FAMILY = "FAMILY"
CLASS_COUNT = "CLASS_COUNT"
NEEDS_CONSENT = "NEEDS_CONSENT"
CODE_SHA256 = "CODE_SHA256"
DESCRIPTION = "DESCRIPTION"

_UNDERSTOOD = (ModelUnsupportedError, ModelIncompatibleError, UntrustedCodeError)
"""Refused for what the model is: its definition could be read."""


def parameter_table() -> tuple[Parameter, ...]:
    """Give the parameters in the order of the dialog, in the user's language."""
    no_file = {"createByDefault": False}
    return (
        Parameter(
            MODEL, tr("Model definition"), QgsProcessingParameterString,
            tr("The model: a .dlpk package, an .emd or .json definition that lies beside its weights, a folder, or a "
               "file that says enough by itself. The text of a definition in JSON works too."),
            widget={"widget_type": MODEL_WIDGET},
        ),
        Parameter(
            INPUT, tr("Raster to compare with"), QgsProcessingParameterRasterLayer,
            tr("An image: cell size, bands and pixel values are compared with what the model was trained on."),
            is_optional=True,
        ),
        Parameter(
            OUTPUT_HTML, tr("Description as a page"), QgsProcessingParameterFileDestination,
            tr("Everything that is known of the model, to read."),
            is_optional=True, options={"fileFilter": "HTML (*.html)", **no_file},
        ),
        Parameter(
            OUTPUT_JSON, tr("Description as JSON"), QgsProcessingParameterFileDestination,
            tr("The same for programs."),
            is_optional=True, options={"fileFilter": "JSON (*.json)", **no_file},
        ),
        Parameter(
            OUTPUT_DEFINITION, tr("Definition"), QgsProcessingParameterFileDestination,
            tr("The model as Kestrel's own definition. Saved beside the weights it is a model that can be edited and "
               "chosen: other bands, another stretch of the values, other defaults of the arguments."),
            is_optional=True, options={"fileFilter": "JSON (*.json)", **no_file},
        ),
    )  # fmt: skip


def output_table() -> tuple[Output, ...]:
    """Give the outputs besides the files."""
    number, text = QgsProcessingOutputNumber, QgsProcessingOutputString
    return (
        Output(NAME, tr("Name"), text, tr("The model's name.")),
        Output(FAMILY, tr("Family"), text, tr("What kind of network it is.")),
        Output(CLASS_COUNT, tr("Number of classes"), number, tr("How many classes of objects it tells apart.")),
        Output(
            NEEDS_CONSENT, tr("Needs consent"), number,
            tr("1: the model is a program that nobody has allowed to run here; 0: it can be run."),
        ),
        Output(
            CODE_SHA256, tr("Hash of the program"), text,
            tr("What ALLOW_PACKAGE_CODE of the detection must be; empty where the model is no program."),
        ),
        Output(DESCRIPTION, tr("Description"), text, tr("All of it, as JSON.")),
    )  # fmt: skip


class DescribeModelAlgorithm(KestrelAlgorithm):
    """Tells what a model package is."""

    json_keys = (MODEL,)

    def tables(self) -> tuple[Sequence[Parameter], Sequence[Output]]:
        """Give the parameters and outputs."""
        return parameter_table(), output_table()

    def __init__(self) -> None:
        """Start without a raster; prepareAlgorithm looks at it."""
        super().__init__()
        self._raster: SourceRaster | None = None

    def name(self) -> str:
        """Give the second part of the id `kestrel:describemodel`."""
        return "describemodel"

    def displayName(self) -> str:
        """Give the name in the toolbox."""
        return tr("Describe Deep Learning Model")

    def shortDescription(self) -> str:
        """Give the tooltip."""
        return tr("Tells what a model package is: family, classes, bands, cell size, arguments, licence, programs.")

    def shortHelpString(self) -> str:
        """Give the help beside the dialog."""
        introduction = tr(
            "Tells what a model package is: its family and backbone, classes, bands, tiles, cell size, arguments, "
            "metrics, licence, and the programs in it. Nothing in the package is run, and no inference environment is "
            "needed. With a raster it also says whether the two suit each other."
        )
        return table_help(introduction, parameter_table(), output_table())

    def tags(self) -> list[str]:
        """Give the words that a search should find the algorithm by."""
        return [*"model info,deep learning,dlpk,emd,ONNX,model card".split(","), tr("describe model")]

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Take from the layer what is bound to this thread."""
        reader = ParameterReader(self, parameters, context)
        with foreseen():
            if reader.is_given(INPUT):
                layer = self.parameterAsRasterLayer(parameters, INPUT, context)
                if layer is None:
                    raise RasterOpenError(self.invalidRasterError(parameters, INPUT))
                self._raster = source_raster(layer)
        return True

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Read the package, tell, and write the files."""
        reader = ParameterReader(self, self.preprocessParameters(parameters), context)
        with foreseen():
            package = _opened(model_reference(reader.text(MODEL)))
            return self._told(package, reader, feedback)

    def _told(self, package: ModelPackage, reader: ParameterReader, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        description = describe_package(package)
        code = description["code"]
        consent = consent_to(code["sha256"]) if code["is_run"] else None
        code["consent"] = "" if consent is None else consent.value
        fit = None
        if self._raster is not None:
            report = fit_report(package.definition, self._raster)
            fit = report.all_texts()
            description["fit"] = {"is_possible": report.is_possible, "warnings": fit, "ground_cell_size": report.ground}
            description["fit"]["cell_size"] = report.cell_size.fitting if report.cell_size else None
            description["fit"]["remarks"] = list(report.remarks)
        _push(feedback, description, consent, fit)
        text = json.dumps(description, indent=2, ensure_ascii=False)
        results = {
            NAME: description["name"],
            FAMILY: description["family"],
            CLASS_COUNT: len(description["classes"]),
            NEEDS_CONSENT: int(consent not in (None, Consent.GIVEN)),
            CODE_SHA256: code["sha256"],
            DESCRIPTION: json.dumps(description, ensure_ascii=False),
        }
        files = {OUTPUT_HTML: page(description, consent, fit), OUTPUT_JSON: text}
        if reader.is_given(OUTPUT_DEFINITION):
            files[OUTPUT_DEFINITION] = _definition_text(description)
        for key, content in files.items():
            path = self.parameterAsFileOutput(reader.parameters, key, reader.context)
            if path and reader.is_given(key):
                _write(Path(path), content)
                results[key] = path
        return results


def _definition_text(description: dict[str, Any]) -> str:
    if description["definition"] is None:
        raise ModelUnsupportedError(
            f"The model '{description['name']}' is described in a way that a definition of Kestrel's own has no words "
            "for.",
            hint="Edit the model's .emd instead.",
        )
    return definition_text(description["definition"])


def _opened(reference: str) -> ModelPackage:
    try:
        return open_package(reference)
    except _UNDERSTOOD as error:
        told = told_of_refused(reference)
        error.message = f"{error.message} ({told}.)" if told else error.message
        raise


def _push(
    feedback: QgsProcessingFeedback, description: dict[str, Any], consent: Consent | None, fit: list[str] | None
) -> None:
    for line in as_plain(description, consent):
        feedback.pushInfo(to_plain(line))
    for item in description["arguments"]:
        default = tr("automatic") if item["default"] is None else item["default"]
        feedback.pushInfo(to_plain(f"{item['name']} = {default}: {item['help']} ({item['expected']})"))
    for note in (*description["notes"], *(fit or ())):
        feedback.pushWarning(to_plain(note))
    for remark in description.get("fit", {}).get("remarks", ()):
        feedback.pushInfo(to_plain(remark))
    if fit == []:
        feedback.pushInfo(tr("Nothing speaks against using the model on this raster."))


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, "utf-8")
    except OSError as error:
        raise OutputError(
            f"The file '{path}' cannot be written: {error.strerror or error}.", hint="Choose another place."
        ) from error
