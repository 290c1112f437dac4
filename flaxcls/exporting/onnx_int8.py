"""ONNX files whose convolutions and dense layers compute in int8."""

import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flaxcls.exporting.onnx_files import full_disk_reported, load_model, save_model

_IMAGES_AT_ONCE = 16
# Not the factors of a BatchNorm that is not folded: they are few, and int8 is coarse for them.
_OPERATORS = ['Conv', 'Relu', 'Clip', 'Gemm', 'MatMul', 'Add', 'Concat', 'MaxPool', 'AveragePool']


def quantize(
    model: pathlib.Path, images: np.ndarray, path: pathlib.Path, about: Mapping[str, Any]
) -> None:
    """Writes the int8 form of an ONNX file that `write_onnx` has written.

    Weights are int8 with a scale for each output channel; activations are uint8, in the ranges that
    they have on the images (static quantization). Of the eight bits, weights use seven: processors
    without VNNI add products of uint8 and int8 in pairs, in 16 bits, which more would overflow.

    Args:
      model: the file in float32.
      images: for calibration, from the training set, uint8 [N, S, S, 3].
      path: of the new file.
      about: as for `write_onnx`.
    """
    from onnxruntime import quantization  # noqa: PLC0415 - an extra, and slow to import

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._batches = _batches(images)

        def get_next(self):
            return next(self._batches, None)

    logging.disable(logging.WARNING)  # Of shapes, which are not numbers to quantize.
    try:
        # What is zero for all images is divided by its range.
        with np.errstate(invalid='ignore', divide='ignore'), full_disk_reported(path):
            quantization.quantize_static(
                model,
                path,
                Reader(),
                # As operators in int8, not as pairs around those in float32, which take more room.
                quant_format=quantization.QuantFormat.QOperator,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                reduce_range=True,
            )
    finally:
        logging.disable(logging.NOTSET)
    save_model(load_model(path), path, about)


def _batches(images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for first in range(0, len(images), _IMAGES_AT_ONCE):
        yield {'images': images[first : first + _IMAGES_AT_ONCE]}
