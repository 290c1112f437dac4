"""A network as a .tflite file, which LiteRT runs on phones, in browsers and on small computers.

LiteRT's converter makes of a batch of unknown size a program that computes shapes at every layer,
and that accelerators leave to the CPU: of ResNet-20 156 operations, or 59 with its option to fuse
broadcasts, in place of the 38 here. So a batch of one size is converted, a prime that divides no
other size in the network; wherever it turns up in the program is the batch, and is set free there.
"""

import contextlib
import importlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.errors import RunError, UserError
from flaxcls.exporting.converters import by_hand, require_converter
from flaxcls.system.files import require_place, write_atomically

# Besides the converter.
MODULES = ('ai_edge_quantizer', 'ai_edge_litert')
INSTALL = 'pip install "flaxcls[tflite]"'
# No bound in a slice is larger, and larger ones than the array are cut to its size.
TO_THE_END = np.iinfo(np.int32).max
# Operations with an operand that holds sizes: which it is, and what stands there for any batch.
SIZES = {
    'tfl.reshape': (1, -1),
    'tfl.slice': (2, -1),
    'tfl.strided_slice': (2, TO_THE_END),
}


def write_tflite(
    function: Callable[[jax.Array], Any], side: int, path: str | os.PathLike, *, int8: bool = False
) -> pathlib.Path:
    """Writes a function of images as a .tflite file; returns the file.

    Its signature `serving_default` has the input `images`, uint8 [N, S, S, 3], and an output for
    each of the function's. A file is for any N: `resize_tensor_input` sets it, and it is 1 before.

    Args:
      function: images uint8 [N, S, S, 3] -> probabilities float32 [N, C], or a dictionary
        {name of the output: float32 [N, ...]}; its weights are constants, and each image is
        run alone.
      side: S, pixels.
      path: of the .tflite file to write.
      int8: keep the weights of convolutions and matrices as int8, with a scale for each output
        channel; activations are float32, and are rounded to int8 for a product where LiteRT has it.

    Raises:
      UserError: the file cannot be there, or what it takes is not installed.
      RunError: the converter cannot express the function, or cannot be fetched.
    """
    path = require_place(path)
    require_installed()
    data = convert(function, side)
    write_atomically(path, quantize(data) if int8 else data)
    return path


def require_installed() -> None:
    """Raises UserError or RunError unless there is all that `write_tflite` takes."""
    # What it changes is not used here, but loading the converter would print that it is on.
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    try:
        importlib.import_module('ai_edge_quantizer.quantizer')
        require_converter('litert_converter')
        importlib.import_module('litert_converter.mlir')
    except ImportError as error:
        remedy = f'{INSTALL} && {by_hand("litert_converter")}'
        raise UserError(f'a .tflite file takes {error.name}; {remedy}.') from None


def convert(function: Callable[[jax.Array], Any], side: int) -> bytes:
    """Returns the file's content; arguments and errors as `write_tflite`."""
    from litert_converter import converter_api_ext  # noqa: PLC0415 - an extra
    from litert_converter.mlir import ir, passmanager  # noqa: PLC0415
    from litert_converter.mlir.dialects import stablehlo  # noqa: PLC0415

    batch, names, exported = _lower(function, side)
    context = ir.Context()
    converter_api_ext.prepare_mlir_context(context)
    try:
        with context, ir.Location.unknown():
            module = stablehlo.deserialize_portable_artifact(
                context, exported.mlir_module_serialized
            )
            converter_api_ext.set_signature(module.operation, 'serving_default', ['images'], names)
            converter_api_ext.run_convert_to_tfl_passes(
                module, passmanager.PassManager(), converter_api_ext.ConvertToTFLConfig()
            )
            _set_batch_free(module, batch)
            return converter_api_ext.export_flatbuffer_to_bytes(module.operation)
    except (ValueError, ir.MLIRError) as error:
        reason = ' '.join(str(error).split())
        raise RunError(f'LiteRT cannot express this network: {reason[:300]}.') from None


def quantize(data: bytes) -> bytes:
    """Returns the content of a .tflite file with int8 weights in place of float32 ones."""
    from ai_edge_quantizer import quantizer  # noqa: PLC0415 - an extra

    tool = quantizer.Quantizer(data)
    # Not every operation there is: LiteRT multiplies no int8 matrix from the left.
    for name in ('CONV_2D', 'DEPTHWISE_CONV_2D', 'FULLY_CONNECTED'):
        tool.add_dynamic_config(regex='.*', operation_name=name, num_bits=8)
    with contextlib.redirect_stderr(io.StringIO()):  # One of its progress bars heeds no option.
        result = tool.quantize(enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _lower(function, side: int) -> tuple[int, list[str], jax.export.Exported]:
    """Returns the size of the batch, the outputs' names, and the function as StableHLO."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
    outputs = jax.eval_shape(function, images)
    names = sorted(outputs) if isinstance(outputs, dict) else ['probabilities']  # As JAX flattens.
    sizes = [side] + [size for output in jax.tree.leaves(outputs) for size in output.shape[1:]]
    batch = next(prime for prime in (1009, 1013, 1019, 1021) if all(s % prime for s in sizes))
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    # Layers have forms of their own for XLA on CPU; of TPUs' convolutions the converter knows all.
    return batch, names, jax.export.export(jax.jit(function), platforms=['tpu'])(images)


def _set_batch_free(module: Any, batch: int) -> None:
    """Replaces the size `batch` by an unknown one, throughout the converter's program."""
    from litert_converter.mlir import ir  # noqa: PLC0415 - an extra

    functions = list(module.body.operations)
    block = functions[0].regions[0].blocks[0]
    if len(functions) > 1 or any(len(operation.regions) for operation in block.operations):
        raise RunError('a .tflite file for batches of any size cannot have a loop.')
    for operation in list(block.operations):
        if operation.name in SIZES:
            _set_sizes_free(operation, batch, *SIZES[operation.name])
    for operation in list(block.operations):
        if operation.name == 'arith.constant':
            if not list(operation.result.uses):
                operation.erase()
            elif _depends_on_batch(operation, batch):
                raise RunError('LiteRT cannot express this network for batches of any size.')
    for value in _values(block):
        if isinstance(value.type, ir.RankedTensorType):
            value.set_type(_free_type(value.type, batch))
    main = functions[0]
    inputs = [_free_type(kind, batch) for kind in main.type.inputs]
    results = [_free_type(kind, batch) for kind in main.type.results]
    main.attributes['function_type'] = ir.TypeAttr.get(ir.FunctionType.get(inputs, results))


def _values(block) -> Iterator[Any]:
    yield from block.arguments
    for operation in block.operations:
        yield from operation.results


def _free_type(kind, batch: int):
    from litert_converter.mlir import ir  # noqa: PLC0415 - an extra

    unknown = ir.ShapedType.get_dynamic_size()
    return ir.RankedTensorType.get(
        [size if size % batch or not size else unknown for size in kind.shape], kind.element_type
    )


def _set_sizes_free(operation, batch: int, index: int, free: int) -> None:
    """Gives the operation a constant of its own, with `free` for the one size of the batch."""
    from litert_converter.mlir import ir  # noqa: PLC0415 - an extra
    from litert_converter.mlir.dialects import arith  # noqa: PLC0415

    constant = operation.operands[index].owner
    sizes = np.array(constant.attributes['value'])
    places = (sizes != 0) & (sizes % batch == 0)
    if places.any():
        if places.sum() > 1:
            raise RunError('LiteRT cannot express this network for batches of any size.')
        attribute = ir.DenseElementsAttr.get(np.where(places, free, sizes).astype(sizes.dtype))
        with ir.InsertionPoint(operation):
            operation.operands[index] = arith.ConstantOp(attribute.type, attribute).result


def _depends_on_batch(constant, batch: int) -> bool:
    from litert_converter.mlir import ir  # noqa: PLC0415 - an extra

    kind = constant.result.type
    if any(size and size % batch == 0 for size in kind.shape):
        return True
    if not isinstance(kind.element_type, ir.IntegerType):
        return False
    values = np.array(constant.attributes['value'])
    return bool(((values != 0) & (values % batch == 0)).any())
