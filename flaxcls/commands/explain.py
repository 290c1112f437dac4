"""Draws what a trained network sees in images, or what is in the network.

  flaxcls explain --workdir=runs/digits_resnet20
  flaxcls explain --workdir=runs/photos --method=occlusion --class=cat a.jpg b.png

Without images it takes some of the run's validation images. The methods:

  grad_cam              where the class is, on the feature map or another --layer (the default)
  cam                   the same, where the classifier is one layer over the means of the map
  integrated_gradients  what each pixel adds to the prediction
  smooth_grad           which pixels would change the prediction, averaged over noise
  occlusion             how much the prediction loses where a patch is covered
  feature_maps          the strongest channels of a --layer
  neighbours            the validation images with the most similar features
  filters               the weights of the first convolution (takes no images)
  depth                 signal and gradient from layer to layer, also without shortcuts (no images)
  reuse                 which layers in the blocks of a DenseNet read which (no images)
"""

from collections.abc import Sequence

from flaxcls.commands.flags import add_checkpoint, add_workdir
from flaxcls.system.cli import CommandParser


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls explain', __doc__)
    add_workdir(parser)
    add_checkpoint(parser)
    parser.add_argument('--method', default='grad_cam', help='see above (grad_cam)')
    parser.add_argument('--layer', help='such as stage2_block1, of grad_cam and feature_maps')
    parser.add_argument(
        '--class', dest='class_name', help='to look for; default: the predicted one'
    )
    parser.add_argument('--out', help='the picture (METHOD.png in the workdir)')
    parser.add_argument('images', nargs='*', help='files')
    flags = parser.parse_args(argv)
    from flaxcls.explaining.methods import explain

    out = explain(
        flags.workdir,
        flags.method,
        flags.images,
        checkpoint=flags.checkpoint,
        layer=flags.layer,
        class_name=flags.class_name,
        out=flags.out,
    )
    print(f'wrote {out}')
