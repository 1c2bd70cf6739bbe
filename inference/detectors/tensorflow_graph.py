"""TensorFlow graphs before they run: what they take and give, and that nothing in them reaches beyond numbers.

A graph is a program. Among TensorFlow's operations are ones that read and write files, print into them, load
libraries, talk to servers and call Python. So a graph from a package is cut down, before TensorFlow sees it, to the
operations that its detections depend on, and each of these must stand in a list of operations that only calculate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ..errors import ModelPackageError, ModelUnsupportedError

OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes")
"""Outputs that the Object Detection API's graphs have, whatever network is inside."""
OPTIONAL_OUTPUTS = ("num_detections", "detection_masks")
SAVED_MODEL = "saved_model.pb"

_IMAGE_NAMES = ("image_tensor", "input_tensor")
_EXPORT_HINT = "Export it with the Object Detection API, with the input type image_tensor."
_PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
_RANK = 4
_STRING = 7  # TensorFlow's number of the type

# Numbers in, numbers out. Strings only where assertions word their messages. Left out on purpose: everything of files,
# datasets, readers, queues, tables, summaries, sessions, servers, Python, debugging, collectives, XLA's custom calls,
# ImmutableConst (it maps a file), decoders of foreign formats, ParseTensor and the like.
_PURE = frozenset(
    """
    NoOp Const Identity IdentityN Snapshot StopGradient PreventGradient Placeholder PlaceholderV2 PlaceholderWithDefault
    EnsureShape CheckNumerics CheckNumericsV2 Assert ControlTrigger FakeParam DeepCopy GuaranteeConst
    Switch _SwitchN Merge Enter Exit NextIteration LoopCond RefSwitch RefMerge RefIdentity
    If StatelessIf While StatelessWhile For Case StatelessCase PartitionedCall StatefulPartitionedCall ToBool
    Abs Acos Acosh Add AddN AddV2 AccumulateNV2 Angle ApproximateEqual Asin Asinh Atan Atan2 Atanh Betainc BitwiseAnd
    BitwiseOr BitwiseXor Ceil ClipByValue Complex ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp
    Dawsn Digamma Div DivNoNan Equal Erf Erfc Erfinv Exp Expint Expm1 Floor FloorDiv FloorMod FresnelCos FresnelSin
    Greater GreaterEqual Igamma Igammac Imag Inv Invert IsFinite IsInf IsNan LeftShift Less LessEqual Lgamma Log Log1p
    LogicalAnd LogicalNot LogicalOr Maximum Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual Polygamma
    PopulationCount Pow Real RealDiv Reciprocal RightShift Rint Round Rsqrt Sigmoid Sign Sin Sinh Spence Sqrt Square
    SquaredDifference Sub Tan Tanh TruncateDiv TruncateMod Xdivy Xlog1py Xlogy Zeta
    BesselI0 BesselI0e BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0 BesselK0e BesselK1 BesselK1e BesselY0 BesselY1
    All Any ArgMax ArgMin Bincount DenseBincount Bucketize EuclideanNorm HistogramFixedWidth LinSpace Max Mean Min Prod
    Range Sum SegmentMax SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd SegmentProdV2 SegmentSum
    SegmentSumV2 SparseSegmentMean SparseSegmentSqrtN SparseSegmentSum UnsortedSegmentMax UnsortedSegmentMin
    UnsortedSegmentProd UnsortedSegmentSum
    BatchMatMul BatchMatMulV2 BatchMatMulV3 Cholesky Einsum MatMul MatrixBandPart MatrixDeterminant MatrixDiag
    MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixExponential MatrixInverse
    MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 MatrixSolve MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve Qr
    SelfAdjointEigV2 SparseMatMul Svd TridiagonalMatMul TridiagonalSolve LogMatrixDeterminant FFT FFT2D FFT3D IFFT
    IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D RFFT RFFT2D RFFT3D
    BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastTo Cast Concat ConcatOffset ConcatV2
    DepthToSpace Diag DiagPart DynamicPartition DynamicStitch ParallelDynamicStitch ParallelConcat Empty ExpandDims
    ExtractImagePatches ExtractVolumePatches Fill Gather GatherNd GatherV2 InplaceAdd InplaceSub InplaceUpdate
    InvertPermutation ListDiff LowerBound MirrorPad OneHot OnesLike Pack Pad PadV2 Rank Reshape ResourceGather
    ResourceGatherNd Reverse ReverseSequence ReverseV2 Roll ScatterNd ScatterNdNonAliasingAdd Select SelectV2 Shape
        ShapeN Size Slice SpaceToBatch SpaceToBatchND SpaceToDepth Split SplitV Squeeze StridedSlice
    TensorScatterAdd TensorScatterMax
    TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate Tile Transpose ConjugateTranspose
    Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex UpperBound Where ZerosLike DataFormatDimMap
    DataFormatVecPermute EditDistance SparseReorder SparseReshape SparseTensorDenseAdd SparseTensorDenseMatMul
    SparseToDense RaggedGather RaggedRange RaggedTensorToSparse RaggedTensorToTensor
    AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BiasAddV1 Conv Conv2D Conv2DBackpropInput Conv3D
    Conv3DBackpropInputV2 DepthwiseConv2dNative Dilation2D Elu FractionalAvgPool FractionalMaxPool FusedBatchNorm
    FusedBatchNormV2 FusedBatchNormV3 FusedPadConv2D FusedResizeAndPadConv2D InTopK InTopKV2 IsotonicRegression L2Loss
    LRN LeakyRelu LogSoftmax MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax NthElement Relu Relu6 Selu Softmax Softplus
    Softsign TopK TopKV2 ApproxTopK
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel QuantizeAndDequantize
    QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeV2 Dequantize
    AdjustContrast AdjustContrastv2 AdjustHue AdjustSaturation CombinedNonMaxSuppression CropAndResize
    DrawBoundingBoxes DrawBoundingBoxesV2 ExtractGlimpse ExtractGlimpseV2 GenerateBoundingBoxProposals HSVToRGB
    ImageProjectiveTransformV2 ImageProjectiveTransformV3 NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3
    NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps RGBToHSV ResizeArea ResizeBicubic
    ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate
    Multinomial RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt StatelessMultinomial
    StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessTruncatedNormal TruncatedNormal
    StatelessRandomGetKeyCounter StatelessRandomGetAlg StatelessRandomGetKeyCounterAlg
    EmptyTensorList TensorListConcat TensorListConcatLists TensorListConcatV2 TensorListElementShape
    TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack
    TensorListPushBackBatch TensorListReserve TensorListResize TensorListScatter TensorListScatterIntoExistingList
    TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack
    TensorArray TensorArrayV2 TensorArrayV3 TensorArrayClose TensorArrayCloseV2 TensorArrayCloseV3 TensorArrayConcat
    TensorArrayConcatV2 TensorArrayConcatV3 TensorArrayGather TensorArrayGatherV2 TensorArrayGatherV3 TensorArrayRead
    TensorArrayReadV2 TensorArrayReadV3 TensorArrayScatter TensorArrayScatterV2 TensorArrayScatterV3 TensorArraySize
    TensorArraySizeV2 TensorArraySizeV3 TensorArraySplit TensorArraySplitV2 TensorArraySplitV3 TensorArrayWrite
    TensorArrayWriteV2 TensorArrayWriteV3
    Stack StackV2 StackPush StackPushV2 StackPop StackPopV2
    VarHandleOp ReadVariableOp VariableShape Variable VariableV2 VarIsInitializedOp
    """.split()
)
_VARIABLES = frozenset(("VarHandleOp", "Variable", "VariableV2"))
_RESTORING = _VARIABLES | frozenset(
    """
    NoOp Const Identity IdentityN Placeholder PlaceholderWithDefault RestoreV2 Assign AssignVariableOp Pack Reshape Cast
    PartitionedCall StatefulPartitionedCall
    """.split()
)
"""What reads a SavedModel's variables from its own files, and nothing more."""
_RESTORES = "RestoreV2"
_STORING = _VARIABLES | {"Assign", "AssignVariableOp", "ReadVariableOp"}
_MAX_IDENTITIES = 100
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


@dataclass(frozen=True)
class ImageInput:
    """The tensor that takes the images.

    Args:
        tensor: Its name.
        dtype: Number of its type, as TensorFlow counts them.
        shape: Batch, height, width, channels; None where any will do.
    """

    tensor: str
    dtype: int
    shape: tuple[int | None, int | None, int | None, int | None]


@dataclass(frozen=True)
class CheckedGraph:
    """A graph that only calculates.

    Args:
        graph: The GraphDef, cut down to what the outputs depend on.
        image: The input.
        outputs: Name of the tensor by name of the output, see OUTPUTS and OPTIONAL_OUTPUTS.
        restore: Names of the tensor that takes the path of the variables, and of the operation that reads them; None
            where there are none.
    """

    graph: Any
    image: ImageInput
    outputs: Mapping[str, str]
    restore: tuple[str, str] | None = None


def read_graph(data: bytes, name: str) -> CheckedGraph:
    """Read a frozen graph or a SavedModel's graph, whichever the bytes are.

    Raises:
        ModelPackageError: neither.
        ModelUnsupportedError: not a graph of the Object Detection API, or one that does more than calculate.
    """
    is_saved_model = data[:1] == b"\x08"  # a SavedModel begins with the number of its schema, a graph with a node
    message = _message("protobuf.saved_model_pb2", "SavedModel") if is_saved_model else _message(*_GRAPH)
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ModelPackageError(
            f"The file '{name}' is not a TensorFlow graph.",
            hint="Kestrel reads frozen graphs (.pb) and SavedModels (saved_model.pb with its folder variables).",
        ) from error
    return _read_saved_model(message, name) if is_saved_model else _read_frozen(message, name)


_GRAPH = ("framework.graph_pb2", "GraphDef")


def _message(module: str, name: str, **members: Any) -> Any:
    """Make one of TensorFlow's messages; the library is imported on use, since it is optional."""
    return getattr(import_module(f"tensorflow.core.{module}"), name)(**members)


# -- Frozen graphs -----------------------------------------------------------------------------------------------------


def _read_frozen(graph: Any, name: str) -> CheckedGraph:
    if not graph.node:
        raise ModelPackageError(f"The file '{name}' holds a TensorFlow graph without operations.")
    outputs = {key: f"{node}:0" for key in OUTPUTS + OPTIONAL_OUTPUTS if (node := _node_named(graph, key))}
    _check_outputs(outputs, [node.name for node in graph.node if "detection" in node.name] or ["others"])
    walk = _Walk(graph, _PURE)
    walk.reach(outputs.values())
    variables = [node.name for node in walk.nodes() if node.op in _VARIABLES]
    if variables:
        raise ModelUnsupportedError(
            f"The graph '{name}' keeps weights in variables ('{variables[0]}'), which a file of its own does not hold.",
            hint="Freeze the graph, or use the SavedModel.",
        )
    node = _image_node(walk)
    shape = node.attr["shape"].shape if "shape" in node.attr else None
    image = _image(f"{node.name}:0", node.attr["dtype"].type, shape)
    return CheckedGraph(walk.cut(), image, outputs)


def _node_named(graph: Any, key: str) -> str:
    """Give the name of the node of an output, which may lie in a scope; empty where there is none, or no telling."""
    names = [node.name for node in graph.node]
    if key in names:
        return key
    found = [name for name in names if name.endswith(f"/{key}")]
    return found[0] if len(found) == 1 else ""


def _image_node(walk: _Walk) -> Any:
    inputs = [node for node in walk.nodes() if node.op in _PLACEHOLDERS]
    needed = [node for node in inputs if node.op != "PlaceholderWithDefault"] or inputs
    named = [node for node in inputs if node.name.rpartition("/")[2] in _IMAGE_NAMES]
    image = named[0] if len(named) == 1 else needed[0] if len(needed) == 1 else None
    others = [node.name for node in needed if node is not image]
    if image is None or others:
        listed = ", ".join(node.name for node in needed) or "nothing"
        raise ModelUnsupportedError(f"The graph takes {listed}; Kestrel feeds one batch of images.", hint=_EXPORT_HINT)
    return image


# -- SavedModels -------------------------------------------------------------------------------------------------------


def _read_saved_model(model: Any, name: str) -> CheckedGraph:
    serving = [graph for graph in model.meta_graphs if "serve" in graph.meta_info_def.tags]
    if len(serving) != 1 and len(model.meta_graphs) != 1:
        raise ModelUnsupportedError(f"The SavedModel '{name}' holds no graph, or several, for serving.")
    meta = (serving or model.meta_graphs)[0]
    signature = _signature(meta, name)
    outputs = {key: signature.outputs[key].name for key in OUTPUTS + OPTIONAL_OUTPUTS if key in signature.outputs}
    _check_outputs(outputs, sorted(signature.outputs))
    if len(signature.inputs) != 1:
        listed = ", ".join(sorted(signature.inputs)) or "nothing"
        raise ModelUnsupportedError(
            f"The SavedModel takes {listed}; Kestrel feeds one batch of images.", hint=_EXPORT_HINT
        )
    (info,) = signature.inputs.values()
    image = _image(info.name, info.dtype, info.tensor_shape)
    walk = _Walk(meta.graph_def, _PURE)
    walk.reach(outputs.values())
    if not any(node.op in _VARIABLES for node in walk.nodes()):
        return CheckedGraph(walk.cut(), image, outputs)
    saver = meta.saver_def
    if not saver.restore_op_name or not saver.filename_tensor_name:
        raise ModelPackageError(f"The SavedModel '{name}' does not say how its variables are read.")
    restore = _Walk(meta.graph_def, _RESTORING)
    restore.reach([saver.restore_op_name])
    _check_restore(restore, saver.filename_tensor_name)
    return CheckedGraph(walk.cut(restore), image, outputs, (saver.filename_tensor_name, saver.restore_op_name))


def _signature(meta: Any, name: str) -> Any:
    signatures = {key: value for key, value in meta.signature_def.items() if value.outputs}
    chosen = signatures.get("serving_default") or (next(iter(signatures.values())) if len(signatures) == 1 else None)
    if chosen is None:
        raise ModelUnsupportedError(
            f"The SavedModel '{name}' has no signature 'serving_default'.",
            hint=f"It has {', '.join(sorted(signatures)) or 'none'}. {_EXPORT_HINT}",
        )
    return chosen


def _check_restore(walk: _Walk, file_tensor: str) -> None:
    """Check that variables are read from the model's own files, whose path is ours to give.

    The rule is positive: the name of a file that is read is the tensor that gets our path, handed on as it is.
    """
    bodies = [_Body(walk.nodes(), frozenset((file_tensor.removesuffix(":0"),)), ""), *map(_body, walk.functions())]
    by_name = {body.function: body for body in bodies[1:]}
    for node in (node for body in bodies for node in body.nodes):
        if node.op in _STORING and any(key in node.attr and node.attr[key].type == _STRING for key in ("dtype", "T")):
            raise _refused(node, "keeps texts in a variable")
    called = _calls(bodies[0], bodies, by_name)
    for body in bodies:
        for node in body.nodes:
            given = called[body.function]
            if node.op == _RESTORES and not (node.input and _is_given(body, node.input[0], given, by_name)):
                raise _refused(node, "reads other files than those of the model's variables")


@dataclass(frozen=True)
class _Body:
    """The nodes of the graph or of a function.

    Args:
        nodes: Them.
        inputs: What is given from outside: the tensor that gets our path, or the arguments.
        function: Name of the function; empty: the graph.
        arguments: The function's arguments, in order.
    """

    nodes: Sequence[Any]
    inputs: frozenset[str]
    function: str
    arguments: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Any]:
        """Give the nodes by their names."""
        return {node.name: node for node in self.nodes}


def _body(function: Any) -> _Body:
    arguments = function.signature.input_arg
    names = tuple(argument.name for argument in arguments)
    all_names = [*names, *(node.name for node in function.node_def)]
    if len(set(all_names)) < len(all_names) or any(item.number_attr or item.type_list_attr for item in arguments):
        raise ModelUnsupportedError(
            f"The function '{function.signature.name}' of the TensorFlow graph has arguments that are not understood."
        )
    return _Body(function.node_def, frozenset(names), function.signature.name, names)


def _calls(graph: _Body, bodies: Sequence[_Body], by_name: Mapping[str, _Body]) -> Mapping[str, frozenset[str]]:
    """Give, by function, the inputs that are our path wherever the function is called; none where nothing calls it."""
    given = {body.function: body.inputs for body in bodies}
    reached, n_before = {graph.function}, (-1, -1)
    while n_before != (n_now := (len(reached), sum(map(len, given.values())))):  # one only grows, one only shrinks
        n_before = n_now
        for body in bodies:
            for node in body.nodes:
                is_call = node.op in _CALLS and "f" in node.attr
                target = by_name.get(node.op) or by_name.get(node.attr["f"].func.name if is_call else "")
                if target is None or body.function not in reached:
                    continue
                reached.add(target.function)
                passed = zip(target.arguments, (name for name in node.input if not name.startswith("^")))
                ours = {a for a, name in passed if _is_given(body, name, given[body.function], by_name)}
                given[target.function] = given[target.function] & ours
    return {name: inputs if name in reached else frozenset() for name, inputs in given.items()}


def _is_given(body: _Body, tensor: str, given: frozenset[str], functions: Mapping[str, Any]) -> bool:
    """Tell whether a tensor is one of those given, handed on by nothing but Identity."""
    for _ in range(_MAX_IDENTITIES):
        if tensor.removesuffix(":0") in given:
            return True
        node = body.by_name.get(_base(tensor))
        if node is None or node.op != "Identity" or node.op in functions or len(node.input) != 1:
            return False
        tensor = node.input[0]
    return False


# -- What both have ----------------------------------------------------------------------------------------------------


def _check_outputs(outputs: Mapping[str, str], found: Sequence[str]) -> None:
    missing = [key for key in OUTPUTS if key not in outputs]
    if missing:
        raise ModelUnsupportedError(
            f"The TensorFlow graph has no output named {' or '.join(missing)}.",
            hint=f"It has {', '.join(found[:12])}. Kestrel reads the outputs of the Object Detection API.",
        )


def _image(tensor: str, dtype: int, shape: Any) -> ImageInput:
    is_known = shape is not None and not shape.unknown_rank and (len(shape.dim) > 0)
    sides = [int(side.size) if side.size > 0 else None for side in shape.dim] if is_known else [None] * _RANK
    if dtype == _STRING or len(sides) != _RANK:
        found = "texts" if dtype == _STRING else f"{len(sides)} axes"
        raise ModelUnsupportedError(
            f"The graph's input '{tensor}' takes {found}; Kestrel feeds a batch of images (N, H, W, bands).",
            hint=_EXPORT_HINT,
        )
    return ImageInput(tensor, int(dtype), (sides[0], sides[1], sides[2], sides[3]))


def _base(name: str) -> str:
    """Give the name of the node that a tensor or a control input belongs to."""
    return name.lstrip("^").partition(":")[0]


def _refused(node: Any, what: str) -> ModelUnsupportedError:
    return ModelUnsupportedError(
        f"The TensorFlow graph holds the operation '{node.op}' ('{node.name}'), which {what}.",
        hint="Kestrel runs graphs that only calculate. Export the model for inference, with images as its input.",
    )


class _Walk:
    """The nodes and functions that some tensors depend on, each of them checked against a list of operations."""

    def __init__(self, graph: Any, allowed: frozenset[str]) -> None:
        self._allowed = allowed
        self._by_name = {node.name: node for node in graph.node}
        self._library = {function.signature.name: function for function in graph.library.function}
        self._versions = graph.versions
        self._nodes: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}

    def nodes(self) -> Sequence[Any]:
        """Give the reached nodes."""
        return list(self._nodes.values())

    def functions(self) -> Sequence[Any]:
        """Give the reached functions."""
        return list(self._functions.values())

    def reach(self, tensors: Any) -> None:
        """Add everything that these tensors depend on.

        Raises:
            ModelUnsupportedError: an operation is not among the allowed ones.
            ModelPackageError: something that is needed is not in the graph.
        """
        waiting = [_base(tensor) for tensor in tensors]
        while waiting:
            name = waiting.pop()
            if name in self._nodes:
                continue
            node = self._by_name.get(name)
            if node is None:
                raise ModelPackageError(
                    f"The TensorFlow graph is damaged: it has no operation '{name}', which it uses."
                )
            self._nodes[name] = node
            self._check(node)
            waiting.extend(_base(entry) for entry in node.input)

    def _check(self, node: Any) -> None:
        """Check a node, and all nodes of the functions that it calls, directly or through others."""
        waiting = [node]
        while waiting:
            item = waiting.pop()
            if item.op not in self._allowed and item.op not in self._library:
                raise _refused(item, "Kestrel does not run")
            for name in _called(item, self._library):
                function = self._library.get(name)
                if function is None:
                    raise ModelPackageError(f"The TensorFlow graph is damaged: it has no function '{name}'.")
                if name not in self._functions:
                    self._functions[name] = function
                    waiting.extend(function.node_def)

    def cut(self, other: _Walk | None = None) -> Any:
        """Give a graph of what was reached here and there, free to be placed on any device."""
        others = (other._nodes, other._functions) if other is not None else ({}, {})
        graph = _message(*_GRAPH, versions=self._versions)
        graph.node.extend({**others[0], **self._nodes}.values())
        graph.library.function.extend({**others[1], **self._functions}.values())
        for function in graph.library.function:
            function.attr.pop("api_implements", None)  # TensorFlow would take one for another that says the same
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        for node in nodes:
            node.device = ""
            node.attr.pop("_class", None)  # wishes to stand beside nodes that may be gone
        return graph


def _called(node: Any, library: Mapping[str, Any]) -> Iterator[str]:
    """Give the names of the functions that a node calls."""
    if node.op in library:
        yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        elif value.HasField("list"):
            yield from (function.name for function in value.list.func)
