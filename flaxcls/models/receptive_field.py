"""Receptive fields (Araujo, Norris, Sim, Distill 2019, doi:10.23915/distill.00021)."""

from collections.abc import Iterable
from typing import NamedTuple


class Field(NamedTuple):
    """What the outputs of a layer see along one axis of the image, pixels.

    Output i sees the image from start + i * jump on, `size` pixels; what lies beside the image is
    padding.
    """

    start: int = 0
    size: int = 1
    jump: int = 1

    def through(self, window: int, stride: int, padding: int) -> 'Field':
        """Returns the field behind a window of that many of these outputs."""
        return Field(
            self.start - padding * self.jump,
            self.size + (window - 1) * self.jump,
            self.jump * stride,
        )


def hull(fields: Iterable[Field | None]) -> Field | None:
    """Returns the field of what joins others: the largest, or more where none holds the others.

    None is the whole image.
    """
    fields = list(fields)
    if None in fields:
        return None
    start = min(field.start for field in fields)
    end = max(field.start + field.size for field in fields)
    return Field(start, end - start, max(field.jump for field in fields))
