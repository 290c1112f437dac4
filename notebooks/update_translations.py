"""Gives each translated notebook the code cells of its original, with what they put out.

A translation NAME.zh.ipynb has the code of NAME.ipynb and its own text, and is not executed:

  python -m notebooks.update_translations
"""

import json
import pathlib
from collections.abc import Sequence

from flaxcls.errors import RunError
from flaxcls.system.cli import CommandParser, run_command

FOLDER = pathlib.Path(__file__).parent


def original_of(translation: pathlib.Path) -> pathlib.Path:
    """Returns the path of the notebook, or of the page, that a translation NAME.zh.* is of."""
    return translation.with_name(translation.name.replace('.zh.', '.'))


def update(translation: pathlib.Path) -> None:
    """Writes a translated notebook anew: its own text, the code and outputs of its original.

    Raises:
      RunError: the two have no longer the same cells in the same order.
    """
    original = json.loads(original_of(translation).read_text(encoding='utf-8'))
    translated = json.loads(translation.read_text(encoding='utf-8'))
    kinds, own_kinds = ([cell['cell_type'] for cell in n['cells']] for n in (original, translated))
    if kinds != own_kinds:
        raise RunError(
            f'{translation.name} has {len(own_kinds)} cells that do not match the {len(kinds)} of '
            f'{original_of(translation).name}; add, remove or move cells of text and code there.'
        )
    for cell, own in zip(original['cells'], translated['cells'], strict=True):
        if cell['cell_type'] == 'markdown':
            cell['source'] = own['source']
    text = json.dumps(original, indent=1, ensure_ascii=False)
    translation.write_text(f'{text}\n', encoding='utf-8')


def main(argv: Sequence[str]) -> None:
    CommandParser('python -m notebooks.update_translations', __doc__).parse_args(argv)
    for translation in sorted(FOLDER.glob('*.zh.ipynb')):
        update(translation)
        print(f'{translation.name} has the code and the outputs of its original.')


if __name__ == '__main__':
    run_command(main)
