"""Prints the table of networks, or one network layer by layer.

python -m flaxcls.commands.models
python -m flaxcls.commands.models resnet50 --image_size=288
"""

from collections.abc import Sequence

from flaxcls.errors import UserError
from flaxcls.models.tables import layer_table, model_table
from flaxcls.system.cli import CommandParser, run_command


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.commands.models', __doc__)
    parser.add_argument('name', nargs='?', help='of a network; none: the table of all')
    parser.add_argument('--image_size', type=int, help="pixels; default: the paper's")
    flags = parser.parse_args(argv)
    if flags.image_size is not None and (flags.name is None or flags.image_size < 1):
        raise UserError(f'--image_size={flags.image_size} needs a network, and a positive size.')
    print(layer_table(flags.name, flags.image_size) if flags.name else model_table())


if __name__ == '__main__':
    run_command(main)
