"""What Chinese text is held to: how it is set, and that no English is left in it."""

import re

CHINESE = r'[\u4e00-\u9fff]'
_FULL_WIDTH = r'[\u3001\u3002\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f]'
# What typesetting rules out -> what is expected.
_MISPRINTS = {
    rf'{CHINESE}[A-Za-z0-9`]|[A-Za-z0-9%+`]{CHINESE}': 'a space between Chinese and Latin',
    rf'{CHINESE} ?[,;:!?()]|[,;:!?()] ?{CHINESE}': 'full-width punctuation',
    rf'{CHINESE} ?\.( |$)': 'a full-width stop',
    rf'{_FULL_WIDTH} | {_FULL_WIDTH}': 'no space beside full-width punctuation',
    rf'{CHINESE} +{CHINESE}': 'no space between Chinese characters',
    rf'["\']{CHINESE}|{CHINESE}["\']': 'Chinese quotation marks',
}
_WORD = re.compile(r'(?<!\w)[A-Z]?[a-z]{3,}(?!\w)')


def misprints(prose: str) -> list[str]:
    """Returns what is expected at each misprint, and where."""
    return [
        f'{expected}: {prose[max(0, found.start() - 10) : found.end() + 10]}'
        for pattern, expected in _MISPRINTS.items()
        for found in re.finditer(pattern, prose)
    ]


def english_words(prose: str) -> list[str]:
    """Returns the English words of a text, which may be names."""
    return _WORD.findall(prose)


def has_english_sentence(prose: str) -> bool:
    """Returns whether four English words stand beside one another."""
    return re.search(r'[a-z]+(,? [a-z]+){3}', prose) is not None
