"""Exports the network of a run to a server, a phone or a browser, and proves that it is the same.

  flaxcls export --workdir=RUN --format=onnx --out=exported

Formats, and what runs them:
  stablehlo   JAX alone, on CPU, CUDA and TPU: releases until six months after the one here
  onnx        onnxruntime and others, opset 21; the form for archives
  onnx-int8   onnxruntime alone; a quarter as large, calibrated on training images
  tflite      LiteRT, on phones and small computers
  tflite-int8 the same with weights in int8, a quarter as large where they are most of it
  web         a browser: the folder is a page for any static server, such as
              python -m http.server -d exported; nothing leaves the browser, and it works offline;
              in the language of the browser if there is a translation, or in that of --language

Everything but decoding, resizing and cropping is inside: normalisation, BatchNorm folded into the
convolutions, the temperature of `flaxcls evaluate --calibrate`, softmax. The input is `images`,
uint8 [N, S, S, 3], RGB, for any N; the output is `probabilities`, float32 [N, C].

The folder gets the network, class_names.json, preprocessing.json (S, and how to get there),
certificate.json, and run.py, which runs the network without flaxcls. The certificate compares that
with the network here in float32, on images of the validation set. If it keeps less than
--min_agreement and --max_difference allow, the command fails with exit code 1, what was there
stays, and the new files are kept in FOLDER.rejected. Data that has moved is named with
--config.data.source=...

The converters to ONNX and TFLite are fetched on first use and kept in the user's cache, apart from
the packages here, whose versions they would hold back. --export_python runs the export in another
Python instead, with a flaxcls and converters of its own.
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

from flaxcls.commands.flags import add_checkpoint, add_crops, add_language, add_workdir
from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls export', __doc__)
    add = parser.add_argument
    add_workdir(parser)
    add('--format', required=True, help='see above')
    add('--out', required=True, metavar='FOLDER', help='for the files')
    add_checkpoint(parser)
    add_crops(parser)
    add('--images', type=int, default=500, help='how many to compare (500)')
    add('--calibration_images', type=int, default=200, help='training images, for int8 (200)')
    add('--min_agreement', type=float, help='share of equal predictions (1; int8: 0.98)')
    add('--max_difference', type=float, help='of a probability (1e-4; int8: any)')
    add('--onnxruntime_web', metavar='FILE', help='its npm package, where it cannot be fetched')
    add('--export_python', metavar='PYTHON', help='that has flaxcls, to run the export there')
    add_language(parser, "the browser's, or en; for web")
    flags, overrides = parser.parse_with_overrides(argv)
    if flags.export_python:
        _run_elsewhere(flags.export_python, argv)
    # By an exception, which takes the temporary folder away.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    from flaxcls.exporting.export import export

    certificate = export(
        flags.workdir,
        flags.format,
        flags.out,
        checkpoint=flags.checkpoint,
        crops=flags.crops,
        overrides=overrides,
        images=flags.images,
        calibration_images=flags.calibration_images,
        min_agreement=flags.min_agreement,
        max_difference=flags.max_difference,
        onnxruntime_web=flags.onnxruntime_web,
        language=flags.language,
    )
    print(certificate.describe())
    print(f'wrote {pathlib.Path(flags.out)}')


def _run_elsewhere(python: str, argv: Sequence[str]) -> NoReturn:
    """Becomes the same command in another Python.

    Raises:
      UserError: it is none, or cannot import flaxcls.
    """
    program = shutil.which(os.path.expanduser(python))
    try:
        command = [program or '', '-c', 'import flaxcls.commands.export']
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        raise UserError(
            f'--export_python={python} is no program; name the python of an environment that has '
            'flaxcls, such as venv/bin/python.'
        ) from None
    if tried.returncode:
        said = (tried.stderr.strip() or f'exit code {tried.returncode}').splitlines()[-1]
        raise UserError(
            f'--export_python={python} cannot import flaxcls ({said}); install it there, or name '
            'another.'
        )
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument('--export_python')
    _, rest = own.parse_known_args(argv)
    sys.stdout.flush()
    os.execv(program, [program, '-m', 'flaxcls', 'export', *rest])
