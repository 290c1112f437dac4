"""Networks as ONNX files, through jax2onnx, and their int8 form through onnxruntime's quantizer."""

import collections
import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from flaxcls.exporting.converters import require_converter
from flaxcls.inference.export_function import Inference

OPSET = 21
_LITTLE_ROOM = 2**20  # Bytes that a disk may have left when a file has just not fitted.


def write_onnx(
    inference: Inference, side: int, path: pathlib.Path, about: Mapping[str, Any]
) -> None:
    """Writes a network as ONNX, with operators of the standard alone.

    Its input is `images`, uint8 [N, S, S, 3]; its outputs are those of the inference by their
    names. N is free. What is known before the images are is computed, and the transpositions
    between the channels' places in JAX and in ONNX are taken out.

    Args:
      inference: see `make_inference`.
      side: S.
      path: of the .onnx file to write.
      about: goes into the file's metadata, as JSON.

    Raises:
      RunError: jax2onnx is not installed and cannot be fetched.
    """
    require_converter('jax2onnx')
    import jax2onnx  # noqa: PLC0415 - not installed with flaxcls, and slow to import

    # It warns of shapes that it leaves out; all are inferred anew.
    logging.getLogger('onnx_ir').setLevel(logging.ERROR)
    # And of each library, such as Equinox, whose layers it would convert if that were installed.
    logging.getLogger('jax2onnx.plugins.plugin_system').setLevel(logging.ERROR)

    (count,) = jax.export.symbolic_shape('N')
    images = jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8)
    names = sorted(jax.eval_shape(inference, images))
    model = jax2onnx.to_onnx(
        lambda images: tuple(inference(images)[name] for name in names),
        [images],
        model_name='flaxcls',
        opset=OPSET,
        input_names=['images'],
        output_names=names,
    )
    with tempfile.TemporaryDirectory() as folder:
        raw, simplified = (pathlib.Path(folder, f'{name}.onnx') for name in ('raw', 'simplified'))
        save_model(model, raw, about={})
        _simplify(raw, simplified)
        model = load_model(simplified)
    save_model(model, path, about)


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


def _simplify(path: pathlib.Path, simplified: pathlib.Path) -> None:
    # onnxslim 0.1 leaves 30 of a DenseNet's transpositions where this leaves 2, and long names.
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    # More than the basic ones would write operators that are onnxruntime's own.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(simplified)
    options.log_severity_level = 3
    with full_disk_reported(simplified):
        onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


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
