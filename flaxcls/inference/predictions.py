"""The predictions of a network for every validation image, and the files that keep them."""

import csv
import io
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax import lax

from flaxcls.config.workdir import PREDICTIONS_FILE
from flaxcls.errors import UserError
from flaxcls.system.files import require_place, write_atomically
from flaxcls.training import parallel
from flaxcls.training.parallel import AXIS

if TYPE_CHECKING:  # All that training takes, which a classifier that loads a temperature does not.
    from flaxcls.training.restore import Restored


class Predictions(NamedTuple):
    """The predictions of a checkpoint for N examples of C classes, in the order of the data.

    Attributes:
      step: training step of the checkpoint.
      labels: int32 [N].
      logits: float32 [N, C]; of several TTA crops, the logarithms of their averaged probabilities.
      names: of each example, what a person would look for: the file, or the split's record.
      class_names: in the order of the logits.
    """

    step: int
    labels: np.ndarray
    logits: np.ndarray
    names: tuple[str, ...]
    class_names: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        """The most probable class, int64 [N]; of equal ones the first, as in training's metrics."""
        return self.logits.argmax(1)

    @property
    def correct(self) -> np.ndarray:
        """Whether the prediction is the label, bool [N]."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        return int(self.correct.sum()) / len(self.labels)

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """Returns the softmax, float64 [N, C], of the logits divided by the temperature."""
        from scipy.special import softmax  # noqa: PLC0415 - slow to import

        return softmax(self.logits.astype(np.float64) / temperature, axis=1)


def predict_validation(run: 'Restored') -> Predictions:
    """Returns the predictions for all validation images, each once and in order.

    All processes of a run have to call it, and all are given everything. Batches and layout are
    those of `make_evaluate`, and the accuracy is its own.
    """
    setup, dataset = run.setup, run.setup.dataset
    predict = parallel.parallelize_eval_step(_make_predict_step(setup.classify), setup.layout)
    running, parts = [], []
    for batch in parallel.to_devices(setup.make_eval_batches()(), setup.layout):
        running.append(predict(run.variables, batch))
        if len(running) > 2:  # What is done need not stay on the device.
            parts.append(jax.device_get(running.pop(0)))
    parts += jax.device_get(running)
    logits, labels, mask = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Predictions(
        step=run.step,
        labels=labels[mask].astype(np.int32),
        logits=logits[mask].astype(np.float32),
        names=tuple(dataset.val.name(index) for index in range(len(dataset.val))),
        class_names=tuple(dataset.class_names),
    )


def _make_predict_step(classify: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., Any]:
    """Returns (variables, a device's share of a batch) -> logits, labels, mask of all of it."""

    def predict_step(variables: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        logits = classify(variables, batch['image'])
        # Of consecutive examples on each device this is the order of the batch.
        return lax.all_gather((logits, batch['label'], batch['mask']), AXIS, tiled=True)

    return predict_step


def save_predictions(predictions: Predictions, workdir: str | os.PathLike) -> pathlib.Path:
    """Writes WORKDIR/predictions.npz, whole or not at all; returns the file.

    Of several processes one has to do it, such as with `processes.on_first`.
    """
    path = pathlib.Path(workdir).expanduser() / PREDICTIONS_FILE
    file = io.BytesIO()
    fields = predictions._asdict() | {
        name: np.array(getattr(predictions, name), np.str_) for name in ('names', 'class_names')
    }
    np.savez(file, **fields)
    write_atomically(path, file.getbuffer())
    return path


def load_predictions(workdir: str | os.PathLike) -> Predictions:
    """Returns what `save_predictions` has written; its `step` is that of the checkpoint.

    Raises:
      UserError: there are none, or the file is damaged.
    """
    path = pathlib.Path(workdir).expanduser() / PREDICTIONS_FILE
    remedy = f'run  flaxcls evaluate --workdir={path.parent}'
    if not path.is_file():
        raise UserError(f'there are no predictions in {str(path.parent)!r}; {remedy}')
    try:
        with np.load(path, allow_pickle=False) as stored:
            fields = {name: stored[name] for name in Predictions._fields}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f'{str(path)!r} is damaged; {remedy}') from None
    return Predictions(
        step=int(fields['step']),
        labels=fields['labels'],
        logits=fields['logits'],
        names=tuple(fields['names'].tolist()),
        class_names=tuple(fields['class_names'].tolist()),
    )


def write_csv(
    predictions: Predictions, path: str | os.PathLike, *, temperature: float = 1.0
) -> pathlib.Path:
    """Writes a table for people, a line for each example, and returns the file.

    Its columns are example, label, prediction, correct (1 or 0), probability (of the prediction).

    Args:
      predictions: to be written.
      path: of the file, whose folder is there.
      temperature: by which logits are divided before the softmax.

    Raises:
      UserError: the file cannot be there.
    """
    path = require_place(path)
    names, predicted = np.array(predictions.class_names, object), predictions.predicted
    columns = (
        predictions.names,
        names[predictions.labels],
        names[predicted],
        predictions.correct.astype(int),
        predictions.probabilities(temperature).max(1).round(6),
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(['example', 'label', 'prediction', 'correct', 'probability'])
    table.writerows(zip(*columns, strict=True))
    # Names of files need not be valid text.
    write_atomically(path, text.getvalue().encode('utf-8', 'surrogateescape'))
    return path
