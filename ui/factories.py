"""Widget factories: how Processing's windows come by the model chooser and the table of arguments.

In QGIS 3.40 and 3.44 an object that is handed to C++ through a factory gets a second Python wrapper, and the first one
is then marked as deleted (qgis/QGIS issue 67401). Hence the rules in here:

1. The factory keeps every wrapper that it has made.
2. A wrapper calls nothing of its C++ side after __init__, not even its own signals.
3. `createWidget` gives a bare container; the real widget is a child of it. Python keeps both: the container, too, gets
   a second wrapper, and its C++ side goes on asking the first one what it overrides.
4. Signals are connected to lambdas, not to bound methods of the wrapper.
5. A wrapper refers to the others of its window weakly, and to itself not at all: what the factory keeps lives as long
   as QGIS, and a second wrapper that is freed after the first one takes QGIS along.
"""

from __future__ import annotations

import weakref
from typing import Any

from qgis.core import (
    QgsApplication,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingParameterDefinition,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
    QgsVariantUtils,
)
from qgis.gui import (
    QgsAbstractProcessingParameterWidgetWrapper,
    QgsProcessingGui,
    QgsProcessingParameterWidgetFactoryInterface,
)
from qgis.PyQt import sip
from qgis.PyQt.QtWidgets import QVBoxLayout, QWidget

from ..inference.errors import InferenceError
from ..processing_provider.cell_size import wanted_cell_size
from ..processing_provider.fit_check import Unreadable, look_at
from ..processing_provider.inputs import InputList, InputRasters, input_list, opened, take_sources
from ..processing_provider.job_builder import make_draft, with_rasters
from ..processing_provider.parameter_reader import ParameterReader, as_json_text, is_json
from ..processing_provider.parameters import (
    ARGUMENTS,
    ARGUMENTS_WIDGET,
    CELL_SIZE,
    CELL_SIZE_LAYER,
    CELL_SIZE_UNIT,
    CELL_SIZE_UNITS,
    EXTENT,
    INPUT,
    INPUT_SOURCE,
    MASK,
    MAX_TILES,
    MODEL,
    MODEL_WIDGET,
    MORE_INPUTS,
    OUTPUT,
    PLAN_ONLY,
    PROCESSING_MODE,
)
from ..processing_provider.plan_estimate import estimate, estimate_all
from ..processing_provider.raster_source import SourceRaster
from ..processing_provider.run_secrets import signed_in
from .arguments_widget import ArgumentsTable, CompactArguments, ModelerArguments
from .look_task import LookTask, can_look
from .model_widget import ModelChooser

_DETECTION = "kestrel:detectobjects"
_COMPARED = (INPUT, CELL_SIZE, CELL_SIZE_UNIT, CELL_SIZE_LAYER)
"""Parameters that the model is compared with."""
_INPUTS = (INPUT, MORE_INPUTS, INPUT_SOURCE)
_PLANNED = (MORE_INPUTS, INPUT_SOURCE, PROCESSING_MODE, EXTENT, MASK, ARGUMENTS, MAX_TILES)
"""Further ones that the plan depends on."""


class ModelWrapper(QgsAbstractProcessingParameterWidgetWrapper):
    """The model chooser in a Processing window."""

    def __init__(self, parameter: QgsProcessingParameterDefinition, kind: Any) -> None:
        super().__init__(parameter, kind)
        self._kind = kind
        self._container: QWidget | None = None
        self._chooser: ModelChooser | None = None
        self._others: dict[str, weakref.ref[Any]] = {}
        self._seen: tuple[InputList, InputRasters | str] | None = None

    def createWidget(self) -> QWidget:
        """Make the chooser."""
        self._chooser = ModelChooser(is_compact=self._kind == QgsProcessingGui.WidgetType.Batch)
        self._container = _container(self._chooser)
        return self._container

    def postInitialize(self, wrappers: list[QgsAbstractProcessingParameterWidgetWrapper]) -> None:
        """Find the raster and the cell size of the same window: the model is compared with them."""
        if self._kind != QgsProcessingGui.WidgetType.Standard or self._chooser is None:
            return
        for wrapper in wrappers:
            name = wrapper.parameterDefinition().name()
            if name != MODEL:
                self._others[name] = weakref.ref(wrapper)
            if name in _COMPARED:
                wrapper.widgetValueHasChanged.connect(lambda *_: self._compare())
            if name in _PLANNED:
                wrapper.widgetValueHasChanged.connect(lambda *_: self._expect_plan())
        self._chooser.fit.has_cell_size = self._other(CELL_SIZE) is not None
        self._chooser.cell_size_wanted.connect(lambda size: self._take_cell_size(size))
        self._chooser.changed.connect(lambda: self._expect_plan())
        self._chooser.plan.wanted.connect(lambda: self._show_plan())
        self._chooser.plan.looked.connect(lambda inputs, found: self._take_look(inputs, found))
        self._chooser.plan.trial_wanted.connect(lambda: self._try_tile())
        self._compare()

    def _other(self, name: str) -> Any:
        """Give the wrapper of another parameter of the window; None where there is none, or no more."""
        reference = self._others.get(name)
        wrapper = reference() if reference is not None else None
        return wrapper if wrapper is not None and not sip.isdeleted(wrapper) else None

    def _compare(self) -> None:
        raster_input = self._other(INPUT)
        if self._chooser is None or raster_input is None:
            return
        # It owns the layer of a file that is in no project, as long as it lives.
        context = _context()
        layer = _raster_layer(raster_input.parameterValue(), context)
        raster = look_at(layer) if layer is not None and layer.isValid() else None
        size = _cell_size(self._reader(context), raster) if isinstance(raster, SourceRaster) else None
        self._chooser.compare_with(raster, size)
        self._expect_plan()

    def _take_cell_size(self, size: float) -> None:
        context = _context()
        for name, value in ((CELL_SIZE_UNIT, CELL_SIZE_UNITS[0]), (CELL_SIZE_LAYER, None), (CELL_SIZE, size)):
            other = self._other(name)
            if other is not None:
                other.setParameterValue(value, context)
        self._compare()

    def _reader(self, context: QgsProcessingContext, **others: Any) -> ParameterReader:
        """Give the values that the window shows now, as a run would read them."""
        wrappers = {name: self._other(name) for name in self._others}
        values = {name: wrapper.parameterValue() for name, wrapper in wrappers.items() if wrapper is not None}
        values[MODEL] = self._chooser.value() if self._chooser is not None else ""
        algorithm = QgsApplication.processingRegistry().createAlgorithmById(_DETECTION)
        return ParameterReader(algorithm, {**values, **others}, context)

    def _expect_plan(self) -> None:
        if self._chooser is not None and self._other(EXTENT) is not None:
            self._chooser.plan.expect()

    def _show_plan(self) -> None:
        """Tell what the run will have to do."""
        chooser = self._chooser
        if chooser is None:
            return
        reader = self._reader(_context())
        has_raster = any(reader.is_given(name) for name in _INPUTS)
        is_unreadable = isinstance(chooser.raster, Unreadable) and not chooser.raster.is_possible
        if chooser.package is None or not has_raster or is_unreadable:
            chooser.plan.show_estimate(None)  # what is wrong stands beside it
            return
        try:
            if isinstance(chooser.raster, SourceRaster) and not any(reader.is_given(name) for name in _INPUTS[1:]):
                chooser.plan.show_estimate(estimate(reader, chooser.raster, chooser.package))
                return
            inputs = input_list(reader)
            if inputs.is_quick:
                rasters = opened(inputs, reader.context.transformContext())
                chooser.plan.show_estimate(estimate_all(reader, rasters, chooser.package))
            elif self._seen is not None and self._seen[0] == inputs:
                self._show_seen(reader, self._seen[1])
            elif can_look(inputs):
                secrets = signed_in(inputs, None, reader)
                chooser.plan.look(inputs, lambda: LookTask(inputs, reader.context.transformContext(), secrets))
            else:
                chooser.plan.show_later()
        except InferenceError as error:
            chooser.plan.show_estimate(None, str(error))

    def _show_seen(self, reader: ParameterReader, found: InputRasters | str) -> None:
        """Tell the plan of rasters that were looked at in the background; of a single one also how it suits."""
        chooser = self._chooser
        if chooser is None or chooser.package is None:
            return
        if isinstance(found, str):
            chooser.plan.show_estimate(None, found)
            return
        if len(found.rasters) == 1 and isinstance(chooser.raster, Unreadable):
            chooser.compare_with(found.whole, _cell_size(reader, found.whole))
        chooser.plan.show_estimate(estimate_all(reader, found, chooser.package))

    def _take_look(self, inputs: InputList, found: InputRasters | str) -> None:
        self._seen = (inputs, found)
        self._show_plan()

    def _try_tile(self) -> None:
        if self._chooser is None:
            return
        reader = self._reader(_context(), **{PLAN_ONLY: True, OUTPUT: QgsProcessing.TEMPORARY_OUTPUT})
        try:
            draft = make_draft(reader)
            sources = take_sources(reader, draft.inputs)
            secrets = signed_in(draft.inputs, None, reader)
            plan = with_rasters(draft, reader, secrets=secrets) if draft.inputs.is_quick else None
            # Many rasters, or those on a server, are looked at in the thread, as in a run.
            self._chooser.plan.start(lambda: plan or with_rasters(draft, reader, secrets=secrets), sources)
        except InferenceError as error:
            self._chooser.plan.tell(str(error))

    def setWidgetValue(self, value: Any, context: QgsProcessingContext) -> None:
        """Show a value."""
        if self._chooser is not None:
            self._chooser.set_value(_text(value))

    def widgetValue(self) -> str:
        """Give the value."""
        return self._chooser.value() if self._chooser is not None else ""


class ArgumentsWrapper(QgsAbstractProcessingParameterWidgetWrapper):
    """The table of arguments in a Processing window; it follows the model chosen beside it."""

    def __init__(self, parameter: QgsProcessingParameterDefinition, kind: Any) -> None:
        super().__init__(parameter, kind)
        self._kind = kind
        self._container: QWidget | None = None
        self._editor: ArgumentsTable | CompactArguments | ModelerArguments | None = None
        self._chooser: ModelChooser | None = None

    def createWidget(self) -> QWidget:
        """Make the table, or what stands for it where there is less room or no model."""
        by_kind: dict[Any, type[ArgumentsTable | CompactArguments | ModelerArguments]] = {
            QgsProcessingGui.WidgetType.Batch: CompactArguments,
            QgsProcessingGui.WidgetType.Modeler: ModelerArguments,
        }
        self._editor = by_kind.get(self._kind, ArgumentsTable)()
        self._container = _container(self._editor)
        return self._container

    def postInitialize(self, wrappers: list[QgsAbstractProcessingParameterWidgetWrapper]) -> None:
        """Find the model chooser of the same window, or of the same row of a batch."""
        for wrapper in wrappers:
            if wrapper.parameterDefinition().name() == MODEL and wrapper.wrappedWidget() is not None:
                self._chooser = wrapper.wrappedWidget().findChild(ModelChooser)
        if self._chooser is not None:
            self._chooser.changed.connect(lambda: self._model_changed())
            self._model_changed()

    def _model_changed(self) -> None:
        if self._editor is not None and self._chooser is not None:
            self._editor.set_model(self._chooser.definition)

    def setWidgetValue(self, value: Any, context: QgsProcessingContext) -> None:
        """Show a value."""
        if self._editor is not None:
            self._editor.set_value(_text(value))

    def widgetValue(self) -> str:
        """Give the value."""
        return self._editor.value() if self._editor is not None else ""


def _cell_size(reader: ParameterReader, raster: SourceRaster) -> float | None:
    try:
        return wanted_cell_size(reader, raster, raster.extent)
    except InferenceError:
        return None  # the plan says what is wrong


def _context() -> QgsProcessingContext:
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    return context


def _raster_layer(value: Any, context: QgsProcessingContext) -> QgsRasterLayer | None:
    """Give the raster that a widget shows: a layer of the project, or a file; None where there is none."""
    if isinstance(value, QgsRasterLayer):
        return value
    if QgsVariantUtils.isNull(value) or not isinstance(value, str) or not value:
        return None
    layer = QgsProcessingUtils.mapLayerFromString(value, context, True, QgsProcessingUtils.LayerHint.Raster)
    return layer if isinstance(layer, QgsRasterLayer) else None


def _container(child: QWidget) -> QWidget:
    container = QWidget()
    column = QVBoxLayout(container)
    column.setContentsMargins(0, 0, 0, 0)
    column.addWidget(child)
    return container


def _text(value: Any) -> str:
    if QgsVariantUtils.isNull(value):
        return ""
    return as_json_text(value) if is_json(value) else str(value)


class _Factory(QgsProcessingParameterWidgetFactoryInterface):
    """Makes wrappers of one class.

    Args:
        widget_type: What the parameter's metadata calls for.
        wrapper_class: What it gets.
    """

    def __init__(self, widget_type: str, wrapper_class: Any) -> None:
        super().__init__()
        self._widget_type = widget_type
        self._wrapper_class = wrapper_class
        self._wrappers: list[Any] = []

    def parameterType(self) -> str:
        """Give the widget type that this factory serves."""
        return self._widget_type

    def createWidgetWrapper(self, parameter: QgsProcessingParameterDefinition, kind: Any) -> Any:
        """Make a wrapper, and keep it."""
        wrapper = self._wrapper_class(parameter, kind)
        self._wrappers.append(wrapper)
        return wrapper

    def compatibleParameterTypes(self) -> list[str]:
        """Give the inputs of a model that may feed the parameter."""
        return ["string", "file"]

    def compatibleOutputTypes(self) -> list[str]:
        """Give the outputs of a model's steps that may feed the parameter."""
        return ["outputString", "outputFile"]


def widget_factories() -> list[QgsProcessingParameterWidgetFactoryInterface]:
    """Make the factories; the caller registers them and keeps them."""
    return [_Factory(MODEL_WIDGET, ModelWrapper), _Factory(ARGUMENTS_WIDGET, ArgumentsWrapper)]
