"""Keeps the records of finished runs, and renders RESULTS.md: published, expected, and ours.

  python -m benchmarks.ledger                  renders the records that are kept
  python -m benchmarks.ledger --runs=runs      first takes in those of the finished runs below runs/

The rows are those of results/rows.toml, whose comments say what their fields mean. A record belongs
to the row whose experiment has its config, whatever the run was called; several seeds make a mean.
Records of runs in bfloat16 count as those in float32 do.
"""

import json
import pathlib
import re
import statistics
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from flaxcls.config.config_dict import flatten
from flaxcls.config.files import load_config, split_variant
from flaxcls.errors import UserError
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.system.files import write_atomically
from flaxcls.training.checkpoint_files import newest_step
from flaxcls.training.run_record import (
    RECORD_FILE,
    experiment_hash,
    experiment_options,
    read_record,
    recorded_experiment,
)

_T = TypeVar('_T')
_EXPERIMENTS = pathlib.Path('experiments')
_ROWS_FILE = 'rows.toml'
_DATA_NAMES = {
    'tfds:imagenet2012': 'ImageNet',
    'tfds:cifar10': 'CIFAR-10',
    'fashion_mnist': 'Fashion-MNIST',
    'digits': 'Digits (scikit-learn)',
}


class LedgerRow(NamedTuple):
    """A row of the ledger, with the fields of results/rows.toml."""

    experiment: str
    source: str
    options: Mapping[str, Any] = {}
    top1: float | None = None
    top5: float | None = None
    tolerance: float | None = None
    at_least: float | None = None

    @property
    def name(self) -> str:
        """The end of the command that makes it, after --config=experiments/."""
        return ' '.join(
            [self.experiment, *(f'--config.{key}={value}' for key, value in self.options.items())]
        )


class LedgerEntry(NamedTuple):
    """A row with what belongs to it now."""

    row: LedgerRow
    options: Mapping[str, Any]  # `experiment_options` of its config.
    records: list[Mapping[str, Any]]  # By seed.

    @property
    def data(self) -> str:
        """What the experiment trains on."""
        return self.options['data.source']


def load_rows(folder: pathlib.Path) -> list[LedgerRow]:
    """Returns the rows of the ledger in `folder`.

    Raises:
      UserError: there is no ledger there, or its fields are not those that its comments name.
    """
    return load_table(folder, 'rows', _checked_row)


def load_table(folder: pathlib.Path, name: str, make: Callable[..., _T]) -> list[_T]:
    """Returns what `make` makes of the fields of each [[name]] of the ledger in `folder`.

    Raises:
      UserError: there is no ledger there, or `make` refuses fields.
    """
    path = folder / _ROWS_FILE
    try:
        tables = tomllib.loads(path.read_text(encoding='utf-8'))
        return [make(**fields) for fields in tables[name]]
    except OSError:
        raise UserError(
            f'there is no ledger in {str(folder)!r} (no {_ROWS_FILE}); run this where experiments/ '
            'and results/ are.'
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f'{str(path)!r} cannot be read ({error}); its comments say how.') from None


def _checked_row(**fields: Any) -> LedgerRow:
    row = LedgerRow(**fields)
    numbers = (row.top1, row.top5, row.tolerance, row.at_least)
    if not all(number is None or isinstance(number, int | float) for number in numbers):
        raise ValueError(f'{row.experiment}: an accuracy is not a number')
    if not isinstance(row.options, Mapping):
        raise ValueError(f'{row.experiment}: options={row.options!r} is not a table')
    if (row.top1 is None) != (row.tolerance is None) or (row.top1 is None) == (
        row.at_least is None
    ):
        raise ValueError(f'{row.name}: either top1 and tolerance, or at_least')
    return row


def load_entries(
    rows: Sequence[LedgerRow], folder: pathlib.Path
) -> tuple[list[LedgerEntry], list[str]]:
    """Returns the rows with the records kept in `folder`, and the names of those of no row."""
    configs = [load_config(_EXPERIMENTS / row.experiment, row.options) for row in rows]
    entries = [
        LedgerEntry(row, experiment_options(dict(flatten(config))), [])
        for row, config in zip(rows, configs, strict=True)
    ]
    outdated = []
    for path in sorted(folder.glob('*.json')):
        record = _read_kept(path)
        entry = _find(entries, record)
        if entry:
            entry.records.append(record)
        else:
            outdated.append(str(path))
    for entry in entries:
        entry.records.sort(key=lambda record: record['seed'])
    return entries, outdated


def _find(entries: Sequence[LedgerEntry], record: Mapping[str, Any]) -> LedgerEntry | None:
    experiment = recorded_experiment(record['options'])
    return next((entry for entry in entries if entry.options == experiment), None)


def _read_kept(path: pathlib.Path) -> Mapping[str, Any]:
    record = read_record(path.parent, path.name)
    if not record or not record['val']:
        raise UserError(f'{str(path)!r} is damaged; delete it, and take the run in again.')
    return record


def take_in(
    runs: pathlib.Path,
    entries: Sequence[LedgerEntry],
    folder: pathlib.Path,
    *,
    replace: bool = False,
) -> list[str]:
    """Copies the records of the finished runs below `runs` into `folder`.

    Where there is one of another run of the same experiment, seed and precision, it stays, unless
    it is to be replaced.

    Returns:
      A line for each run, with what became of it.

    Raises:
      UserError: no run is there.
    """
    workdirs = sorted(path.parent for path in runs.rglob(RECORD_FILE))
    if not workdirs:
        raise UserError(f'--runs={runs}: no run has left a {RECORD_FILE} there.')
    lines = []
    for workdir in workdirs:
        record = read_record(workdir)
        entry = _find(entries, record) if record else None
        reason = _why_not(workdir, record, entry)
        if reason:
            lines.append(f'{workdir}: left out, since {reason}')
            continue
        path = folder / f'{_slug(entry.row, record)}.json'
        text = json.dumps(record, indent=1) + '\n'
        other = path.exists() and path.read_text(encoding='utf-8') != text
        if other and not replace:
            lines.append(
                f'{workdir}: left out, since {path.name} has another run of the experiment; '
                '--replace takes this one in its place'
            )
            continue
        write_atomically(path, text)
        replaced = ', in place of another run' if other else ''
        lines.append(f'{workdir}: {path.name}, {record["val"]["val/accuracy"]:.2%}{replaced}')
    return lines


def _why_not(
    workdir: pathlib.Path, record: Mapping[str, Any], entry: LedgerEntry | None
) -> str | None:
    """Returns why the record of a run is not to be kept; None: it is."""
    if not record:
        return f'its {RECORD_FILE} is damaged'
    if entry is None:
        return f'no row of {_ROWS_FILE} has its config'
    if len({part.get('config_hash') for part in record['parts']}) > 1:
        return 'its config was changed on the way'
    saved = newest_step(workdir) if record['val'] else 0
    step = min(record['step'], saved or 0)
    if step < record['total_steps']:
        return f'it has made {step} of {record["total_steps"]} steps'
    return None


def _slug(row: LedgerRow, record: Mapping[str, Any]) -> str:
    file, variant = split_variant(row.experiment)
    parts = [pathlib.Path(file).stem, *([variant] if variant else [])]
    parts += [f'{key}={value}' for key, value in row.options.items()]
    parts += [record['options'].get('model.dtype', 'float32'), f'seed{record["seed"]}']
    return re.sub(r'[^\w.=-]+', '_', '-'.join(parts))


def render(entries: Sequence[LedgerEntry]) -> str:
    """Returns RESULTS.md."""
    lines = [
        '# Results',
        '',
        'Validation accuracy in percent: what others report, how near to it our mean is expected, '
        'and ours, after the last epoch, with the deviation between seeds. '
        '`python -m benchmarks.ledger` writes this file from `results/`; '
        '`flaxcls train --config=NAME` makes a row.',
    ]
    for data in dict.fromkeys(entry.data for entry in entries):
        lines += ['', f'## {_DATA_NAMES.get(data, data)}', '']
        lines += [
            '| `experiments/...` | published top-1 / top-5 | by | expected | ours, top-1 | runs |',
            '| --- | ---: | --- | ---: | ---: | ---: |',
        ]
        lines += [_entry_line(entry) for entry in entries if entry.data == data]
    lines += ['', '## The runs', '']
    lines += [
        '| run | seed | top-1 | loss | of | time | device | date | commit | config '
        '| jax, flax, optax |',
        f'|{" --- |" * 11}',
    ]
    lines += [_run_line(entry, record) for entry in entries for record in entry.records]
    lines += [
        '',
        'Times are wall time from the first compilation to the last save, with every evaluation. '
        'A `+` after a commit marks code that had been changed.',
        '',
        'Published figures that are often misquoted are among the '
        '[common mistakes](docs/common_mistakes.md).',
    ]
    return '\n'.join(lines) + '\n'


def _entry_line(entry: LedgerEntry) -> str:
    row = entry.row
    published = ' / '.join(f'{value:.2f}' for value in (row.top1, row.top5) if value is not None)
    expected = '' if row.at_least is None else f'>= {row.at_least:g}'
    if row.tolerance is not None:
        expected = f'{row.top1:.2f} ± {row.tolerance:g}'
    cells = [f'`{row.name}`', published, row.source, expected, describe_ours(entry)]
    return f'| {" | ".join(cells)} | {len(entry.records) or ""} |'


def describe_ours(entry: LedgerEntry) -> str:
    """Returns the mean of our accuracies in percent and their deviation, or 'not run'."""
    row = entry.row
    values = [100 * record['val']['val/accuracy'] for record in entry.records]
    if not values:
        return 'not run'
    mean = statistics.fmean(values)
    text = f'{mean:.2f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.2f}'
    lower = row.at_least if row.tolerance is None else row.top1 - row.tolerance
    upper = 100 if row.tolerance is None else row.top1 + row.tolerance
    if not round(lower, 2) <= round(mean, 2) <= round(upper, 2):
        text += ', **not as expected**'
    return text


def _run_line(entry: LedgerEntry, record: Mapping[str, Any]) -> str:
    parts, val = record['parts'], record['val']
    dtype = record['options'].get('model.dtype', 'float32')
    precision = '' if dtype == 'float32' else f', {dtype}'
    versions = _each('{jax}, {flax}, {optax}'.format_map(part['versions']) for part in parts)
    cells = [
        f'`{entry.row.name}`',
        record['seed'],
        f'{val["val/accuracy"]:.2%}',
        f'{val["val/loss"]:.4f}',
        f'{val["val/count"]:,}',
        _time(parts),
        _each(part['device'] for part in parts) + precision,
        parts[-1]['began'][:10],
        _each(part['commit'] or 'unknown' for part in parts),
        experiment_hash(entry.options),
        versions,
    ]
    return f'| {" | ".join(map(str, cells))} |'


def _each(values: Iterable[str]) -> str:
    return '; '.join(dict.fromkeys(values))


def _time(parts: Sequence[Mapping[str, Any]]) -> str:
    """Returns the time of all parts; 'unknown' where the first steps have left no record."""
    if parts[0]['from_step']:
        return 'unknown'
    minutes, seconds = divmod(round(sum(part['seconds'] for part in parts)), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('python -m benchmarks.ledger', __doc__)
    parser.add_argument('--runs', help='folder with workdirs, whose records are taken in')
    parser.add_argument('--replace', action='store_true', help='records that are there already')
    parser.add_argument('--results', default='results', help='folder of the ledger')
    parser.add_argument('--out', default='RESULTS.md', help='file to write')
    flags = parser.parse_args(argv)
    folder = pathlib.Path(flags.results).expanduser()
    out = pathlib.Path(flags.out).expanduser()
    rows = load_rows(folder)
    entries, outdated = load_entries(rows, folder)
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f'--out={flags.out} is not a file in a folder that exists.')
    if flags.runs:
        runs = pathlib.Path(flags.runs).expanduser()
        for line in take_in(runs, entries, folder, replace=flags.replace):
            print(line)
        entries, outdated = load_entries(rows, folder)
    for path in outdated:
        print(
            f'Note: {path} is left out, since no row of {_ROWS_FILE} has its config any more; run '
            'it again, or delete it.'
        )
    write_atomically(out, render(entries))
    count = sum(len(entry.records) for entry in entries)
    print(f'{flags.out}: {len(rows)} rows, {count} runs')


if __name__ == '__main__':
    run_command(main)
