"""From the bytes of an image file to a uint8 RGB array, on the host.

Every question of file formats is answered here. Pillow is the reference for what can be read, and
for its pixels; ordinary JPEGs are decoded by libjpeg-turbo, which gives the same pixels sooner.
"""

import io
import os

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

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


def decode(data: bytes, *, min_scale: float = 1.0) -> np.ndarray:
    """Returns the first frame of an image file, upright, as uint8 RGB [H, W, 3].

    The kind of file is told by its content. Transparency is composited on white, grey is repeated,
    the upper eight of sixteen bits are kept. Colour profiles are not applied.

    Args:
      data: the bytes of the file.
      min_scale: at most 1. JPEGs of which less is wanted are decoded smaller where that is
        quicker, but to no less than this share of their sides.

    Raises:
      ValueError: the bytes are no readable image, or end too early.
    """
    if _jpeg_size(data):
        image = _decode_jpeg(data, min_scale)
        if image is not None:
            return image
    try:
        with _open(data) as picture:
            picture.load()
            return _UPRIGHT[_orientation(picture)](np.asarray(_to_rgb(picture)))
    except MemoryError:
        raise
    except Exception as error:  # Damage makes Pillow raise TypeError, struct.error and many more.
        raise ValueError(f'no readable image ({error})') from None


def scalable_size(data: bytes) -> tuple[int, int] | None:
    """Returns (height, width), upright, of a file that `decode` can give smaller; otherwise None.

    These are ordinary JPEGs; reading their header costs a hundredth of decoding them.
    """
    size = _jpeg_size(data)
    if size and _orientation_of_file(data) >= 5:
        return size[::-1]
    return size


def is_image(path: str | os.PathLike) -> bool:
    """Returns whether a file begins as an image does, whatever its name says."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:
        return False


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns (height, width) as stored, of a grey or colour JPEG; None for all else."""
    if not data.startswith(b'\xff\xd8'):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if colorspace in ('CMYK', 'YCCK') else (height, width)


def _decode_jpeg(data: bytes, min_scale: float) -> np.ndarray | None:
    """Returns a grey or colour JPEG as RGB, upright; None for one with the least damage."""
    height, width = _jpeg_size(data)
    try:
        image = simplejpeg.decode_jpeg(
            data,
            min_height=int(np.ceil(height * min_scale)),
            min_width=int(np.ceil(width * min_scale)),
            min_factor=2,  # Between half and full size, scaling takes longer than it saves.
        )
    except ValueError:
        return None  # Pillow is the judge of it.
    return _UPRIGHT[_orientation_of_file(data)](image)


def _orientation_of_file(data: bytes) -> int:
    """Returns the Orientation of a JPEG without the cost of opening it where it has none."""
    header = data[: data.find(b'\xff\xda')]  # Up to the start of the scan.
    if b'Exif\0' not in header and b'tiff:Orientation' not in header:
        return 1
    with _open(data) as picture:
        return _orientation(picture)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # A damaged block of EXIF is no reason to lose the image.
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
