"""Evaluation of runs: the predictions of each, kept in its workdir, and the temperature."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flaxcls.config.options import keys_of
from flaxcls.config.workdir import require_different
from flaxcls.evaluation import rejection, tables
from flaxcls.inference.calibration import (
    Calibration,
    calibrate,
    load_temperature,
    save_calibration,
)
from flaxcls.inference.predictions import (
    PREDICTIONS_FILE,
    Predictions,
    predict_validation,
    save_predictions,
)
from flaxcls.training.restore import Restored, changed_options, load_run


class EvaluatedRun(NamedTuple):
    """A run, and its predictions for the validation images.

    Attributes:
      workdir: path of the directory that the run was trained in.
      source: of the data, with the overrides.
      top_k: of the run's metric.
      changed: overridden options for which the logits are others than the run's own.
      predictions: logits and labels of every validation image.
      restored: the run itself, which is open.
    """

    workdir: str
    source: str
    top_k: int
    changed: set[str]
    predictions: Predictions
    restored: Restored

    @property
    def temperature(self) -> float:
        """That of the probabilities which `Classifier.load` gives."""
        if self.changed - keys_of('selects_images'):
            return 1.0
        return load_temperature(self.workdir, self.predictions.step)


def evaluate_runs(
    workdirs: Sequence[str | os.PathLike],
    *,
    checkpoint: str = 'newest',
    overrides: Mapping[str, Any] | None = None,
) -> list[EvaluatedRun]:
    """Returns the predictions of each run, for its validation images.

    Args:
      workdirs: one for each run.
      checkpoint: of each: newest, best, or a step.
      overrides: of each run's config, such as another `data.source`.

    Raises:
      UserError: there is no such run or checkpoint, or an override does not fit.
    """
    workdirs = [os.path.expanduser(workdir) for workdir in workdirs]
    require_different(workdirs)
    # Mistakes are reported before anything is computed.
    changed = [changed_options(workdir, overrides or {}, images_too=True) for workdir in workdirs]
    runs = []
    for workdir, options in zip(workdirs, changed, strict=True):
        run = load_run(workdir, checkpoint=checkpoint, overrides=overrides)
        predictions = predict_validation(run)
        source, top_k = run.setup.source, run.setup.top_k
        runs.append(EvaluatedRun(workdir, source, top_k, options, predictions, run))
    return runs


def describe_runs(runs: Sequence[EvaluatedRun]) -> str:
    """Returns the scores of one run, or several runs beside one another."""
    first, top_k = runs[0].predictions, runs[0].top_k
    if len(runs) > 1:
        return tables.comparison([(run.workdir, run.predictions) for run in runs], top_k)
    parts = tables.summary(first, top_k), tables.class_table(first), tables.confusions(first)
    return '\n\n'.join(parts)


def keep_predictions(run: EvaluatedRun) -> str:
    """Writes WORKDIR/predictions.npz if these are the run's own; returns what was done."""
    path = pathlib.Path(run.workdir) / PREDICTIONS_FILE
    if run.changed:
        options = ', '.join(f'config.{key}' for key in sorted(run.changed))
        return f"{path} is not written, since {options} is not the run's own."
    return f'wrote {save_predictions(run.predictions, run.workdir)}'


def calibrate_run(run: EvaluatedRun) -> tuple[Calibration, pathlib.Path | None]:
    """Fits a temperature, and writes it for `Classifier.load`.

    Returns:
      The calibration, and its file; None where the probabilities are better as they are, for which
      nothing is written.

    Raises:
      UserError: there are too few images.
    """
    found = calibrate(run.predictions)
    if found.loss_after > found.loss_before:
        return found, None
    return found, save_calibration(found, run.workdir, source=run.source)


def describe_decisions(
    run: EvaluatedRun, *, coverage: bool = False, costs: str | os.PathLike | None = None
) -> str:
    """Returns tables of accuracy over coverage, and of what decisions cost, see `rejection`.

    Raises:
      UserError: the file of costs is not one for the classes of the run.
    """
    parts, temperature = [], run.temperature
    if temperature == 1.0:
        parts.append('Note: the probabilities are not calibrated; --calibrate fits a temperature.')
    if coverage:
        rows = rejection.risk_and_coverage(run.predictions, temperature)
        parts.append(rejection.describe_coverage(rows))
    if costs is not None:
        read = rejection.read_costs(costs, run.predictions.class_names)
        parts.append(rejection.describe_costs(run.predictions, read, temperature))
    return '\n\n'.join(parts)
