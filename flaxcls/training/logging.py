"""What a run tells: metrics.jsonl (the truth), TensorBoard, and a person at the terminal."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import tqdm

from flaxcls.errors import UserError
from flaxcls.system.files import write_atomically

Record = Mapping[str, float]


_METRICS_FILE = 'metrics.jsonl'


def read_metrics(workdir: str | os.PathLike, *, up_to_step: int | None = None) -> list[Record]:
    """Returns the records of a workdir's metrics.jsonl in order; a line cut short is left out."""
    path = pathlib.Path(workdir).expanduser() / _METRICS_FILE
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
        path = workdir / _METRICS_FILE
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


class Progress:
    """A bar on a terminal, plain lines elsewhere: speed, time left, loss, share of waiting."""

    def __init__(self, start_step: int, total_steps: int):
        self._total = total_steps
        self._done = 0
        self._began = 0.0
        self._bar = None
        if sys.stderr.isatty():
            form = '{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}, {remaining} left{postfix}'
            self._bar = tqdm.tqdm(
                initial=start_step, total=total_steps, bar_format=form, dynamic_ncols=True
            )

    def step(self) -> None:
        """Counts one step."""
        self._done += 1
        if self._done == 1:  # The time before is compilation, which says nothing of the rest.
            self._began = time.monotonic()
        if self._bar:
            self._bar.update()

    def show(self, record: Record) -> None:
        """Shows a record of training metrics."""
        text = f'loss {record["train/loss"]:.4f}, lr {record["train/learning_rate"]:.4g}'
        if 'train/images_per_second' in record:
            text += (
                f', {record["train/images_per_second"]:,.0f} images/s, '
                f'{record["train/data_wait_fraction"]:.0%} waiting for data'
            )
        if self._bar:
            self._bar.set_postfix_str(text)
        else:
            per_step = (time.monotonic() - self._began) / max(self._done - 1, 1)
            left = tqdm.tqdm.format_interval(per_step * (self._total - record['step']))
            print(f'step {record["step"]}/{self._total}: {text}, {left} left', flush=True)

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self._bar:
            self._bar.clear()
        print(text, flush=True)
        if self._bar:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar:
            self._bar.close()
