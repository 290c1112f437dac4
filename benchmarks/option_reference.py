"""Writes the reference of every option from what the code itself says of it.

  python -m benchmarks.option_reference --out=docs/config.md

All of it comes from the rows of flaxcls/config/options.py.
"""

from collections.abc import Sequence
from typing import Any

from flaxcls.config.option import Option
from flaxcls.config.options import OPTIONS, SECTIONS
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.system.files import require_place

COMMAND = 'python -m benchmarks.option_reference --out=docs/config.md'

_INTRODUCTION = f"""# Options

<!-- Written by: {COMMAND} -->

Every option of a run, from the rows of `flaxcls/config/options.py`, which
`flaxcls train --help` prints as well. On the command line an option is
`--config.KEY=VALUE`; in a file of `experiments/` it is `config.KEY = VALUE`; in Python, an entry
of the second argument of `flaxcls.load_config`. A list is written `3,4,6`. Where the default is
`None`, the model's paper, the library or the data decides, as the last column says, and `None` on
the command line gives the choice back to them.

An unknown key, a value of another type or out of range, and an option that is without effect beside
the others are refused in one sentence before anything is computed. What is marked with * may change
when a run resumes in its workdir, since the result stays the same, and `num_epochs` may grow; any
other change is another experiment, and needs another workdir.
"""

_TYPES = {bool: 'true or false', int: 'whole number', float: 'number', str: 'text', tuple: 'list'}


def to_markdown() -> str:
    """Returns the reference: a section for each group of options, with a table."""
    groups: dict[str, list[Option]] = {'': []} | {section: [] for section in SECTIONS}
    for row in OPTIONS.values():
        groups[row.key.rpartition('.')[0]].append(row)
    parts = [_INTRODUCTION]
    for section, rows in groups.items():
        lines = [f'## {section or "The run"}', '']
        lines += [SECTIONS[section], ''] if section else []
        lines += ['| key | default | values | meaning |', '| --- | --- | --- | --- |']
        lines += [_line(row) for row in rows]
        parts.append('\n'.join(lines) + '\n')
    return '\n'.join(parts)


def _line(row: Option) -> str:
    star = ' *' if row.neutral else ''
    cells = [f'`{row.key}`{star}', _code(row.default), _values(row), _meaning(row)]
    return f'| {" | ".join(cell.replace("|", "&#124;") for cell in cells)} |'


def _values(row: Option) -> str:
    if row.choices:
        return ', '.join(map(_code, row.choices))
    if row.key == 'model.name':
        from flaxcls.models.registry import MODELS

        return ', '.join(map(_code, MODELS))
    return ', '.join(filter(None, [_TYPES[row.kind], row.requirement]))


def _meaning(row: Option) -> str:
    text = row.help
    for key, values in row.only_with.items():
        values = values if isinstance(values, tuple) else (values,)
        text += f' Only with `{key}` {", ".join(map(_code, values))}.'
    return text


def _code(value: Any) -> str:
    return f'`{value!r}`' if not isinstance(value, str) or not value else f'`{value}`'


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('python -m benchmarks.option_reference', __doc__)
    parser.add_argument('--out', required=True, help='file to write')
    flags = parser.parse_args(argv)
    out = require_place(flags.out)
    out.write_text(to_markdown(), encoding='utf-8')
    print(f'wrote {flags.out}')


if __name__ == '__main__':
    run_command(main)
