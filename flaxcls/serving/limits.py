"""What a server takes on, and how requests are put together."""

from typing import NamedTuple

from PIL import Image

from flaxcls.errors import UserError

# Pillow opens no larger image, whatever is asked for.
_PILLOWS_MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS


class Limits(NamedTuple):
    """The limits of a server.

    Attributes:
      max_batch: how many images are computed at once.
      max_wait_ms: how long the first image of a batch waits for others, in milliseconds.
      max_bytes: of the body of a request.
      max_pixels: of an image, as its header tells them.
      max_waiting: how many requests are under way; one more is told to come again.
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
        for name, value in self._asdict().items():
            least = 0 if name == 'max_wait_ms' else 1
            if not value >= least:
                raise UserError(f'--{name}={value} is too small; give at least {least}.')
        if self.max_pixels > _PILLOWS_MAX_PIXELS:
            raise UserError(
                f'--max_pixels={self.max_pixels} is more than Pillow opens; give at most '
                f'{_PILLOWS_MAX_PIXELS}.'
            )
        return self
