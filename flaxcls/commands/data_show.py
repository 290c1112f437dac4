"""Draws what a network really sees in training, beside what it sees in evaluation.

  flaxcls data show --config=cifar10_resnet20 --out=augmented.png

A column is a training image: on top as evaluation would show it, below as some epochs would, with
the shares of its labels where examples are mixed. All --config.KEY=VALUE apply.
"""

import pathlib
from collections.abc import Sequence

from flaxcls.commands.flags import add_config
from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls data show', __doc__)
    add_config(parser)
    parser.add_argument('--epochs', type=int, default=5, help='rows of training (5)')
    parser.add_argument('--out', default='augmented.png', help='the picture (augmented.png)')
    flags, overrides = parser.parse_with_overrides(argv)
    if flags.epochs < 1:
        raise UserError(f'--epochs={flags.epochs} must be positive.')
    from flaxcls.config.files import load_config
    from flaxcls.explaining.training_images import draw_training_images
    from flaxcls.training.setup import build_setup

    config = load_config(flags.config, overrides)
    draw_training_images(build_setup(config), flags.epochs, pathlib.Path(flags.out).expanduser())
    print(f'wrote {flags.out}')
