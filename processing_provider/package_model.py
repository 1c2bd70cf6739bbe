"""PackageModelAlgorithm: weights and a definition become a .dlpk that Kestrel and ArcGIS open."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qgis.core import (
    Qgis,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterString,
)

from ..inference.errors import ModelPackageError
from ..inference.models.packaging import PackageParts, weights_beside, write_package
from .algorithm import KestrelAlgorithm
from .feedback import foreseen
from .help import table_help
from .parameter_reader import ParameterReader
from .parameters import MODEL_WIDGET, Output, Parameter
from .text import size_text, to_plain, tr

WEIGHTS = "WEIGHTS"
DEFINITION = "DEFINITION"
NAME = "NAME"
CARD = "CARD"
LICENSE = "LICENSE"
THUMBNAIL = "THUMBNAIL"
EXTRA_FILES = "EXTRA_FILES"
OUTPUT = "OUTPUT"

SHA256 = "SHA256"
FILE_COUNT = "FILE_COUNT"

_LONGEST_LICENSE = 2**20

_WEIGHTS = "*.onnx *.pth *.pt *.pt2 *.torchscript *.safetensors *.bin *.pb"


def parameter_table() -> tuple[Parameter, ...]:
    """Give the parameters in the order of the dialog, in the user's language."""
    file = {"behavior": Qgis.ProcessingFileParameterBehavior.File}
    return (
        Parameter(
            WEIGHTS, tr("Weights"), QgsProcessingParameterFile,
            tr("The file of the trained network: .onnx, .pth, .safetensors or .pb. Empty: the one that the definition "
               "names, beside it."),
            is_optional=True,
            options={**file, "fileFilter": f"Weights ({_WEIGHTS});;All files (*)"},
        ),
        Parameter(
            DEFINITION, tr("Definition"), QgsProcessingParameterString,
            tr("What the network is: an .emd, a definition of Kestrel's own in JSON, as a file or as its text, or a "
               "model that says it itself: an .onnx file, a STAC item, a folder of Hugging Face."),
            widget={"widget_type": MODEL_WIDGET},
        ),
        Parameter(
            NAME, tr("Name"), QgsProcessingParameterString,
            tr("Name of the package. Empty: the one in the definition."), is_optional=True,
        ),
        Parameter(
            CARD, tr("Model card"), QgsProcessingParameterFile,
            tr("A text that tells what the model was trained on and how good it is, .md or .txt."),
            is_optional=True, options={**file, "fileFilter": "Text (*.md *.txt)"},
        ),
        Parameter(
            LICENSE, tr("Licence"), QgsProcessingParameterString,
            tr("The licence of the model: its text, its name such as CC BY 4.0, or the path of a file with it."),
            is_optional=True,
        ),
        Parameter(
            THUMBNAIL, tr("Thumbnail"), QgsProcessingParameterFile,
            tr("A picture that stands for the model, PNG, JPEG or GIF."),
            is_optional=True, options={**file, "fileFilter": "Pictures (*.png *.jpg *.jpeg *.gif)"},
        ),
        Parameter(
            EXTRA_FILES, tr("Further files"), QgsProcessingParameterMultipleLayers,
            tr("What belongs to the weights: the external data of an ONNX graph, further copies of the network, the "
               "program that the definition names."),
            is_optional=True, is_advanced=True, options={"layerType": Qgis.ProcessingSourceType.File},
        ),
        Parameter(
            OUTPUT, tr("Model package"), QgsProcessingParameterFileDestination,
            tr("The .dlpk file. One that is there is replaced once the new one is whole and was opened again."),
            options={"fileFilter": tr("Model packages (*.dlpk)")},
        ),
    )  # fmt: skip


def output_table() -> tuple[Output, ...]:
    """Give the outputs besides the file."""
    return (
        Output(
            SHA256, tr("Hash"), QgsProcessingOutputString, tr("What the model is known by: SHA-256 of its content.")
        ),
        Output(FILE_COUNT, tr("Number of files"), QgsProcessingOutputNumber, tr("How many files are in the package.")),
    )


class PackageModelAlgorithm(KestrelAlgorithm):
    """Writes a model package."""

    json_keys = (DEFINITION,)

    def tables(self) -> tuple[Sequence[Parameter], Sequence[Output]]:
        """Give the parameters and outputs."""
        return parameter_table(), output_table()

    def name(self) -> str:
        """Give the second part of the id `kestrel:packagemodel`."""
        return "packagemodel"

    def displayName(self) -> str:
        """Give the name in the toolbox."""
        return tr("Create Deep Learning Model Package")

    def shortDescription(self) -> str:
        """Give the tooltip."""
        return tr(
            "Packs weights and a definition into a .dlpk that Kestrel opens, and ArcGIS where the family is Esri's."
        )

    def shortHelpString(self) -> str:
        """Give the help beside the dialog."""
        introduction = tr(
            "Packs the weights of a trained network and its definition into one .dlpk file, with a model card, a "
            "licence and a picture if you have them. A definition of Kestrel's own becomes an .emd that says the same; "
            "an .emd keeps what it says, and is written clean where it was damaged. Programs go in only when the "
            "definition names them."
        )
        return table_help(introduction, parameter_table(), output_table())

    def tags(self) -> list[str]:
        """Give the words that a search should find the algorithm by."""
        return [*"dlpk,emd,ONNX,deep learning,export,model package".split(","), tr("pack model")]

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Write the package and tell what is in it."""
        reader = ParameterReader(self, self.preprocessParameters(parameters), context)
        with foreseen():
            return _packed(reader, feedback)


def _packed(reader: ParameterReader, feedback: QgsProcessingFeedback) -> dict[str, Any]:
    algorithm, context = reader.algorithm, reader.context
    output = Path(algorithm.parameterAsFileOutput(reader.parameters, OUTPUT, context))
    files = [file for file in algorithm.parameterAsFileList(reader.parameters, EXTRA_FILES, context) if file]
    parts = PackageParts(
        weights=_path(reader, WEIGHTS) or weights_beside(reader.text(DEFINITION)),
        definition=reader.text(DEFINITION),
        name=reader.text(NAME),
        card=_path(reader, CARD),
        license=_license(reader.text(LICENSE)),
        thumbnail=_path(reader, THUMBNAIL),
        extra_files=tuple(Path(file) for file in files),
    )
    written = write_package(parts, output)
    for note in written.notes:
        feedback.pushWarning(to_plain(note))
    names = written.package.members.names()
    feedback.pushInfo(
        tr("Wrote {path}: {count} files, {size}.").format(
            path=to_plain(output), count=len(names), size=size_text(output.stat().st_size)
        )
    )
    feedback.pushInfo(to_plain(", ".join(sorted(names))))
    return {OUTPUT: str(output), SHA256: written.package.sha256(), FILE_COUNT: len(names)}


def _path(reader: ParameterReader, key: str) -> Path | None:
    text = reader.algorithm.parameterAsFile(reader.parameters, key, reader.context)
    return Path(text) if text else None


def _license(text: str) -> str:
    """Give the text, or what stands in the file that it names."""
    if "\n" in text or not os.path.isfile(text):  # noqa: PTH113 - a text that is too long for a path is none
        return text
    try:
        with Path(text).open("rb") as stream:
            data = stream.read(_LONGEST_LICENSE + 1)
    except OSError as error:
        raise ModelPackageError(f"The licence '{text}' cannot be read: {error.strerror or error}.") from error
    if len(data) > _LONGEST_LICENSE:
        raise ModelPackageError(f"The licence '{text}' is larger than 1 MB; that is none.")
    return data.decode("utf-8", "replace")
