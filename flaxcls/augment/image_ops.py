"""The operations of augmentation policies, as Pillow defines them, on the device.

Images are float32 [H, W, 3] in 0..255. Under vmap a `lax.switch` would run every branch for every
example. So each operation is written as one of three passes whose parameters are data: an affine
warp by a matrix, a blend with a degenerate image, a lookup table. A step of a policy runs the
three passes once, two of them with parameters that change nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

# The operations of RandAugment (arXiv:1909.13719, section 3) and TrivialAugment.
OPERATIONS = (
    'identity', 'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate',
    'brightness', 'color', 'contrast', 'sharpness',
    'posterize', 'solarize', 'autocontrast', 'equalize',
)  # fmt: skip
_LEVELS = np.arange(256, dtype=np.int32)  # Of NumPy: an import leaves the devices alone.


def apply_operation(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Returns the image after one operation.

    Args:
      image: float32 [H, W, 3] in 0..255.
      operation: int32 [], an index into OPERATIONS.
      strength: float32 []. Shears: dx / dy. Translations: pixels. Rotation: degrees,
        counter-clockwise. Blends: how much the factor differs from 1. Posterize: bits kept.
        Solarize: the threshold, in 0..255. The others have none.
    """
    chosen = {name: operation == index for index, name in enumerate(OPERATIONS)}
    image = warp(image, _matrix(chosen, strength, image.shape))
    degenerates = {
        'brightness': jnp.zeros_like(image),
        'color': jnp.broadcast_to(grey(image), image.shape),
        'contrast': jnp.full_like(image, jnp.round(grey(image).mean())),
        'sharpness': smooth(image),
    }
    degenerate, is_blend = image, False
    for name, other in degenerates.items():
        degenerate = jnp.where(chosen[name], other, degenerate)
        is_blend |= chosen[name]
    image = blend(degenerate, image, jnp.where(is_blend, 1 + strength, 1.0))
    levels = jnp.round(image).astype(jnp.int32)
    tables = {
        'posterize': posterize_table(strength),
        'solarize': solarize_table(strength),
        'autocontrast': autocontrast_tables(levels),
        'equalize': equalize_tables(levels),
    }
    table = jnp.broadcast_to(_LEVELS, (3, 256))
    for name, other in tables.items():
        table = jnp.where(chosen[name], other, table)
    return lookup(levels, table)


def _matrix(chosen: dict[str, jax.Array], strength: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the [2, 3] matrix of `warp` for a geometric operation; otherwise the identity."""
    amount = {name: jnp.where(chosen[name], strength, 0.0) for name in OPERATIONS[1:6]}
    angle = jnp.deg2rad(amount['rotate'])
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    height, width = shape[:2]
    rotation = jnp.array([[cosine, -sine], [sine, cosine]])
    middle = jnp.array([width / 2, height / 2])
    linear = rotation + jnp.array([[0, amount['shear_x']], [amount['shear_y'], 0]])
    moved = jnp.array([amount['translate_x'], amount['translate_y']])
    return jnp.column_stack([linear, middle - rotation @ middle + moved])


def warp(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns an affinely transformed image: bilinear, black where there was none.

    Args:
      image: float32 [H, W, C].
      matrix: [2, 3], takes (x, y, 1) of the result to (x, y) of the image, in pixels whose centers
        lie at halves, as for Pillow's `Image.transform`.
    """
    height, width = image.shape[:2]
    y, x = jnp.mgrid[:height, :width] + 0.5
    from_x, from_y = jnp.einsum('ij,jhw->ihw', matrix, jnp.stack([x, y, jnp.ones_like(x)]))
    # The rounding keeps pixels that have not moved exactly where they were.
    where = [jnp.round((axis - 0.5) * 1024) / 1024 for axis in (from_y, from_x)]
    sample = lambda channel: map_coordinates(channel, where, order=1, mode='constant')  # noqa: E731
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns degenerate + factor * (image - degenerate), kept within 0..255."""
    return jnp.clip(degenerate + factor * (image - degenerate), 0, 255)


def grey(image: jax.Array) -> jax.Array:
    """Returns the luma [..., 1] of RGB, by the weights of ITU-R BT.601."""
    return image @ jnp.array([[0.299], [0.587], [0.114]], image.dtype)


def smooth(image: jax.Array) -> jax.Array:
    """Returns the image under the 3x3 kernel of Pillow's SMOOTH, its border as it was."""
    padded = jnp.pad(image, [(1, 1), (1, 1), (0, 0)])
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    height, width = image.shape[:2]
    y, x = jnp.mgrid[:height, :width]
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inside[..., None], jnp.round((box + 4 * image) / 13), image)


def posterize_table(bits: jax.Array) -> jax.Array:
    """Returns [256]: the levels with all but their uppermost `bits` bits cleared."""
    step = 2 ** (8 - jnp.clip(jnp.round(bits), 0, 8)).astype(jnp.int32)
    return _LEVELS // step * step


def solarize_table(threshold: jax.Array) -> jax.Array:
    """Returns [256]: the levels, those from `threshold` on inverted."""
    return jnp.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS)


def autocontrast_tables(levels: jax.Array) -> jax.Array:
    """Returns [3, 256]: for each channel, its darkest level to 0 and its brightest to 255."""
    low, high = levels.min((0, 1))[:, None], levels.max((0, 1))[:, None]
    stretched = (_LEVELS - low) * (255 / jnp.maximum(high - low, 1))
    return jnp.where(high > low, jnp.clip(jnp.floor(stretched + 1e-4), 0, 255), _LEVELS)


def equalize_tables(levels: jax.Array) -> jax.Array:
    """Returns [3, 256]: for each channel, levels spread so that all occur about as often."""

    def table(channel: jax.Array) -> jax.Array:
        counts = jnp.bincount(channel.ravel(), length=256)
        last = jnp.max(jnp.where(counts > 0, _LEVELS, -1))
        step = (counts.sum() - counts[last]) // 255
        below = jnp.cumsum(counts) - counts
        spread = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
        return jnp.where((step > 0) & ((counts > 0).sum() > 1), spread, _LEVELS)

    return jax.vmap(table, in_axes=-1)(levels)


def lookup(levels: jax.Array, tables: jax.Array) -> jax.Array:
    """Returns float32 [H, W, 3]: each channel's levels replaced by its table [3, 256]."""
    replace = lambda table, channel: table[channel]  # noqa: E731
    return jax.vmap(replace, (0, -1), -1)(tables, levels).astype(jnp.float32)


def shift_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Returns the image with its hue moved by `turn` of the colour circle, in -0.5..0.5.

    Saturation and value of HSV stay as they are.
    """
    high, low = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
    chroma = high - low
    red, green, blue = jnp.split(image, 3, -1)
    safe = jnp.where(chroma > 0, chroma, 1)
    hue = jnp.where(
        high == red,
        (green - blue) / safe,
        jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # Each channel is a trapezoid over the circle of six units (Smith, SIGGRAPH 1978).
    offsets = jnp.array([5.0, 3.0, 1.0])
    place = (offsets + hue + 6 * turn) % 6
    return high - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
