"""Draws what a network really sees in training, beside what it sees in evaluation.

  python -m flaxcls.commands.show_data --config=experiments/cifar10_resnet20.py --out=augmented.png

A column is a training image: on top as evaluation would show it, below as some epochs would, with
the shares of its labels where examples are mixed. All --config.KEY=VALUE apply.
"""

import pathlib
from collections.abc import Sequence

from flaxcls.config.files import load_config
from flaxcls.errors import UserError
from flaxcls.explaining.training_images import draw_training_images
from flaxcls.system.cli import CommandParser, parse_overrides, run_command
from flaxcls.training.setup import build_setup


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.commands.show_data', __doc__)
    parser.add_argument('--config', help='an experiment file')
    parser.add_argument('--epochs', type=int, default=5, help='rows of training (5)')
    parser.add_argument('--out', default='augmented.png', help='the picture (augmented.png)')
    flags, rest = parser.parse_known_args(argv)
    if flags.epochs < 1:
        raise UserError(f'--epochs={flags.epochs} must be positive.')
    config = load_config(flags.config, parse_overrides(rest, ['--config', '--epochs', '--out']))
    draw_training_images(build_setup(config), flags.epochs, pathlib.Path(flags.out).expanduser())
    print(f'wrote {flags.out}')


if __name__ == '__main__':
    run_command(main)
