"""Patterns that name layers."""

import fnmatch
from collections.abc import Sequence


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Returns whether a path such as stage1_block1/bn1/scale, or a folder of it, fits a pattern."""
    parts = path.split('/')
    folders = ['/'.join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(folder, pattern) for folder in folders for pattern in patterns)


def parse_patterns(text: str) -> tuple[str, ...]:
    """Returns the patterns of config.freeze, such as 'stem,stage[12]*'."""
    return tuple(pattern.strip() for pattern in text.split(',') if pattern.strip())
