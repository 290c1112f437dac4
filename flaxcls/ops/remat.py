"""What the backward pass keeps of the forward one, and what it computes anew to save memory.

Layers name what is worth keeping, with jax.ad_checkpoint.checkpoint_name; `remat` chooses.
"""

from collections.abc import Callable
from typing import Any

import jax

LINEAR = 'linear'  # Outputs of convolutions and of fully connected layers, the costly ones.
BLOCK = 'block'  # What a block hands on: a residual block, a dense layer, a pooling.
STATISTICS = 'statistics'  # BatchNorm's: small, and between devices they took a message.

# config.model.remat -> the names that are kept.
_KEPT = {'norm': (LINEAR, STATISTICS), 'block': (BLOCK, STATISTICS)}


def remat(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Returns a function with the same values and gradients, whose backward pass keeps less.

    Args:
      function: built of the layers of flaxcls.models.
      what: 'none' keeps all; 'norm' recomputes BatchNorm, ReLU and concatenation, which cost little
        (for DenseNet, arXiv:1707.06990); 'block' recomputes the inside of blocks, their
        convolutions too, which is nearly a second forward pass.
    """
    if what == 'none':
        return function
    return jax.checkpoint(
        function, policy=jax.checkpoint_policies.save_only_these_names(*_KEPT[what])
    )
