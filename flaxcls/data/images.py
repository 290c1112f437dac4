"""From the bytes of an image file to a uint8 RGB array of the wanted size, on the host."""

import io

import numpy as np
from PIL import Image, ImageOps


def decode(data: bytes) -> np.ndarray:
    """Returns the first frame of an image file, upright, as uint8 RGB [H, W, 3].

    The kind of file is told by its content. Transparency is composited on white, 16-bit grey is
    scaled to 8 bits.

    Raises:
      ValueError: the bytes are no readable image, or end too early.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except MemoryError:
        raise
    except Exception as error:  # Damage makes Pillow raise TypeError, struct.error and many more.
        raise ValueError(f'no readable image ({error})') from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):  # 16-bit grey, which convert('RGB') would cut off at 255.
        grey = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
    return image.convert('RGB')


def resize_and_center_crop(image: np.ndarray, size: int, crop_fraction: float) -> np.ndarray:
    """Resizes the shorter side to size / crop_fraction and cuts the middle size x size.

    Args:
      image: uint8 [H, W, C] of 1 or 3 channels.
      size: side of the result, pixels.
      crop_fraction: 224 / 256 is usual for ImageNet.

    Returns:
      uint8 [size, size, 3]. Reduction is antialiased.
    """
    shorter = round(size / crop_fraction)
    height, width = image.shape[:2]
    scale = shorter / min(height, width)
    new_height, new_width = max(size, round(height * scale)), max(size, round(width * scale))
    picture = _from_array(image)
    if (new_height, new_width) != (height, width):
        picture = picture.resize((new_width, new_height), Image.Resampling.BILINEAR)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def random_resized_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, min_area: float
) -> np.ndarray:
    """Cuts a random part and resizes it, as in Szegedy et al. 2015 (arXiv:1409.4842, section 6).

    Args:
      image: uint8 [H, W, C] of 1 or 3 channels.
      size: side of the result, pixels.
      rng: the example's own generator.
      min_area: the part covers from this share to all of the image; its aspect ratio lies between
        3/4 and 4/3. Where ten tries do not fit, the middle is cut.

    Returns:
      uint8 [size, size, 3]. Reduction is antialiased.
    """
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(min_area, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        cut_width, cut_height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < cut_width <= width and 0 < cut_height <= height:
            left = int(rng.integers(width - cut_width + 1))
            top = int(rng.integers(height - cut_height + 1))
            box = (left, top, left + cut_width, top + cut_height)
            picture = _from_array(image).crop(box)
            return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    return resize_and_center_crop(image, size, 1.0)


def _from_array(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).convert('RGB')
