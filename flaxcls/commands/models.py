"""Prints the table of networks, or one network layer by layer, or draws it.

  flaxcls models
  flaxcls models resnet50 --image_size=288
  flaxcls models resnet50 --svg --config.model.width_multiplier=0.5

The options of `config.model` change a network: `flaxcls train --help` lists them.
"""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser

if TYPE_CHECKING:
    import flax.linen as nn


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls models', __doc__)
    parser.add_argument('name', nargs='?', help='of a network; none: the table of all')
    parser.add_argument('--image_size', type=int, help="pixels; default: the paper's")
    parser.add_argument(
        '--svg',
        nargs='?',
        const='',
        metavar='FILE',
        help='draw the network into this file, by default NAME.svg; -: to stdout',
    )
    parser.add_argument('--extensions', default='', metavar='FILE', help='whose networks to list')
    flags, overrides = parser.parse_with_overrides(argv)
    if flags.image_size is not None and (flags.name is None or flags.image_size < 1):
        raise UserError(f'--image_size={flags.image_size} needs a network, and a positive size.')
    if flags.svg is not None and flags.name is None:
        raise UserError(f'--svg={flags.svg} needs a network before it, as in resnet50 --svg.')
    if overrides and flags.name is None:
        raise UserError(f'--config.{next(iter(overrides))} needs a network whose option it is.')
    from flaxcls.config.extensions import load_extensions
    from flaxcls.planning.networks import create_overridden, layer_table, model_table

    load_extensions(flags.extensions)
    if flags.name is None:
        print(model_table())
        return
    model = create_overridden(flags.name, overrides, flags.extensions) if overrides else None
    if flags.svg is None:
        print(layer_table(flags.name, flags.image_size, model))
    else:
        _draw(flags.name, flags.image_size, model, flags.svg)


def _draw(name: str, image_size: int | None, model: 'nn.Module | None', file: str) -> None:
    from flaxcls.explaining.diagrams import network_diagram

    diagram = network_diagram(name, image_size=image_size, model=model)
    if file == '-':
        print(diagram, end='')
        return
    path = pathlib.Path(file or f'{name}.svg')
    diagram.save(path)
    print(path)
