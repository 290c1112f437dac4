"""Every network with few layers and channels."""

from flaxcls.models.alexnet import AlexNet
from flaxcls.models.densenet import DenseNet
from flaxcls.models.mobilenet import MobileNetV2
from flaxcls.models.registry import MODELS, create_model
from flaxcls.models.resnet import ResNet
from flaxcls.models.vgg import VGG

# With something to draw in training.
SHALLOW = {
    AlexNet: {'width_multiplier': 0.125},
    VGG: {'width_multiplier': 0.125},
    MobileNetV2: {'stage_sizes': (1, 1, 2), 'width_multiplier': 0.25},
    DenseNet: {'block_sizes': (1, 1), 'dropout_rate': 0.1},
    ResNet: {'stage_sizes': (1, 1), 'width_multiplier': 0.125, 'stochastic_depth_rate': 0.1},
}
SIDE = 67  # The least that all take.


def shallow(name):
    """Returns the Linen network and the options that make it."""
    model = create_model(name, num_classes=10)
    options = next(SHALLOW[family] for family in SHALLOW if isinstance(model, family))
    return model.clone(**options), options


# Rows that differ in depth alone are one network.
DISTINCT = list({str(shallow(name)[0]): name for name in reversed(MODELS)}.values())
