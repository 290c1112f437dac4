"""Weights from PyTorch, and to it.

  python -m flaxcls.commands.torch_weights import --model=resnet50 --weights=resnet50.pth \\
      --workdir=runs/tv
  python -m flaxcls.main --mode=evaluate --workdir=runs/tv --config.data.source=folder:PATH
  python -m flaxcls.commands.torch_weights export --workdir=runs/tv --weights=resnet50.safetensors

Weights are files .pth (which need PyTorch: the extra [torch]) or .safetensors, with the names of
torchvision or timm; see flaxcls/weights/state_dict.py. --config.KEY=VALUE sets options of the
workdir,
such as config.model.num_classes, whose change gives the network a new classifier.
"""

from collections.abc import Sequence
from typing import Any

from flaxcls.errors import UserError
from flaxcls.system import cli
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.training.torch_weights import export_weights, import_weights


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.commands.torch_weights', __doc__)
    parser.add_argument('action', choices=['import', 'export'])
    parser.add_argument('--model', help='to import: a row of python -m flaxcls.commands.models')
    parser.add_argument('--weights', required=True, help='the .pth or .safetensors file')
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--config', help='to import: an experiment file for the other options')
    parser.add_argument('--checkpoint', help='to export: newest (the default), best or a step')
    flags, rest = parser.parse_known_args(argv)
    overrides = cli.parse_overrides(rest, ['--model', '--weights', '--workdir', '--config'])
    if flags.action == 'import':
        _require_absent('export', checkpoint=flags.checkpoint)
        if not flags.model:
            raise UserError(
                'import needs --model=NAME; python -m flaxcls.commands.models lists them.'
            )
        notes = import_weights(
            flags.model, flags.weights, flags.workdir,
            config_path=flags.config, overrides=overrides,
        )  # fmt: skip
        for note in notes:
            print(f'Note: {note}')
        print(f'{flags.model} with the weights of {flags.weights} is in {flags.workdir}.')
    else:
        _require_absent('import', model=flags.model, config=flags.config, **overrides)
        checkpoint = flags.checkpoint or 'newest'
        state = export_weights(flags.workdir, flags.weights, checkpoint=checkpoint)
        print(f'wrote {len(state)} tensors to {flags.weights}.')


def _require_absent(action: str, **flags: Any) -> None:
    for name, value in flags.items():
        if value is not None:
            raise UserError(f'--{name}={value} belongs to the action {action}; leave it out.')


if __name__ == '__main__':
    run_command(main)
