"""Networks as ONNX, through jax2onnx."""

import logging
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from flaxcls.exporting.converters import require_converter
from flaxcls.exporting.onnx_files import full_disk_reported, join_relu6, load_model, save_model
from flaxcls.inference.export_function import Inference

OPSET = 21


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
    join_relu6(model.graph)
    save_model(model, path, about)


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
