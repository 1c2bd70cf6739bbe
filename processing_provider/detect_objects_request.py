"""DetectObjectsRequestAlgorithm: ArcGIS's own request, word for word, run as `kestrel:detectobjects`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingMultiStepFeedback,
    QgsProcessingOutputString,
    QgsProcessingParameterString,
)

from . import parameters as keys
from .algorithm import KestrelAlgorithm
from .feedback import foreseen
from .help import table_help
from .parameter_reader import ParameterReader
from .parameters import Output, Parameter
from .request_run import PASSED_ON, RequestRun, request_run
from .rest_request.answer import JobMessage, blamed, finished_job, out_objects
from .text import to_plain, tr

REQUEST = "REQUEST"
JOB = "JOB"


def parameter_table() -> tuple[Parameter, ...]:
    """Give the parameters in the order of the dialog, in the user's language."""
    rows = {row.key: row for row in keys.parameter_table()}
    output = rows[keys.OUTPUT]
    return (
        Parameter(
            REQUEST, tr("Request"), QgsProcessingParameterString,
            tr("The operation's parameters as JSON, as the body of a form (inputRaster=...&model=...), or the path of "
               "a .json file with one of these; in a file, relative paths begin at its folder. No token: choose an "
               "authentication configuration instead."),
            options={"multiLine": True},
        ),
        *(rows[key] for key in PASSED_ON if key in rows),
        Parameter(
            keys.OUTPUT, output.label, output.make,
            tr("Where the objects go, instead of the request's outputObjects where that names a file, and besides it "
               "where it names a service."),
            is_optional=True, options={**output.options, "createByDefault": False},
        ),
    )  # fmt: skip


def output_table() -> tuple[Output, ...]:
    """Give the outputs besides the layer."""
    text = QgsProcessingOutputString
    return (
        *(row for row in keys.output_table() if row.key != keys.OUT_OBJECTS),
        Output(
            keys.OUT_OBJECTS, tr("Value of outObjects"), text,
            tr("The operation's result, as JSON: where the objects are."),
        ),
        Output(JOB, tr("Job"), text, tr("The operation's answer about the finished job, with its messages, as JSON.")),
    )  # fmt: skip


class DetectObjectsRequestAlgorithm(KestrelAlgorithm):
    """Takes a request of ArcGIS's operation DetectObjectsUsingDeepLearning and runs it."""

    json_keys = (REQUEST, keys.ALLOW_PACKAGE_CODE)

    def tables(self) -> tuple[Sequence[Parameter], Sequence[Output]]:
        """Give the parameters and outputs."""
        return parameter_table(), output_table()

    def __init__(self) -> None:
        """Start without a run; prepareAlgorithm makes it."""
        super().__init__()
        self._child: RequestRun | None = None
        self._messages: list[JobMessage] = []

    def name(self) -> str:
        """Give the second part of the id `kestrel:detectobjectsrequest`."""
        return "detectobjectsrequest"

    def displayName(self) -> str:
        """Give the name in the toolbox."""
        return tr("Detect Objects from an ArcGIS Request")

    def shortDescription(self) -> str:
        """Give the tooltip."""
        return tr("Runs a request written for ArcGIS's operation DetectObjectsUsingDeepLearning, word for word.")

    def shortHelpString(self) -> str:
        """Give the help beside the dialog."""
        introduction = tr(
            "Takes the parameters of ArcGIS's REST operation DetectObjectsUsingDeepLearning - inputRaster, "
            "outputObjects, model, modelArguments, runNMS, context and the others - and runs them here, as Detect "
            "Objects Using Deep Learning would. What has no effect is named in the log; what cannot be done is refused "
            "with the member's name."
        )
        return table_help(introduction, parameter_table(), output_table())

    def tags(self) -> list[str]:
        """Give the words that a search should find the algorithm by."""
        return [*"ArcGIS,REST,DetectObjectsUsingDeepLearning,raster analysis,JSON,request".split(",")]

    def checkParameterValues(self, parameters: dict[str, Any], context: QgsProcessingContext) -> tuple[bool, str]:
        """Refuse what cannot work, before anything is started."""
        try:
            with foreseen():
                is_valid, reason = super().checkParameterValues(self.preprocessParameters(parameters), context)
                if is_valid:
                    child = self._requested(parameters, context)
                    is_valid, reason = child.algorithm.checkParameterValues(child.parameters, context)
                    reason = reason if is_valid else _named(reason, child)
        except QgsProcessingException as error:
            return False, str(error)
        return is_valid, reason

    def _requested(self, parameters: dict[str, Any], context: QgsProcessingContext) -> RequestRun:
        reader = ParameterReader(self, parameters, context)
        return request_run(reader.text(REQUEST), reader)

    def prepareAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> bool:
        """Translate the request, and prepare the run that it asks for."""
        with foreseen():
            child = self._child = self._requested(parameters, context)
        keeper = _MessageKeeper(feedback, self._messages)
        for warning in child.translation.warnings:
            keeper.pushWarning(to_plain(warning))
        if keys.AT_PORTAL_ALONE in child.parameters:
            keeper.pushInfo(
                to_plain(
                    tr(
                        "AUTHENTICATION signs in at {portal} and at its own servers, and at no other "
                        "server that the request names."
                    ).format(portal=child.portal)
                )
            )
        with _naming_the_member(child):
            return child.algorithm.prepareAlgorithm(child.parameters, context, keeper)

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Run it, and answer as the operation does."""
        child = self._child
        if child is None:
            raise QgsProcessingException("prepareAlgorithm was not called.")
        with _naming_the_member(child):
            keeper = _MessageKeeper(feedback, self._messages)
            results = child.algorithm.processAlgorithm(child.parameters, context, keeper)
        if keys.JOB_ID not in results:
            return results  # cancelled, or only planned
        messages = self._messages if child.translation.has_messages else []
        job = finished_job(results[keys.JOB_ID], messages, child.translation.members)
        return {**results, keys.OUT_OBJECTS: out_objects(results[keys.OUT_OBJECTS]), JOB: job}

    def postProcessAlgorithm(self, context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> dict[str, Any]:
        """Let the run do what it has to do in the main thread."""
        return {} if self._child is None else self._child.algorithm.postProcessAlgorithm(context, feedback)


@contextmanager
def _naming_the_member(run: RequestRun) -> Iterator[None]:
    """Let a failure begin with the member that it is about."""
    try:
        yield
    except QgsProcessingException as error:
        raise QgsProcessingException(_named(str(error), run)) from error


def _named(reason: str, run: RequestRun) -> str:
    member = blamed(reason, run.addresses)
    return tr("The request's member '{member}': {reason}").format(member=member, reason=reason) if member else reason


class _MessageKeeper(QgsProcessingMultiStepFeedback):
    """Passes on what a run says, and keeps its messages as those of a job."""

    def __init__(self, feedback: QgsProcessingFeedback, messages: list[JobMessage]) -> None:
        super().__init__(1, feedback)
        self._messages = messages

    def pushInfo(self, info: str) -> None:
        self._keep("Informative", info)
        super().pushInfo(info)

    def pushWarning(self, warning: str) -> None:
        self._keep("Warning", warning)
        super().pushWarning(warning)

    def reportError(self, error: str, fatalError: bool = False) -> None:
        self._keep("Error", error)
        super().reportError(error, fatalError)

    def _keep(self, kind: str, text: str) -> None:
        self._messages.append(JobMessage(kind, text))
