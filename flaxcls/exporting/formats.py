"""The formats of export, and how each is written."""

import importlib.util
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flaxcls.errors import UserError
from flaxcls.exporting import tflite
from flaxcls.exporting.certificate import Bounds
from flaxcls.exporting.onnx import write_onnx
from flaxcls.exporting.onnx_int8 import quantize
from flaxcls.exporting.tflite import write_tflite
from flaxcls.exporting.web import write_page
from flaxcls.inference.classifier import Classifier
from flaxcls.system.text import did_you_mean
from flaxcls.system.translation import Message


class Request(NamedTuple):
    """What a format is written from.

    Attributes:
      classifier: what is exported.
      about: class names and preprocessing, as JSON takes them.
      training_images: uint8 [N, S, S, 3], for calibration; None unless the format `calibrates`.
      onnxruntime_web: a file, see `write_page`; None: it is fetched.
      language: of the page, see `write_page`.
    """

    classifier: Classifier
    about: Mapping[str, Any]
    training_images: np.ndarray | None = None
    onnxruntime_web: str | None = None
    language: str | None = None


class Format(NamedTuple):
    """A format of export.

    Attributes:
      file: the network's name in the folder.
      write: writes it, given the request and the path.
      bounds: what the certificate is to keep, if nothing else is asked.
      needs: the modules that it needs, besides flaxcls's own.
      install: the command that installs them.
      converter: a row of CONVERTERS, which is fetched where it is not installed.
      calibrates: it looks at training images.
    """

    file: str
    write: Callable[[Request, pathlib.Path], None]
    bounds: Bounds
    needs: tuple[str, ...] = ()
    install: str = ''
    converter: str | None = None
    calibrates: bool = False

    @property
    def tools(self) -> tuple[str, ...]:
        """The modules whose versions a certificate names."""
        return (*self.needs, self.converter) if self.converter else self.needs


def _write_stablehlo(request: Request, path: pathlib.Path) -> None:
    request.classifier.export(path)


def _write_onnx(request: Request, path: pathlib.Path, *, with_maps: bool = False) -> None:
    classifier = request.classifier
    inference = classifier.inference(with_maps=with_maps)
    write_onnx(inference, classifier.side, path, request.about)


def _write_int8(request: Request, path: pathlib.Path) -> None:
    exact = path.with_suffix('.float32.onnx')
    _write_onnx(request, exact)
    quantize(exact, request.training_images, path, request.about)
    exact.unlink()


def _write_tflite(request: Request, path: pathlib.Path, *, int8: bool = False) -> None:
    classifier = request.classifier
    write_tflite(classifier.inference(), classifier.side, path, int8=int8)


def _write_tflite_int8(request: Request, path: pathlib.Path) -> None:
    _write_tflite(request, path, int8=True)


def _write_web(request: Request, path: pathlib.Path) -> None:
    classifier, preprocessing = request.classifier, request.about['preprocessing']
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / path.name
        _write_onnx(request, model, with_maps=True)
        about = {
            'title': classifier.model_name,
            'class_names': classifier.class_names,
            'side': classifier.side,
            'shorter_side': preprocessing['shorter_side'],
            'facts': Message('The checkpoint of step {step}.', step=f'{classifier.step:,}'),
        }
        write_page(
            path.parent,
            model,
            about,
            onnxruntime_web=request.onnxruntime_web,
            language=request.language,
        )


EXACT = Bounds(agreement=1.0, difference=1e-4)
INT8 = Bounds(agreement=0.98, difference=None)
_ONNX = {
    'needs': ('onnx', 'onnxruntime'),
    'install': 'pip install "flaxcls[onnx]"',
    'converter': 'jax2onnx',
}
_TFLITE = {'needs': tflite.MODULES, 'install': tflite.INSTALL, 'converter': 'litert_converter'}
FORMATS = {
    'stablehlo': Format('model.stablehlo', _write_stablehlo, EXACT),
    'onnx': Format('model.onnx', _write_onnx, EXACT, **_ONNX),
    'onnx-int8': Format('model.onnx', _write_int8, INT8, **_ONNX, calibrates=True),
    'tflite': Format('model.tflite', _write_tflite, EXACT, **_TFLITE),
    'tflite-int8': Format('model.tflite', _write_tflite_int8, INT8, **_TFLITE),
    'web': Format('model.onnx', _write_web, EXACT, **_ONNX),
}


def find_format(name: str) -> Format:
    """Returns a row of FORMATS.

    Raises:
      UserError: there is no such format, or what it needs is not installed.
    """
    if name not in FORMATS:
        remedy = did_you_mean(name, list(FORMATS)) or f'; choose from {", ".join(FORMATS)}'
        raise UserError(f'--format={name} is unknown{remedy}.')
    found = FORMATS[name]
    missing = [module for module in found.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f'--format={name} needs {missing[0]}, which is not installed; run  {found.install}'
        )
    return found
