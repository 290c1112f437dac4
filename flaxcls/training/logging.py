"""Metrics of a run: metrics.jsonl, which is the truth, and trackers such as TensorBoard."""

import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from flaxcls.config.option import require_choice
from flaxcls.config.registry import Registry
from flaxcls.config.workdir import METRICS_FILE
from flaxcls.errors import UserError
from flaxcls.system.files import naming, write_atomically

Record = Mapping[str, float]


def read_metrics(workdir: str | os.PathLike, *, up_to_step: int | None = None) -> list[Record]:
    """Returns the records of a workdir's metrics.jsonl in order.

    A line that is cut short, as by the death of the process that wrote it, or damaged is left out;
    of any but the last it is said.
    """
    path = pathlib.Path(workdir).expanduser() / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse_record(line)
        if record is None:
            if number < len(lines):
                print(f'Note: line {number} of {str(path)!r} is damaged, and left out.')
        elif up_to_step is None or record['step'] <= up_to_step:
            records.append(record)
    return records


def _parse_record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    is_record = isinstance(record, dict) and isinstance(record.get('step'), int)
    numbers = is_record and all(isinstance(value, int | float) for value in record.values())
    return record if numbers else None


class Tracker(Protocol):
    """Where records go besides."""

    def write(self, record: Record) -> None:
        """Takes one record; it has `step`, `epoch` and slash-separated names."""

    def flush(self) -> None:
        """Is called before each save: a killed run resumes there, and writes nothing before."""

    def close(self) -> None:
        """Is called once, at the end of the run or of this part of it."""


# A name in config.trackers -> (workdir, start_step) -> Tracker; options are keyword-only arguments.
# `needs`: the module that it takes, and `install` the command for it.
TRACKERS: Registry = Registry('trackers')


def find_trackers(names: str, options: Mapping[str, Any]) -> tuple[Callable[..., Tracker], ...]:
    """Returns the makers of the trackers that config.trackers names, with their options.

    Raises:
      UserError: there is no such tracker, or what it needs is not installed.
    """
    found = []
    for name in filter(None, map(str.strip, names.split(','))):
        require_choice('trackers', name, list(TRACKERS))
        needs = TRACKERS.facts[name].get('needs')
        if needs and importlib.util.find_spec(needs) is None:
            install = TRACKERS.facts[name]['install']
            raise UserError(f'config.trackers={name} needs {needs}; run  {install}')
        found.append(TRACKERS.bind(name, options))
    return tuple(found)


@TRACKERS.register(
    'tensorboard', needs='tensorboardX', install='pip install "flaxcls[tensorboard]"'
)
class TensorBoard:
    """Event files in WORKDIR/tensorboard."""

    def __init__(self, workdir: pathlib.Path, start_step: int):
        import tensorboardX  # noqa: PLC0415 - an extra

        folder = str(workdir / 'tensorboard')
        self._writer = tensorboardX.SummaryWriter(folder, purge_step=start_step + 1)

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if '/' in name:
                self._writer.add_scalar(name, value, record['step'])

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MetricsWriter:
    """Appends records to metrics.jsonl, one JSON object a line, and hands them to trackers.

    What is there from steps after `start_step` is removed: a resumed run writes it again.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        start_step: int,
        trackers: Sequence[Callable[..., Tracker]] = (),
    ):
        path = workdir / METRICS_FILE
        kept = read_metrics(workdir, up_to_step=start_step) if start_step else []
        write_atomically(path, ''.join(json.dumps(record) + '\n' for record in kept))
        self._path, self._file = path, path.open('a', encoding='utf-8')
        self._trackers = [make(workdir, start_step) for make in trackers]

    def write(self, record: Record) -> None:
        """Writes one record; it has `step` and slash-separated names."""
        with naming(self._path):
            self._file.write(json.dumps(record) + '\n')
            self._file.flush()
        for tracker in self._trackers:
            tracker.write(record)

    def flush(self) -> None:
        """Leaves nothing in memory of what has been written."""
        for tracker in self._trackers:
            if hasattr(tracker, 'flush'):  # An extension's may do without.
                tracker.flush()

    def close(self) -> None:
        with naming(self._path):  # What could not be written is tried once more.
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


class _NoWriter:
    """Stands in for the writer in all processes but the first."""

    def write(self, record: Record) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def create_metrics_writer(
    workdir: pathlib.Path, start_step: int, trackers: Sequence[Callable[..., Tracker]]
) -> MetricsWriter | _NoWriter:
    """Returns a writer that writes in the first process alone."""
    return _NoWriter() if jax.process_index() else MetricsWriter(workdir, start_step, trackers)
