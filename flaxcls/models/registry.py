"""The table of networks: each variant's constructor and costs; networks by name."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn

from flaxcls.config.option import require_choice
from flaxcls.config.options import keys_of
from flaxcls.config.registry import Registry
from flaxcls.errors import UserError
from flaxcls.models.alexnet import AlexNet
from flaxcls.models.densenet import DenseNet
from flaxcls.models.image_size import require_image_size
from flaxcls.models.mobilenet import MobileNetV2
from flaxcls.models.resnet import (
    BasicBlock,
    BottleneckBlock,
    PreActBasicBlock,
    PreActBottleneckBlock,
    PreActResNet,
    ResNet,
)
from flaxcls.models.vgg import VGG

if TYPE_CHECKING:
    from flax import nnx

    from flaxcls.models.nnx_network import NnxNetwork


def attributes() -> frozenset[str]:
    """Returns the options of config.model that are attributes of the modules that have them."""
    return frozenset(key.removeprefix('model.') for key in keys_of('attribute'))


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    api: str = 'linen',
    rngs: 'nnx.Rngs | None' = None,
    image_size: int | None = None,
    **options: Any,
) -> 'nn.Module | NnxNetwork':
    """Returns the network `name` as a module of Linen or of NNX.

    Of Linen: `model.init(key, images, train=False)`. Of NNX, with initial weights:
    `model(images)`, `model.train()` and `model.eval()`; see `NnxNetwork`.

    Args:
      name: a key of MODELS.
      num_classes: length of the logits; None: as in the paper.
      api: 'linen' or 'nnx'.
      rngs: for NNX, what initial weights and training draw from, such as `nnx.Rngs(0)`.
      image_size: for NNX, side of the smallest images in pixels, for which there has to be room;
        None: of the paper's. No weight depends on it.
      **options: attributes of the network to change, such as `growth_rate` or `dtype`; see its
        class.

    Raises:
      UserError: there is no such network or api, it has no such option, or the images are too
        small for it.
    """
    model = _create_linen(name, num_classes, options)
    if api == 'nnx':
        from flaxcls.models.nnx_network import create_nnx  # noqa: PLC0415 - slow to import

        size = MODELS[name].image_size if image_size is None else image_size
        return create_nnx(model, require_image_size(model, name, size, 'image_size'), size, rngs)
    if api != 'linen':
        raise UserError(f"create_model: api={api!r} is unknown; choose 'linen' or 'nnx'.")
    for option, value in (('rngs', rngs), ('image_size', image_size)):
        if value is not None:
            raise UserError(
                f"create_model: {option}={value!r} has no meaning for api='linen', whose weights "
                "model.init makes from a key and images; give it api='nnx' as well."
            )
    return model


def _create_linen(name: str, num_classes: int | None, options: dict[str, Any]) -> nn.Module:
    require_choice('model.name', name, list(MODELS))
    variant = MODELS[name]
    model = variant.constructor(num_classes=num_classes or variant.num_classes)
    known = {field.name for field in dataclasses.fields(model)} - {'parent', 'name'}
    shaping = known & ({'num_classes'} | attributes())
    for option, value in options.items():
        if option not in known:
            raise UserError(
                f'config.model.{option}={value!r} has no meaning for {name}, '
                f'whose options are {", ".join(sorted(shaping))}.'
            )
    return model.clone(**options)


class Variant(NamedTuple):
    """A row of the table of networks; `tests/models/test_registry.py` counts the numbers again.

    Attributes:
      constructor: of the network, with the variant's attributes; takes `num_classes`.
      image_size: side of the paper's training images, pixels.
      num_classes: of the paper's data set.
      parameters: number of trainable parameters; of an extension's network, it need not be told.
      gmacs: multiply-adds of convolutions and fully connected layers, 10**9 an image.
      activations: outputs of these layers, 10**6 an image.
      paper: where the paper describes it.
    """

    constructor: Callable[..., nn.Module]
    image_size: int
    num_classes: int
    parameters: int | None = None
    gmacs: float | None = None
    activations: float | None = None
    paper: str = ''


class Networks(Registry):
    """The table of networks: what is registered is the constructor, and the facts are the row's.

    @MODELS.register('se_resnet20', image_size=32, num_classes=10)
    class SEResNet20(nn.Module): ...
    """

    def row_of(self, thing: Callable[..., nn.Module], **facts: Any) -> Variant:
        return Variant(thing, **facts)


alexnet_2012 = partial(
    AlexNet,
    features=(96, 256, 384, 384, 256),
    two_groups=True,
    stem_padding=0,
    lrn='paper',
    initializer='paper',
)
alexnet_bn = partial(AlexNet, use_batch_norm=True)
vgg16_bn = partial(VGG, use_batch_norm=True)

_STAGE_SIZES = {  # arXiv:1512.03385, table 1, by the number of layers.
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def resnet(depth: int, **options: Any) -> partial:
    """Returns the constructor of ImageNet's ResNet with `depth` layers (v1.5), with `options`."""
    block = BasicBlock if depth < 50 else BottleneckBlock
    return partial(ResNet, **{'stage_sizes': _STAGE_SIZES[depth], 'block': block} | options)


def resnet_v1(depth: int) -> partial:
    """Returns the constructor of the ResNet whose bottlenecks stride in the first convolution."""
    return resnet(depth, block=partial(BottleneckBlock, stride_in_first=True))


def resnet_v2(depth: int) -> partial:
    """Returns the constructor of the pre-activation ResNet."""
    block = PreActBasicBlock if depth < 50 else PreActBottleneckBlock
    return partial(PreActResNet, stage_sizes=_STAGE_SIZES[depth], block=block)


def resnet_d(depth: int) -> partial:
    """Returns the constructor of ResNet-D."""
    return resnet(depth, stem='deep', shortcut='D')


def resnext(depth: int, groups: int, group_width: int) -> partial:
    """Returns the constructor of ResNeXt, or of a wide ResNet, which has one group."""
    block = partial(BottleneckBlock, groups=groups, group_width=group_width)
    return resnet(depth, block=block)


def cifar_resnet(depth: int) -> partial:
    """Returns the constructor of CIFAR's ResNet with `depth` = 6n + 2 layers."""
    sizes = ((depth - 2) // 6,) * 3
    return partial(ResNet, stage_sizes=sizes, width=16, stem='small', shortcut='A')


def densenet(block_sizes: tuple[int, ...], growth_rate: int) -> partial:
    """Returns the constructor of ImageNet's DenseNet, a DenseNet-BC."""
    return partial(DenseNet, block_sizes=block_sizes, growth_rate=growth_rate)


def cifar_densenet(depth: int, growth_rate: int) -> partial:
    """Returns the constructor of CIFAR's DenseNet with `depth` = 3n + 4 layers, without B and C."""
    return partial(
        DenseNet,
        block_sizes=((depth - 4) // 3,) * 3,
        growth_rate=growth_rate,
        stem_features=16,
        bottleneck=False,
        compression=1.0,
        stem='small',
    )


def cifar_densenet_bc(depth: int, growth_rate: int) -> partial:
    """Returns the constructor of CIFAR's DenseNet-BC with `depth` = 6n + 4 layers."""
    sizes = ((depth - 4) // 6,) * 3
    return partial(DenseNet, block_sizes=sizes, growth_rate=growth_rate, stem='small')


_ALEX, _OWT, _IOFFE = 'NIPS 2012, sec. 3', 'arXiv:1404.5997', 'arXiv:1502.03167'
_VGG = 'arXiv:1409.1556, table 1'
_MOBILE = 'arXiv:1801.04381, table 2'
_RES, _RES_C = 'arXiv:1512.03385, table 1', 'arXiv:1512.03385, sec. 4.2'
_V2, _D = 'arXiv:1603.05027, sec. 3', 'arXiv:1812.01187, sec. 4'
_NEXT, _WIDE = 'arXiv:1611.05431, table 1', 'arXiv:1605.07146'
_DENSE, _DENSE_C = 'arXiv:1608.06993, table 1', 'arXiv:1608.06993, table 2'


def _imagenet(constructor, *numbers_and_paper):
    return Variant(constructor, 224, 1000, *numbers_and_paper)


def _cifar(constructor, *numbers_and_paper):
    return Variant(constructor, 32, 10, *numbers_and_paper)


# fmt: off
MODELS = Networks('model.name', {
    'alexnet_2012': Variant(alexnet_2012, 227, 1000, 60_965_224, 0.7244, 0.659, _ALEX),
    'alexnet': _imagenet(AlexNet, 61_100_840, 0.7142, 0.494, _OWT),
    'alexnet_bn': _imagenet(alexnet_bn, 61_101_992, 0.7142, 0.494, _IOFFE),
    'vgg16': _imagenet(VGG, 138_357_544, 15.4703, 13.557, _VGG),
    'vgg16_bn': _imagenet(vgg16_bn, 138_365_992, 15.4703, 13.557, _VGG),
    'mobilenet_v2': _imagenet(MobileNetV2, 3_504_872, 0.3008, 6.679, _MOBILE),
    'resnet18': _imagenet(resnet(18), 11_689_512, 1.8141, 2.485, _RES),
    'resnet34': _imagenet(resnet(34), 21_797_672, 3.6638, 3.739, _RES),
    'resnet50': _imagenet(resnet(50), 25_557_032, 4.0892, 11.115, _RES),
    'resnet101': _imagenet(resnet(101), 44_549_160, 7.8014, 16.233, _RES),
    'resnet152': _imagenet(resnet(152), 60_192_808, 11.5136, 22.555, _RES),
    'resnet50_v1': _imagenet(resnet_v1(50), 25_557_032, 3.8580, 10.588, _RES),
    'resnet101_v1': _imagenet(resnet_v1(101), 44_549_160, 7.5702, 15.706, _RES),
    'resnet152_v1': _imagenet(resnet_v1(152), 60_192_808, 11.2824, 22.028, _RES),
    'resnet18_v2': _imagenet(resnet_v2(18), 11_687_720, 1.8141, 2.485, _V2),
    'resnet34_v2': _imagenet(resnet_v2(34), 21_795_880, 3.6638, 3.739, _V2),
    'resnet50_v2': _imagenet(resnet_v2(50), 25_549_352, 4.0892, 11.115, _V2),
    'resnet101_v2': _imagenet(resnet_v2(101), 44_541_480, 7.8014, 16.233, _V2),
    'resnet152_v2': _imagenet(resnet_v2(152), 60_185_128, 11.5136, 22.555, _V2),
    'resnet18_d': _imagenet(resnet_d(18), 11_708_744, 2.0537, 3.288, _D),
    'resnet34_d': _imagenet(resnet_d(34), 21_816_904, 3.9034, 4.542, _D),
    'resnet50_d': _imagenet(resnet_d(50), 25_576_264, 4.3288, 11.918, _D),
    'resnet101_d': _imagenet(resnet_d(101), 44_568_392, 8.0410, 17.036, _D),
    'resnet152_d': _imagenet(resnet_d(152), 60_212_040, 11.7533, 23.358, _D),
    'resnext50_32x4d': _imagenet(resnext(50, 32, 4), 25_028_904, 4.2305, 14.402, _NEXT),
    'resnext101_32x8d': _imagenet(resnext(101, 32, 8), 88_791_336, 16.4140, 31.210, _NEXT),
    'wide_resnet50_2': _imagenet(resnext(50, 1, 128), 68_883_240, 11.3980, 14.402, _WIDE),
    'wide_resnet101_2': _imagenet(resnext(101, 1, 128), 126_886_696, 22.7531, 21.225, _WIDE),
    'resnet20': _cifar(cifar_resnet(20), 269_722, 0.0406, 0.188, _RES_C),
    'resnet32': _cifar(cifar_resnet(32), 464_154, 0.0689, 0.303, _RES_C),
    'resnet44': _cifar(cifar_resnet(44), 658_586, 0.0972, 0.418, _RES_C),
    'resnet56': _cifar(cifar_resnet(56), 853_018, 0.1255, 0.532, _RES_C),
    'resnet110': _cifar(cifar_resnet(110), 1_727_962, 0.2529, 1.049, _RES_C),
    'densenet121': _imagenet(densenet((6, 12, 24, 16), 32), 7_978_856, 2.8342, 6.900, _DENSE),
    'densenet169': _imagenet(densenet((6, 12, 32, 32), 32), 14_149_480, 3.3598, 7.302, _DENSE),
    'densenet201': _imagenet(densenet((6, 12, 48, 32), 32), 20_013_928, 4.2914, 7.854, _DENSE),
    'densenet161': _imagenet(densenet((6, 12, 36, 24), 48), 28_681_000, 7.7279, 11.065, _DENSE),
    'densenet264': _imagenet(densenet((6, 12, 64, 48), 32), 33_337_704, 5.7517, 8.531, _DENSE),
    'densenet264_48': _imagenet(densenet((6, 12, 64, 48), 48), 72_686_632, 12.8507, 12.796, _DENSE),
    'densenet_40_12': _cifar(cifar_densenet(40, 12), 1_019_722, 0.2648, 0.452, _DENSE_C),
    'densenet_100_12': _cifar(cifar_densenet(100, 12), 6_979_642, 1.7695, 1.143, _DENSE_C),
    'densenet_100_24': _cifar(cifar_densenet(100, 24), 27_249_082, 6.8893, 2.249, _DENSE_C),
    'densenet_bc_100_12': _cifar(cifar_densenet_bc(100, 12), 769_162, 0.2879, 1.464, _DENSE_C),
    'densenet_bc_250_24': _cifar(cifar_densenet_bc(250, 24), 15_324_406, 5.4188, 7.382, _DENSE_C),
    'densenet_bc_190_40': _cifar(cifar_densenet_bc(190, 40), 25_624_430, 9.3019, 9.334, _DENSE_C),
})
# fmt: on
