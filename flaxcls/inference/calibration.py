"""Temperature scaling (arXiv:1706.04599, section 4.2)."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flaxcls.config.workdir import CALIBRATION_FILE
from flaxcls.errors import UserError
from flaxcls.inference.predictions import Predictions
from flaxcls.inference.scores import expected_calibration_error, fit_temperature
from flaxcls.system.files import write_atomically


class Calibration(NamedTuple):
    """A temperature, and what it does to probabilities that it was not fitted on.

    Attributes:
      step: of the checkpoint that it belongs to.
      temperature: divides the logits; fitted on all examples.
      ece_before: expected calibration error of the plain softmax, in 0..1.
      ece_after: the same with temperatures fitted on other examples.
      loss_before, loss_after: likewise the log loss, in nats.
      count: how many examples T was fitted to.
    """

    step: int
    temperature: float
    ece_before: float
    ece_after: float
    loss_before: float
    loss_after: float
    count: int

    def describe(self) -> str:
        """Returns a line with the temperature, and what it does to other images."""
        return (
            f'temperature {self.temperature:.4f}; on images that it was not fitted on, expected '
            f'calibration error {self.ece_before:.2%} -> {self.ece_after:.2%}, loss '
            f'{self.loss_before:.4f} -> {self.loss_after:.4f}'
        )


def calibrate(predictions: Predictions, seed: int = 0) -> Calibration:
    """Returns the temperature for a network, from its predictions for images it was not trained on.

    To judge a temperature on the images that it was fitted on would flatter it. So the images are
    drawn into two halves, and each is judged with the temperature of the other.

    Args:
      predictions: logits and labels of the validation set.
      seed: of the random split into halves.

    Raises:
      UserError: there are fewer than two images.
    """
    labels, logits, count = predictions.labels, predictions.logits, len(predictions.labels)
    if count < 2:
        raise UserError(f'a temperature cannot be fitted and judged on {count} image; give more.')
    before = predictions.probabilities()
    after = np.empty_like(before)
    order = np.random.default_rng(seed).permutation(count)
    halves = order[: count // 2], order[count // 2 :]
    for judged, fitted in (halves, halves[::-1]):
        half = predictions._replace(logits=logits[judged])
        after[judged] = half.probabilities(fit_temperature(labels[fitted], logits[fitted]))
    return Calibration(
        predictions.step,
        fit_temperature(labels, logits),
        *(expected_calibration_error(labels, p) for p in (before, after)),
        *(_log_loss(labels, p) for p in (before, after)),
        count,
    )


def _log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(true.dtype).tiny)).mean())


def save_calibration(
    calibration: Calibration, workdir: str | os.PathLike, *, source: str
) -> pathlib.Path:
    """Writes WORKDIR/calibration.json, which `Classifier.load` heeds; returns the file.

    Args:
      calibration: its fields are the file's.
      workdir: path of the directory that the run was trained in.
      source: config.data.source of the images, for the record.
    """
    path = pathlib.Path(workdir).expanduser() / CALIBRATION_FILE
    content = calibration._asdict() | {'source': source}
    write_atomically(path, json.dumps(content, indent=1) + '\n')
    return path


def load_temperature(workdir: str | os.PathLike, step: int) -> float:
    """Returns the temperature measured for the checkpoint of `step`, or 1 where there is none."""
    calibration = load_calibration(workdir, step)
    return calibration['temperature'] if calibration else 1.0


def load_calibration(workdir: str | os.PathLike, step: int) -> Mapping[str, Any] | None:
    """Returns what calibration.json says of the checkpoint of `step`; None: nothing.

    Raises:
      UserError: the file is damaged.
    """
    path = pathlib.Path(workdir).expanduser() / CALIBRATION_FILE
    if not path.is_file():
        return None
    try:
        calibration = json.loads(path.read_text(encoding='utf-8'))
        if not 0 < calibration['temperature'] < math.inf:
            raise ValueError
        return calibration if calibration['step'] == step else None
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f'{str(path)!r} is damaged; delete it, or measure it again with  flaxcls evaluate '
            f'--calibrate --workdir={path.parent}'
        ) from None
