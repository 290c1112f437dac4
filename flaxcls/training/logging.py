"""Metrics of a run: metrics.jsonl, which is the truth, and TensorBoard."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from flaxcls.config.workdir import METRICS_FILE
from flaxcls.errors import UserError
from flaxcls.system.files import write_atomically

Record = Mapping[str, float]


def read_metrics(workdir: str | os.PathLike, *, up_to_step: int | None = None) -> list[Record]:
    """Returns the records of a workdir's metrics.jsonl in order; a line cut short is left out."""
    path = pathlib.Path(workdir).expanduser() / METRICS_FILE
    records = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # The process died while it wrote its last line.
            continue
        if up_to_step is None or record['step'] <= up_to_step:
            records.append(record)
    return records


class MetricsWriter:
    """Appends records to metrics.jsonl, one JSON object a line, and to TensorBoard if asked.

    What is there from steps after `start_step` is removed: a resumed run writes it again.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int, *, tensorboard: bool):
        path = workdir / METRICS_FILE
        kept = read_metrics(workdir, up_to_step=start_step) if start_step else []
        write_atomically(path, ''.join(json.dumps(record) + '\n' for record in kept))
        self._file = path.open('a', encoding='utf-8')
        self._tensorboard = _tensorboard_writer(workdir, start_step) if tensorboard else None

    def write(self, record: Record) -> None:
        """Writes one record; it has `step` and slash-separated names."""
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        if self._tensorboard:
            for name, value in record.items():
                if '/' in name:
                    self._tensorboard.add_scalar(name, value, record['step'])

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


class _NoWriter:
    """Stands in for the writer in all processes but the first."""

    def write(self, record: Record) -> None:
        pass

    def close(self) -> None:
        pass


def create_metrics_writer(
    workdir: pathlib.Path, start_step: int, *, tensorboard: bool
) -> MetricsWriter | _NoWriter:
    """Returns a writer that writes in the first process alone."""
    if jax.process_index():
        return _NoWriter()
    return MetricsWriter(workdir, start_step, tensorboard=tensorboard)


def require_tensorboard() -> None:
    """Raises UserError if the extra that writes TensorBoard events is not installed."""
    try:
        import tensorboardX  # noqa: F401, PLC0415
    except ImportError:
        raise UserError(
            'config.tensorboard=True needs tensorboardX; run  pip install "flaxcls[tensorboard]"'
        ) from None


def _tensorboard_writer(workdir: pathlib.Path, start_step: int) -> Any:
    import tensorboardX  # noqa: PLC0415

    return tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=start_step + 1)
