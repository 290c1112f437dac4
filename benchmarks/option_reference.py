"""Writes the reference of every option from what the code itself says of it.

  python -m benchmarks.option_reference --out=docs/config.md

Names, defaults and meanings are those of `default_config`, with its comments; the values that an
option may have are those that a run is checked against.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from flaxcls.config.defaults import (
    OBSERVING_OPTIONS,
    default_config,
    default_options,
    option_comments,
)
from flaxcls.config.validation import BELONGS_TO, CHOICES, RANGES
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.system.files import require_place

COMMAND = 'python -m benchmarks.option_reference --out=docs/config.md'

_INTRODUCTION = f"""# Options

<!-- Written by: {COMMAND} -->

Every option of a run, with what the comments in `flaxcls/config/options.py` say of it, which
`python -m flaxcls.main --help` prints as well. On the command line an option is
`--config.KEY=VALUE`; in a file of `experiments/` it is `config.KEY = VALUE`; in Python, an entry
of the second argument of `flaxcls.load_config`. A list is written `3,4,6`. Where the default is
`None`, the model's paper, the library or the data decides, as the last column says, and `None` on
the command line gives the choice back to them.

An unknown key, a value of another type or out of range, and an option that is without effect beside
the others are refused in one sentence before anything is computed. What is marked with * may change
when a run goes on in its workdir, since the result stays the same, and `num_epochs` may grow; any
other change is another experiment, and needs another workdir.
"""

_TYPES = {bool: 'true or false', int: 'whole number', float: 'number', str: 'text', tuple: 'list'}


def to_markdown() -> str:
    """Returns the reference: a section for each group of options, with a table."""
    config, comments = default_config(), option_comments()
    groups: dict[str, list[str]] = {'': []}
    for key in comments:  # In the order of the code; a ConfigDict sorts its keys.
        if isinstance(config.get(key), ConfigDict):
            groups[key] = []
        else:
            groups[key.rpartition('.')[0]].append(key)
    parts = [_INTRODUCTION]
    for group, keys in groups.items():
        lines = [f'## {group or "The run"}', '']
        lines += [comments[group], ''] if group else []
        lines += ['| key | default | values | meaning |', '| --- | --- | --- | --- |']
        lines += [_row(key, config, comments[key]) for key in keys]
        parts.append('\n'.join(lines) + '\n')
    return '\n'.join(parts)


def _row(key: str, config: ConfigDict, comment: str) -> str:
    value = default_options()[key]
    star = ' *' if key in OBSERVING_OPTIONS else ''
    cells = [f'`{key}`{star}', _code(value), _values(key, config), _meaning(key, comment)]
    return f'| {" | ".join(cell.replace("|", "&#124;") for cell in cells)} |'


def _values(key: str, config: ConfigDict) -> str:
    if key in CHOICES:
        return ', '.join(map(_code, CHOICES[key]))
    if key == 'model.name':
        from flaxcls.models.registry import MODELS

        return ', '.join(map(_code, MODELS))
    *parents, name = key.split('.')
    section = config[parents[0]] if parents else config
    kind = _TYPES[section.get_type(name)]
    return f'{kind}, {RANGES[key][1]}' if key in RANGES else kind


def _meaning(key: str, comment: str) -> str:
    if key not in BELONGS_TO:
        return comment
    other, values = BELONGS_TO[key]
    return f'{comment} Only with `{other}` {", ".join(map(_code, values))}.'


def _code(value: Any) -> str:
    return f'`{value!r}`' if not isinstance(value, str) or not value else f'`{value}`'


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('benchmarks.option_reference', __doc__)
    parser.add_argument('--out', required=True, help='file to write')
    flags = parser.parse_args(argv)
    out = require_place(flags.out)
    out.write_text(to_markdown(), encoding='utf-8')
    print(f'wrote {flags.out}')


if __name__ == '__main__':
    run_command(main)
