"""Cutting an image to the wanted size, on the host.

Evaluation reduces as Pillow does, with antialiasing. Random crops are resized by OpenCV, with
which the loader is twice as fast: bilinear up to a reduction by two, where every pixel still
counts, by area beyond. They are cut from JPEGs decoded to within a grey level or so.
"""

import functools
import math
import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from flaxcls.data import images

_LEAST_REDUCTION_BY_AREA = 2.0
BOX_TRIES = 10
_LOG_RATIOS = math.log(3 / 4), math.log(4 / 3)


class TrainCrop(NamedTuple):
    """How a training image is cut on the host.

    Attributes:
      size: side of the result, pixels.
      kind: none (the middle), random or random_resized.
      fraction: of the middle square's side, the crop's; see `resize_and_center_crop`.
      min_area: see `random_resized_crop`.
    """

    size: int
    kind: str = 'none'
    fraction: float = 1.0
    min_area: float = 0.08

    @property
    def is_random(self) -> bool:
        return self.kind != 'none'

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side from which an image can be reduced without harm."""
        if self.kind == 'random_resized':
            return 2 * self.size
        return round(self.size / self.fraction)

    def cut(self, image: np.ndarray | bytes, uniforms: np.ndarray | None = None) -> np.ndarray:
        """Returns uint8 [size, size, 3]; random crops take uniforms [BOX_TRIES, 4] in 0..1."""
        if self.kind == 'random_resized':
            return random_resized_crop(image, self.size, uniforms, self.min_area)
        if self.kind == 'random':
            return resize_and_random_crop(image, self.size, uniforms, self.fraction)
        return resize_and_center_crop(image, self.size, self.fraction)


class EvalCrop(NamedTuple):
    """How an image is cut for evaluation, on the host.

    Attributes:
      size: side of what the network sees, pixels.
      fraction: of the shorter side, the central crop's; see `resize_and_center_crop`.
      tta: center, flip or ten, the TTA crops whose predictions are averaged.
    """

    size: int
    fraction: float = 1.0
    tta: str = 'center'

    @property
    def side(self) -> int:
        """S of the images that are handed on: of ten crops, what these are cut from."""
        return self.shorter_side if self.tta == 'ten' else self.size

    @property
    def shorter_side(self) -> int:
        return round(self.size / self.fraction)

    def cut(self, image: np.ndarray | bytes) -> np.ndarray:
        """Returns uint8 [S, S, 3] of uint8 [H, W, 1 or 3], or of the bytes of a file.

        Raises:
          ValueError: the bytes are not a readable image.
        """
        fraction = 1.0 if self.tta == 'ten' else self.fraction
        return resize_and_center_crop(image, self.side, fraction)


def resize_and_center_crop(
    image: np.ndarray | bytes, size: int, crop_fraction: float
) -> np.ndarray:
    """Resizes the shorter side to size / crop_fraction and cuts the middle size x size.

    Args:
      image: uint8 [H, W, C] of 1 or 3 channels, or the bytes of an image file.
      size: side of the result, pixels.
      crop_fraction: 224 / 256 is usual for ImageNet.

    Returns:
      uint8 [size, size, 3]. Reduction is antialiased.

    Raises:
      ValueError: the bytes are not a readable image.
    """
    middle = lambda length, shorter, axis: (length - size) // 2  # noqa: E731
    return _resize_and_crop(image, size, crop_fraction, middle)


def resize_and_random_crop(
    image: np.ndarray | bytes, size: int, uniforms: np.ndarray, crop_fraction: float
) -> np.ndarray:
    """As `resize_and_center_crop`, from a random place in the middle square of that side.

    So Krizhevsky et al. 2012 (section 4.1) cut 224 x 224 pixels of 256 x 256.

    Args:
      image, size, crop_fraction: as for `resize_and_center_crop`.
      uniforms: [BOX_TRIES, 4] in 0..1; the last two of the first row are the row and the column.
    """
    places = uniforms[0, 2:].tolist()

    def first(length: int, shorter: int, axis: int) -> int:
        return (length - shorter) // 2 + int(places[axis] * (shorter - size + 1))

    return _resize_and_crop(image, size, crop_fraction, first)


def _resize_and_crop(
    image: np.ndarray | bytes,
    size: int,
    crop_fraction: float,
    first: Callable[[int, int, int], int],
) -> np.ndarray:
    """Cuts from `first(length, shorter side, axis)` on, in pixels of the resized image."""
    shorter = max(size, round(size / crop_fraction))
    image, (height, width) = _decode_for(image, shorter)
    lengths = new_height, new_width = _resized(height, width, shorter)
    begins = (first(length, shorter, axis) for axis, length in enumerate(lengths))
    rows, columns = (range(begin, begin + size) for begin in begins)
    # Only what is kept, and around it what its pixels are made of: an image may be very long.
    outer = [_widened(part, limit) for part, limit in ((rows, new_height), (columns, new_width))]
    vertical, horizontal = image.shape[0] / new_height, image.shape[1] / new_width
    box = (
        outer[1].start * horizontal,
        outer[0].start * vertical,
        outer[1].stop * horizontal,
        outer[0].stop * vertical,
    )
    resized = Image.fromarray(images.as_rgb(image)).resize(
        (len(outer[1]), len(outer[0])), Image.Resampling.BILINEAR, box
    )
    top, left = rows.start - outer[0].start, columns.start - outer[1].start
    return np.asarray(resized)[top : top + size, left : left + size]


def reduce_shorter_side(image: np.ndarray | bytes, shorter: int) -> np.ndarray:
    """Returns uint8 [H, W, 3] whose shorter side has `shorter` pixels, or what it had if less.

    `resize_and_center_crop` to a size and fraction that ask for this shorter side, or a larger
    one where the image had less, gives the same pixels from the result.
    """
    image, (height, width) = _decode_for(image, shorter)
    if min(height, width) <= shorter:
        return images.as_rgb(image)
    new_height, new_width = _resized(height, width, shorter)
    picture = Image.fromarray(images.as_rgb(image))
    return np.asarray(picture.resize((new_width, new_height), Image.Resampling.BILINEAR))


def _decode_for(image: np.ndarray | bytes, shorter: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the image as an array, and its full (height, width).

    JPEGs of more than twice the wanted size are decoded smaller, to no less than twice; that
    changes what is resized from it by less than a grey level on average.
    """
    if not isinstance(image, bytes):
        return image, image.shape[:2]
    encoded = images.open_image(image)
    if encoded.size is None:
        image = encoded.decode()
        return image, image.shape[:2]
    return encoded.decode(min(1.0, 2 * shorter / min(encoded.size))), encoded.size


def _resized(height: int, width: int, shorter: int) -> tuple[int, int]:
    scale = shorter / min(height, width)
    return max(shorter, round(height * scale)), max(shorter, round(width * scale))


def _widened(part: range, limit: int) -> range:
    """Returns two more pixels on both sides; the bilinear filter reaches over one."""
    return range(max(0, part.start - 2), min(limit, part.stop + 2))


def random_resized_crop(
    image: np.ndarray | bytes, size: int, uniforms: np.ndarray, min_area: float
) -> np.ndarray:
    """Cuts a random part and resizes it, as in Szegedy et al. 2015 (arXiv:1409.4842, section 6).

    Args:
      image: uint8 [H, W, C] of 1 or 3 channels, or the bytes of an image file.
      size: side of the result, pixels.
      uniforms: the example's own random numbers, as for `draw_box`.
      min_area: the part covers from this share to all of the image; its aspect ratio lies between
        3/4 and 4/3. Where ten tries do not fit, the largest square in the middle is cut.

    Returns:
      uint8 [size, size, 3].

    Raises:
      ValueError: the bytes are not a readable image.
    """
    encoded = images.open_image(image) if isinstance(image, bytes) else None
    if encoded and encoded.size is None:
        image, encoded = encoded.decode(), None
    full = encoded.size if encoded else image.shape[:2]
    box = draw_box(*full, uniforms, min_area)
    if encoded:
        image = encoded.decode(min(1.0, size / min(box[2:])), fast=True)
    return _resize_box(image, box, full, size)


def draw_box(
    height: int, width: int, uniforms: np.ndarray, min_area: float
) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of a part of an image, in pixels.

    Args:
      height, width: of the image, pixels.
      uniforms: [BOX_TRIES, 4] in 0..1: for each try the area, the ratio, the row and the column.
      min_area: smallest share of the image's area.
    """
    for area, ratio, row, column in uniforms.tolist():
        pixels = height * width * (min_area + (1 - min_area) * area)
        aspect = math.exp(_LOG_RATIOS[0] + (_LOG_RATIOS[1] - _LOG_RATIOS[0]) * ratio)
        box_height, box_width = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(row * (height - box_height + 1)), int(column * (width - box_width + 1))
            return top, left, box_height, box_width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _resize_box(
    image: np.ndarray, box: tuple[int, int, int, int], full: tuple[int, int], size: int
) -> np.ndarray:
    """Cuts `box`, counted in pixels of the full image, of an image that may have been reduced."""
    top, left, height, width = box
    if image.shape[:2] != full:
        vertical, horizontal = image.shape[0] / full[0], image.shape[1] / full[1]
        top, height = int(top * vertical), max(1, math.ceil(height * vertical))
        left, width = int(left * horizontal), max(1, math.ceil(width * horizontal))
    part = images.as_rgb(image[top : top + height, left : left + width])
    by_area = min(height, width) >= _LEAST_REDUCTION_BY_AREA * size
    cv2 = _opencv()
    return cv2.resize(
        part if image.shape[2] == 3 else np.ascontiguousarray(part),
        (size, size),
        interpolation=cv2.INTER_AREA if by_area else cv2.INTER_LINEAR,
    )


@functools.cache
def _opencv() -> types.ModuleType:
    """Returns OpenCV, which evaluation need not wait for."""
    import cv2  # noqa: PLC0415

    cv2.setNumThreads(0)  # The pipeline has its own threads.
    return cv2
