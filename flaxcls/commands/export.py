"""Exports the network of a run to a server, a phone or a browser, and proves that it is the same.

  python -m flaxcls.commands.export --workdir=RUN --format=onnx --out=exported

Formats, and what runs them:
  stablehlo   JAX alone, on CPU, CUDA and TPU
  onnx        onnxruntime and others, opset 21
  onnx-int8   onnxruntime alone; a quarter as large, calibrated on training images
  tflite      LiteRT, on phones and small computers
  tflite-int8 the same with weights in int8, a quarter as large where they are most of it
  web         a browser: the folder is a page for any static server, such as
              python -m http.server -d exported; nothing leaves the browser, and it works offline

Everything but decoding, resizing and cropping is inside: normalisation, BatchNorm folded into the
convolutions, the temperature of `flaxcls.commands.evaluate --calibrate`, softmax. The input is
`images`,
uint8 [N, S, S, 3], RGB, for any N; the output is `probabilities`, float32 [N, C].

The folder gets the network, class_names.json, preprocessing.json (S, and how to get there),
certificate.json, and run.py, which runs the network without flaxcls. The certificate comes of so
running it on images of the validation set, beside the network here in float32. If it keeps less
than --min_agreement and --max_difference allow, the command fails with exit code 1, what was there
stays, and the new files are kept in FOLDER.rejected. Data that has moved is named with
--config.data.source=...
"""

import argparse
import dataclasses
import math
import pathlib
import signal
import sys
from collections.abc import Sequence

from flaxcls.errors import UserError
from flaxcls.exporting.certificate import Bounds
from flaxcls.exporting.export import CALIBRATION_IMAGES, IMAGES, export
from flaxcls.exporting.formats import FORMATS
from flaxcls.inference.classifier import CROPS
from flaxcls.system.cli import CommandParser, parse_overrides, run_command

_FLAGS = ('--workdir', '--format', '--out', '--checkpoint', '--crops', '--images')


_FLAGS += ('--calibration_images', '--min_agreement', '--max_difference', '--onnxruntime_web')


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = CommandParser('flaxcls.commands.export', __doc__)
    add = parser.add_argument
    add('--workdir', required=True, help='of the run')
    add('--format', required=True, choices=tuple(FORMATS), help='see above')
    add('--out', required=True, metavar='FOLDER', help='for the files')
    add('--checkpoint', default='newest', help='newest (the default), best or step')
    add('--crops', choices=CROPS, help='views to average (as the run does)')
    add('--images', type=int, default=IMAGES, help=f'to compare ({IMAGES})')
    add(
        '--calibration_images',
        type=int,
        default=CALIBRATION_IMAGES,
        help=f'of the training set, for int8 ({CALIBRATION_IMAGES})',
    )
    add('--min_agreement', type=float, help='share of equal answers (1; int8: 0.98)')
    add('--max_difference', type=float, help='of a probability (1e-4; int8: any)')
    add('--onnxruntime_web', metavar='FILE', help='its npm package, where it cannot be fetched')
    flags, rest = parser.parse_known_args(argv)
    for name in ('images', 'calibration_images'):
        if getattr(flags, name) < 1:
            raise UserError(f'--{name}={getattr(flags, name)} must be positive.')
    if flags.max_difference is not None and not 0 <= flags.max_difference < math.inf:
        raise UserError(f'--max_difference={flags.max_difference} must be 0 or more.')
    if flags.min_agreement is not None and not 0 <= flags.min_agreement <= 1:
        raise UserError(f'--min_agreement={flags.min_agreement} must be within 0 and 1.')
    return flags, parse_overrides(rest, _FLAGS)


def _bounds(flags: argparse.Namespace) -> Bounds:
    given = {'agreement': flags.min_agreement, 'difference': flags.max_difference}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(FORMATS[flags.format].bounds, **given)


def main(argv: Sequence[str]) -> None:
    # By an exception, which takes the temporary folder away.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    flags, overrides = _parse(argv)
    certificate = export(
        flags.workdir,
        flags.format,
        flags.out,
        checkpoint=flags.checkpoint,
        crops=flags.crops,
        overrides=overrides,
        images=flags.images,
        calibration_images=flags.calibration_images,
        bounds=_bounds(flags),
        onnxruntime_web=flags.onnxruntime_web,
    )
    print(certificate.describe())
    print(f'wrote {pathlib.Path(flags.out)}')


if __name__ == '__main__':
    run_command(main)
