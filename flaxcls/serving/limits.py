"""What a server takes on, and how requests are put together."""

from typing import NamedTuple

from PIL import Image

from flaxcls.errors import UserError

# The least and the most of each. Pillow opens no larger image, whatever is asked for.
_RANGES = {
    'max_batch': (1, 4096),
    'max_wait_ms': (0, 60_000),
    'max_bytes': (1, 2**31),
    'max_pixels': (1, 2 * Image.MAX_IMAGE_PIXELS),
    'max_waiting': (1, 100_000),
}


class Limits(NamedTuple):
    """The limits of a server.

    Attributes:
      max_batch: how many images are computed at once.
      max_wait_ms: how long the first image of a batch waits for others, in milliseconds.
      max_bytes: of the body of a request.
      max_pixels: of an image, as its header gives them.
      max_waiting: how many requests are under way; one more gets status 503.
    """

    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_waiting: int = 128

    def require_sensible(self) -> 'Limits':
        """Returns these limits.

        Raises:
          UserError: one of them would let nothing through, or cannot be kept.
        """
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f'--{name}={value} is out of range; give {least} to {most}.')
        return self
