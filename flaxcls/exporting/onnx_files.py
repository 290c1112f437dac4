"""ONNX files: read, written small, and a full disk told from a damaged network."""

import collections
import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_LITTLE_ROOM = 2**20  # Bytes that a disk may have left when a file has just not fitted.


def load_model(path: pathlib.Path) -> Any:
    """Returns the onnx.ModelProto of a file."""
    import onnx  # noqa: PLC0415 - an extra

    return onnx.load(path)


def save_model(model: Any, path: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Writes an onnx.ModelProto, checked, with short names and `about` as its metadata."""
    import onnx  # noqa: PLC0415

    del model.graph.value_info[:]  # jax2onnx leaves shapes behind that are no longer true.
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    used = {node.domain for node in model.graph.node}
    domains = [domain for domain in model.opset_import if domain.domain in used]
    del model.opset_import[:]  # onnxruntime names all that it knows.
    model.opset_import.extend(domains)
    _share_equal_constants(model.graph)
    _shorten_names(model.graph)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def join_relu6(graph: Any) -> None:
    """Makes one Clip of each ReLU with a minimum behind it, as models.layers.relu6 comes out.

    Runtimes compute it with the convolution before; in int8, whose range ends there, it is nothing.
    """
    import onnx  # noqa: PLC0415

    makers = {node.output[0]: node for node in graph.node}
    uses = collections.Counter(name for node in graph.node for name in node.input)
    scalars = {constant.name for constant in graph.initializer if not constant.dims}
    zero, joined = 'zero_of_relu6', []
    for node in graph.node:
        if node.op_type != 'Min' or len(node.input) != 2:
            continue
        for value, bound in (node.input, reversed(node.input)):
            relu = makers.get(value)
            if relu and relu.op_type == 'Relu' and uses[value] == 1 and bound in scalars:
                node.op_type, node.input[:] = 'Clip', [relu.input[0], zero, bound]
                joined.append(relu)
                break
    for relu in joined:
        graph.node.remove(relu)
    if joined:
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), zero))


def _share_equal_constants(graph: Any) -> None:
    """Keeps one of those that are alike, such as the zero points of quantization."""
    import onnx  # noqa: PLC0415

    first, same = {}, {}
    for constant in graph.initializer:
        kind = (
            constant.data_type,
            tuple(constant.dims),
            onnx.numpy_helper.to_array(constant).tobytes(),
        )
        same[constant.name] = first.setdefault(kind, constant.name)
    kept = [constant for constant in graph.initializer if same[constant.name] == constant.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


def _shorten_names(graph: Any) -> None:
    """Numbers all values but inputs and outputs; in a small network the names are a tenth of it."""
    kept = {value.name for value in (*graph.input, *graph.output)}
    numbers = collections.defaultdict(lambda: str(len(numbers)), {'': ''} | {k: k for k in kept})
    for node in graph.node:
        node.name = ''
        for names in (node.input, node.output):
            names[:] = [numbers[name] for name in names]
    for value in (*graph.initializer, *graph.value_info):
        value.name = numbers[value.name]


@contextlib.contextmanager
def full_disk_reported(path: pathlib.Path) -> Iterator[None]:
    """Raises OSError where the block fails and there is no room for a file.

    ONNX and its runtime write files without looking whether that succeeds, and then report that a
    network cannot be parsed or serialized.
    """
    try:
        yield
    except Exception as error:
        if shutil.disk_usage(path.parent).free < _LITTLE_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
