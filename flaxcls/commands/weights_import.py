"""Creates a run, at step 0, with weights from torchvision or timm.

  flaxcls weights import --model=resnet50 --weights=resnet50.safetensors --workdir=runs/tv
  flaxcls evaluate --workdir=runs/tv --config.data.source=folder:PATH

Weights are files .pth (which need PyTorch: the extra [torch]) or .safetensors, with the names of
torchvision or timm; see flaxcls/weights/state_dict.py. --config.KEY=VALUE sets options of the run,
such as config.model.num_classes, whose change gives the network a new classifier.
"""

from collections.abc import Sequence

from flaxcls.commands.flags import add_config
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls weights import', __doc__)
    parser.add_argument('--model', required=True, help='a network of `flaxcls models`')
    parser.add_argument('--weights', required=True, help='the .pth or .safetensors file')
    parser.add_argument('--workdir', required=True, help='of the run to make')
    add_config(parser)
    flags, overrides = parser.parse_with_overrides(argv)
    from flaxcls.training.torch_weights import import_weights

    notes = import_weights(
        flags.model, flags.weights, flags.workdir, config_path=flags.config, overrides=overrides
    )
    for note in notes:
        print(f'Note: {note}')
    print(f'{flags.model} with the weights of {flags.weights} is in {flags.workdir}.')
