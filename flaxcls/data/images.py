"""From the bytes of an image file to a uint8 RGB array, on the host.

Every question of file formats is settled here. Pillow is the reference for what can be read, and
for its pixels; ordinary JPEGs are decoded by libjpeg-turbo, which gives the same pixels sooner.
"""

import io
import math
import os
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'AVIF')  # In Pillow's names.
_BACKGROUND = 'white'
# How the pixels as stored are turned upright; the index is EXIF's Orientation (CIPA DC-008, 4.6.4).
_UPRIGHT = (
    None,
    lambda image: image,
    lambda image: image[:, ::-1],
    lambda image: image[::-1, ::-1],
    lambda image: image[::-1],
    lambda image: image.transpose(1, 0, 2),
    lambda image: image[::-1].transpose(1, 0, 2),
    lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    lambda image: image[:, ::-1].transpose(1, 0, 2),
)


def decode(data: bytes) -> np.ndarray:
    """Returns the first frame of an image file, upright, as uint8 RGB [H, W, 3].

    The kind of file is detected from its content. Transparency is composited on white, grey is
    repeated, the upper eight of sixteen bits are kept. Colour profiles are not applied.

    Raises:
      ValueError: the bytes are not a readable image, or end too early.
    """
    return open_image(data).decode()


class TooManyPixels(ValueError):
    """An image that is larger than is allowed."""


def require_pixels(data: bytes, max_pixels: int) -> None:
    """Looks at the header of an image file alone, which costs next to nothing.

    Raises:
      TooManyPixels: the image has more than max_pixels, or than Pillow opens.
      ValueError: the bytes are not a image.
    """
    try:
        with _open(data) as picture:
            width, height = picture.size
    except TooManyPixels:
        raise
    except Exception as error:
        raise ValueError(f'no readable image ({error})') from None
    if width * height > max_pixels:
        raise TooManyPixels(f'{width} x {height} pixels are more than {max_pixels}')


class EncodedImage(NamedTuple):
    """The bytes of an image file, and what the header of an ordinary JPEG says."""

    data: bytes
    stored_size: tuple[int, int] | None = None  # (height, width) of a JPEG; None for all else.
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width), upright, of what can be decoded smaller than it is; None otherwise."""
        return self.stored_size[::-1] if self.orientation >= 5 else self.stored_size

    def decode(self, min_scale: float = 1.0, *, fast: bool = False) -> np.ndarray:
        """Returns what the function `decode` does, of this share of its sides or larger.

        Args:
          min_scale: at most 1. Up to a half, an image that has a `size` is decoded smaller.
          fast: allows JPEGs an error of about a grey level, for a seventh of the time.

        Raises:
          ValueError: the bytes are not a readable image, or end too early.
        """
        if self.stored_size:
            min_height, min_width = (math.ceil(side * min_scale) for side in self.stored_size)
            try:
                image = simplejpeg.decode_jpeg(
                    self.data,
                    min_height=min_height,
                    min_width=min_width,
                    min_factor=2,  # Between half and full size it takes longer than it saves.
                    fastdct=fast,
                    fastupsample=fast,
                )
                return np.ascontiguousarray(_UPRIGHT[self.orientation](image))
            except ValueError:
                pass  # It has some damage, and Pillow is the judge of that.
        return _decode_with_pillow(self.data)


def open_image(data: bytes) -> EncodedImage:
    """Returns the image of a file's bytes, which need not be one; a JPEG's header is read."""
    if not data.startswith(b'\xff\xd8'):
        return EncodedImage(data)
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: of 4:4:1 and other subsamplings that it has not.
        return EncodedImage(data)
    if colorspace in ('CMYK', 'YCCK'):
        return EncodedImage(data)
    return EncodedImage(data, (height, width), _orientation_of_jpeg(data))


def format_of(data: bytes) -> str:
    """Returns what kind of image file the bytes are, such as JPEG or PNG.

    Raises:
      ValueError: none that can be read.
    """
    try:
        with _open(data) as picture:
            return picture.format
    except Exception as error:
        raise ValueError(f'no readable image ({error})') from None


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Returns [H, W, 3] of [H, W, C] with C of 1 or 3; grey is repeated without being copied."""
    return image if image.shape[2] == 3 else np.broadcast_to(image, (*image.shape[:2], 3))


def is_image(path: str | os.PathLike) -> bool:
    """Returns whether a file begins as an image does, whatever its name says."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:
        return False


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:  # Its own words name a place in memory.
        reason = f'none of {", ".join(FORMATS)}' if data else 'the file is empty'
        raise ValueError(reason) from None
    except Image.DecompressionBombError as error:  # Not of the errors that callers expect.
        raise TooManyPixels(str(error)) from None


def _decode_with_pillow(data: bytes) -> np.ndarray:
    try:
        with _open(data) as picture:
            picture.load()
            return _UPRIGHT[_orientation(picture)](np.asarray(_to_rgb(picture)))
    except MemoryError:
        raise
    except Exception as error:  # Damage makes Pillow raise TypeError, struct.error and many more.
        raise ValueError(f'no readable image ({error})') from None


def _orientation_of_jpeg(data: bytes) -> int:
    """Returns EXIF's Orientation, without the cost of opening a file that has none."""
    header = data[: data.find(b'\xff\xda')]  # Up to the start of the scan.
    if b'Exif\0' not in header and b'tiff:Orientation' not in header:
        return 1
    with _open(data) as picture:
        return _orientation(picture)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # A damaged block of EXIF is not a reason to lose the image.
        return 1
    return value if value in range(1, 9) else 1


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Returns 8-bit RGB; convert('RGB') alone would cut 16 bits off at 255."""
    if picture.mode == 'F':
        raise ValueError('pixels are floating-point numbers; convert it to 8 bits')
    if picture.mode.startswith('I'):
        picture = _grey_of_16_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        background = Image.new('RGBA', picture.size, _BACKGROUND)
        picture = Image.alpha_composite(background, picture)
    return picture.convert('RGB')


def _grey_of_16_bits(picture: Image.Image) -> Image.Image:
    grey = np.asarray(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError('pixels have 32 bits; convert it to 8 or 16')
    eight_bits = (grey >> 8).astype(np.uint8)
    if 'transparency' in picture.info:
        eight_bits[grey == picture.info['transparency']] = 255
    return Image.fromarray(eight_bits)
