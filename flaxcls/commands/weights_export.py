"""Writes the weights of a run with the names of torchvision or timm.

  flaxcls weights export --workdir=runs/tv --weights=resnet50.safetensors

The file is .safetensors, or .pth, which needs PyTorch: the extra [torch].
"""

from collections.abc import Sequence

from flaxcls.commands.flags import add_checkpoint, add_workdir
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls weights export', __doc__)
    add_workdir(parser)
    parser.add_argument('--weights', required=True, help='the .pth or .safetensors file to write')
    add_checkpoint(parser)
    flags = parser.parse_args(argv)
    from flaxcls.training.torch_weights import export_weights

    state = export_weights(flags.workdir, flags.weights, checkpoint=flags.checkpoint)
    print(f'wrote {len(state)} tensors to {flags.weights}.')
