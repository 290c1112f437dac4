"""Draws what a trained network sees in images, or what is in the network.

  python -m flaxcls.commands.explain --workdir=runs/digits_resnet20
  python -m flaxcls.commands.explain --workdir=runs/photos --method=occlusion --class=cat a.jpg \\
      b.png

Without images it takes some of the run's validation images. The methods:

  grad_cam              where the class is, on the feature map or another --layer (the default)
  cam                   the same, where the classifier is one layer over the means of the map
  integrated_gradients  what each pixel adds to the answer
  smooth_grad           which pixels would move the answer, averaged over noise
  occlusion             what the answer misses when it is covered
  feature_maps          the strongest channels of a --layer
  neighbours            the validation images with the most similar features
  filters               the weights of the first convolution (takes no images)
  depth                 signal and gradient from layer to layer, also without shortcuts (no images)
  reuse                 which layers in the blocks of a DenseNet read which (no images)
"""

import argparse
import pathlib
from collections.abc import Sequence

from flaxcls.errors import UserError
from flaxcls.explaining.methods import HEAT, METHODS, ExplainRequest
from flaxcls.inference.classifier import Classifier
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.system.files import require_place
from flaxcls.system.text import did_you_mean as did_you_mean
from flaxcls.training.workdir import load_stored_config

_SUFFIXES = ('.png', '.jpg', '.svg', '.pdf')


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.commands.explain', __doc__)
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--checkpoint', default='newest', help='newest (the default), best or step')
    parser.add_argument('--method', default='grad_cam', help='see above (grad_cam)')
    parser.add_argument('--layer', help='such as stage2_block1, of grad_cam and feature_maps')
    parser.add_argument('--class', dest='class_name', help='to look for; else the answer')
    parser.add_argument('--out', help='the picture (METHOD.png in the workdir)')
    parser.add_argument('images', nargs='*', help='files')
    flags = parser.parse_args(argv)
    _require_sense(flags)
    workdir = pathlib.Path(flags.workdir).expanduser()
    load_stored_config(workdir)  # A workdir that is none is told as such.
    out = require_place(flags.out or workdir / f'{flags.method}.png')
    if out.suffix.lower() not in _SUFFIXES:
        raise UserError(f'--out={out} must end in {", ".join(_SUFFIXES)}.')
    classifier = Classifier.load(workdir, checkpoint=flags.checkpoint, crops='center')
    names, label = classifier.class_names, None
    if flags.class_name is not None:
        _require_known('--class', flags.class_name, names)
        label = names.index(flags.class_name)
    layer = flags.layer or 'feature_map'
    run = ExplainRequest(classifier, workdir, flags.method, layer, label, flags.images, out)
    METHODS[flags.method](run)
    print(f'wrote {out}')


def _require_sense(flags: argparse.Namespace) -> None:
    """Raises UserError for an unknown method, and for what it would not heed."""
    method = flags.method
    _require_known('--method', method, list(METHODS))
    heeded = {
        '--layer': (flags.layer, ['grad_cam', 'feature_maps']),
        '--class': (flags.class_name, list(HEAT)),
        'images': (flags.images, [*HEAT, 'feature_maps', 'neighbours']),
    }
    for name, (value, by) in heeded.items():
        if value and method not in by:
            raise UserError(f'--method={method} takes no {name}; {", ".join(by)} would.')


def _require_known(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        remedy = did_you_mean(value, known) or f'; choose from {", ".join(known[:20])}'
        raise UserError(f'{flag}={value!r} is unknown{remedy}.')


if __name__ == '__main__':
    run_command(main)
