"""Which images a network has room for."""

import flax.linen as nn

from flaxcls.errors import UserError
from flaxcls.models.init import Initialization, trace_initialization
from flaxcls.models.layers import ImageTooSmall


def require_image_size(
    model: nn.Module, name: str, image_size: int, key: str = 'config.data.image_size'
) -> Initialization:
    """Returns the `trace_initialization` of a network for images of this side.

    Raises:
      UserError: the images are too small; names the smallest that are not.
    """
    try:
        return trace_initialization(model, image_size)
    except ImageTooSmall:
        smallest = _smallest_image_size(model, image_size)
    raise UserError(
        f'{key}={image_size} is too small for {name}; the smallest is {smallest} pixels.'
    )


def _smallest_image_size(model: nn.Module, too_small: int) -> int:
    fits = 512
    while not _fits(model, fits):
        fits *= 2
    while fits - too_small > 1:
        middle = (too_small + fits) // 2
        too_small, fits = (too_small, middle) if _fits(model, middle) else (middle, fits)
    return fits


def _fits(model: nn.Module, image_size: int) -> bool:
    try:
        trace_initialization(model, image_size)
    except ImageTooSmall:
        return False
    return True
