"""Which examples of a set without splits are for validation."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from flaxcls.errors import UserError
from flaxcls.system.translation import Message

DEFAULT_VAL_FRACTION = 0.2


def draw_of_each_class(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Returns bool [N], True for `fraction` of the examples of every class, drawn at random."""
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rng = np.random.default_rng((seed, int(label)))
        members = rng.permutation(np.nonzero(labels == label)[0])
        drawn[members[: round(len(members) * fraction)]] = True
    return drawn


def is_held_out(name: str, fraction: float, seed: int) -> bool:
    """Returns whether an example is for validation, which its own name says, and no other's.

    So a file that comes or goes moves none of the others from one side to the other.
    """
    return xxhash.xxh3_64_intdigest(os.fsencode(f'{seed}\0{name}')) < fraction * 2**64


def hold_out(
    every: Any, class_names: Sequence[str], *, fraction: float | None, seed: int
) -> tuple[Any, Any, list[str]]:
    """Returns the files for training and those for validation, and notes about them.

    Args:
      every: all files, a FileSplit.
      class_names: in the order of the labels.
      fraction: about so much is held out; None: 0.2.
      seed: of the draw.

    Raises:
      UserError: one of the two would have none, or a class none for training.
    """
    fraction = DEFAULT_VAL_FRACTION if fraction is None else fraction
    labels, names = every.labels, every.relative_names()
    held_out = np.array([is_held_out(name, fraction, seed) for name in names], bool)
    if held_out.all() or not held_out.any():
        raise UserError(
            f'config.data.val_fraction={fraction:g} of the {len(labels)} images leaves one side '
            'without any; choose another fraction, or another config.seed.'
        )
    counts = [
        np.bincount(labels[rows], minlength=len(class_names)) for rows in (~held_out, held_out)
    ]
    for name, trained, validated in zip(class_names, *counts, strict=True):
        if validated and not trained:
            raise UserError(
                f'the class {name!r} has {validated} image(s), all of them held out for '
                'validation; add some, or choose another config.seed or config.data.val_fraction.'
            )
    notes = [
        Message(
            '{count} held out for validation by their names ({share} of {total} images, seed '
            '{seed}).',
            count=int(held_out.sum()),
            share=f'{held_out.mean():.1%}',
            total=len(labels),
            seed=seed,
        )
    ]
    missing = [name for name, count in zip(class_names, counts[1], strict=True) if not count]
    if missing:
        shown = ', '.join(missing[:8]) + (', ...' if len(missing) > 8 else '')
        notes.append(
            Message(
                '{count} classes have no validation image: {names}.',
                count=len(missing),
                names=shown,
            )
        )
    return every.take(~held_out), every.take(held_out), notes
