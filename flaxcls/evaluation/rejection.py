"""Predictions that are withheld: what is left of the errors, and what each decision costs.

A network that hands its least sure images to a person makes fewer mistakes on the others: the
*risk* is the error of what it decides itself, the *coverage* its share of all images (El-Yaniv and
Wiener, JMLR 11, 2010). Where errors differ in what they cost, the decision is the one of the lowest
expected cost, and to withhold it is one of them (Chow, IEEE Trans. Inf. Theory 16, 1970).
"""

import csv
import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxcls.errors import UserError
from flaxcls.inference.predictions import Predictions
from flaxcls.inference.scores import accuracy_interval
from flaxcls.system.text import did_you_mean, table

COVERAGES = (1.0, 0.99, 0.95, 0.9, 0.8, 0.7, 0.5)
REJECT = 'reject'  # The column of what it costs to withhold a prediction.


class Kept(NamedTuple):
    """What is left where the least sure predictions are withheld.

    Attributes:
      min_probability: of the predictions that are kept.
      coverage: their share.
      accuracy: of these.
      interval: of that accuracy, 95 %.
    """

    min_probability: float
    coverage: float
    accuracy: float
    interval: tuple[float, float]


class Costs(NamedTuple):
    """What decisions cost.

    Attributes:
      errors: float64 [C, C], of predicting the class of a column for one of the class of a row.
      reject: float64 [C], of withholding the prediction for one of each class.
    """

    errors: np.ndarray
    reject: np.ndarray


class Decisions(NamedTuple):
    """Decisions for N images, and their mean cost.

    Attributes:
      chosen: int [N], a class, or C where the prediction is withheld.
      cost: mean over the images.
      rejected: share that is withheld.
      errors: share of all images that got a wrong class.
    """

    chosen: np.ndarray
    cost: float
    rejected: float
    errors: float


def risk_and_coverage(
    predictions: Predictions, temperature: float = 1.0, coverages: Sequence[float] = COVERAGES
) -> list[Kept]:
    """Returns what is kept at each coverage, the most probable predictions first.

    Images as probable as the last one that is kept are kept too, so a coverage can be larger than
    was asked for, and equal ones are one row.
    """
    confidence = predictions.probabilities(temperature).max(1)
    order = np.sort(confidence)[::-1]
    lowest = [order[max(0, round(share * len(order)) - 1)] for share in coverages]
    # Rounded down, as it is printed: rounded up to 1, it would withhold everything.
    thresholds = [math.floor(value * 1e6) / 1e6 for value in lowest]
    rows = []
    for threshold in dict.fromkeys(thresholds):
        kept = confidence >= threshold
        correct = predictions.correct[kept]
        interval = accuracy_interval(correct)
        rows.append(Kept(float(threshold), float(kept.mean()), float(correct.mean()), interval))
    return rows


def read_costs(path: str | os.PathLike, class_names: Sequence[str]) -> Costs:
    """Returns the costs in a CSV file: a row for each true class, a column for each prediction.

    The first column is `class`, the last may be `reject`: without it nothing is ever withheld.

    Raises:
      UserError: the file cannot be read, its classes are not those of the run, or what is in a cell
        is no number of at least 0.
    """
    path = pathlib.Path(path).expanduser()
    try:
        with path.open(encoding='utf-8-sig', newline='') as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'--costs={path} cannot be read ({error}).') from None
    header, *rows = rows or [[]]
    columns = [*class_names, REJECT]
    if header[:1] != ['class'] or not rows:
        raise UserError(f'--costs={path} must begin with a line class,{",".join(columns)}.')
    _require_names(path, 'column', header[1:], class_names, optional=(REJECT,))
    _require_names(path, 'row', [row[0] for row in rows], class_names)
    cells = {(row[0], name): cell for row in rows for name, cell in zip(header, row, strict=False)}
    values = np.full((len(class_names), len(columns)), np.inf)
    for i, label in enumerate(class_names):
        for j, column in enumerate(columns):
            if column in header:
                values[i, j] = _number(path, label, column, cells.get((label, column), ''))
    return Costs(values[:, :-1], values[:, -1])


def _require_names(
    path: pathlib.Path,
    what: str,
    found: Sequence[str],
    class_names: Sequence[str],
    optional: Sequence[str] = (),
) -> None:
    for name in found:
        if name not in (*class_names, *optional):
            remedy = did_you_mean(name, list(class_names))
            raise UserError(f'--costs={path} has a {what} {name!r}, which is no class{remedy}.')
        if list(found).count(name) > 1:
            raise UserError(f'--costs={path} has the {what} {name!r} more than once.')
    missing = [name for name in class_names if name not in found]
    if missing:
        raise UserError(f'--costs={path} has no {what} for {missing[0]!r}; each class needs one.')


def _number(path: pathlib.Path, label: str, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value < np.inf:
        raise UserError(
            f'--costs={path} has {cell!r} for {column!r} where it is {label!r}; give a number of 0 '
            'or more.'
        )
    return value


def decide(probabilities: np.ndarray, labels: np.ndarray, costs: Costs) -> Decisions:
    """Returns the decisions of the lowest expected cost, and what they cost.

    Args:
      probabilities: float64 [N, C], calibrated: an expectation over them is taken at its word.
      labels: int [N].
      costs: of the C classes.
    """
    everything = np.column_stack([costs.errors, costs.reject])
    # Withholding that costs infinitely much has no expectation; it is never chosen.
    expected = probabilities @ np.where(np.isfinite(everything), everything, 0)
    expected[:, ~np.isfinite(everything).all(0)] = np.inf
    return _outcome(expected.argmin(1), labels, costs)


def always_decide(predicted: np.ndarray, labels: np.ndarray, costs: Costs) -> Decisions:
    """Returns what it costs to take the most probable class each time."""
    return _outcome(predicted, labels, costs)


def _outcome(chosen: np.ndarray, labels: np.ndarray, costs: Costs) -> Decisions:
    everything = np.column_stack([costs.errors, costs.reject])
    rejected = chosen == costs.errors.shape[1]
    return Decisions(
        chosen,
        cost=float(everything[labels, chosen].mean()),
        rejected=float(rejected.mean()),
        errors=float((~rejected & (chosen != labels)).mean()),
    )


def describe_coverage(rows: Sequence[Kept]) -> str:
    """Returns a table of what is kept, for a terminal."""
    cells = [('coverage', 'accuracy', '95% interval', '--min_probability')]
    for row in rows:
        low, high = row.interval
        cells.append((
            f'{row.coverage:.1%}', f'{row.accuracy:.2%}', f'{low:.2%} to {high:.2%}',
            f'{row.min_probability:.6f}',
        ))  # fmt: skip
    return '\n'.join(table(cells, '>>>>'))


def describe_costs(predictions: Predictions, costs: Costs, temperature: float = 1.0) -> str:
    """Returns a table of what three ways to decide cost: always, by cost, and with withholding."""
    probabilities, labels = predictions.probabilities(temperature), predictions.labels
    never = Costs(costs.errors, np.full_like(costs.reject, np.inf))
    ways = {
        'the most probable class': always_decide(predictions.predicted, labels, costs),
        'the class of the lowest expected cost': decide(probabilities, labels, never),
    }
    if np.isfinite(costs.reject).all():
        ways['the same, or withheld'] = decide(probabilities, labels, costs)
    cells = [('decision', 'cost per image', 'withheld', 'wrong')]
    for name, found in ways.items():
        cells.append((name, f'{found.cost:.4f}', f'{found.rejected:.1%}', f'{found.errors:.2%}'))
    return '\n'.join(table(cells, '<>>>'))
