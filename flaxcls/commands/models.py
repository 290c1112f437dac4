"""Prints the table of networks, or one network layer by layer.

  flaxcls models
  flaxcls models resnet50 --image_size=288

The options of `config.model` change a network: `flaxcls train --help` lists them.
"""

from collections.abc import Sequence

from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls models', __doc__)
    parser.add_argument('name', nargs='?', help='of a network; none: the table of all')
    parser.add_argument('--image_size', type=int, help="pixels; default: the paper's")
    parser.add_argument('--extensions', default='', metavar='FILE', help='whose networks to list')
    flags = parser.parse_args(argv)
    if flags.image_size is not None and (flags.name is None or flags.image_size < 1):
        raise UserError(f'--image_size={flags.image_size} needs a network, and a positive size.')
    from flaxcls.config.extensions import load_extensions
    from flaxcls.planning.networks import layer_table, model_table

    load_extensions(flags.extensions)
    print(layer_table(flags.name, flags.image_size) if flags.name else model_table())
