"""The layers of a network and how they are connected, as models.trace reads them."""

import dataclasses

# By the name of a function that JAX compiles apart, or of a primitive.
ACTIVATIONS = {
    'relu': 'ReLU',
    'relu6': 'ReLU6',
    'leaky_relu': 'LeakyReLU',
    'elu': 'ELU',
    'silu': 'SiLU',
    'hard_silu': 'HardSwish',
    'logistic': 'Sigmoid',
}
JOINS = {'add': 'Add', 'add_any': 'Add', 'mul': 'Multiply'}
# Without parameters and without a window: they connect layers, and are none.
ARITHMETIC = {*ACTIVATIONS.values(), *JOINS.values(), 'Subsample', 'PadChannels', 'Join'}


@dataclasses.dataclass
class Layer:
    """A layer, or an operation that joins layers.

    Attributes:
      path: of its module, such as stage1_block1/conv1; of a function, its name below the module
        that calls it, with a number where there are several, such as max_pool2.
      kind: name of the module's class; or MaxPool, AvgPool, GlobalAvgPool, GlobalMaxPool,
        AdaptiveAvgPool, LRN; or one of ARITHMETIC.
      inputs: indices of the layers that it reads, in the network's list; -1 is the image. Several
        are concatenated, or what Add and Multiply join.
      output: shape for one image.
      parameters: trainable ones.
      macs: multiply-adds for one image.
      kernel: height and width of the window, pixels; None: it has none, or the whole map.
      stride: step of the window, pixels.
      padding: pixels above and below.
      groups: of a convolution.
      rate: of dropout.
      receptive_field: side of the square of the image that one output sees, pixels, of which a part
        may lie in the padding; None: the whole image.
    """

    path: str
    kind: str
    inputs: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int = 0
    macs: int = 0
    kernel: tuple[int, int] | None = None
    stride: int | None = None
    padding: tuple[int, int] | None = None
    groups: int | None = None
    rate: float | None = None
    receptive_field: int | None = None

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution that sees each channel by itself."""
        return self.groups is not None and 1 < self.groups == self.output[-1]

    @property
    def is_arithmetic(self) -> bool:
        return self.kind in ARITHMETIC
