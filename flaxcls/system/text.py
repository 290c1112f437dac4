"""Text for people: sizes, and the nearest to a misspelt word."""

import difflib
from collections.abc import Sequence


def did_you_mean(word: str, candidates: Sequence[str]) -> str:
    """Returns ' (did you mean ...?)' with the candidate most like `word`, or ''."""
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    if not near:  # `dropout_rate` is best answered with `model.dropout_rate`.
        near = [known for known in candidates if known.split('.')[-1] == word]
    return f' (did you mean {near[0]}?)' if near else ''


def gib(size: float) -> str:
    """Returns bytes as a person reads them, in GiB or MiB."""
    return f'{size / 2**30:.2f} GiB' if size >= 2**30 / 10 else f'{size / 2**20:.1f} MiB'
