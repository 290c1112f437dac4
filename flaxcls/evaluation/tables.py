"""The scores of predictions, and their text: of one run, and of several beside one another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxcls.errors import UserError
from flaxcls.evaluation.mcnemar import mcnemar
from flaxcls.inference import scores
from flaxcls.inference.predictions import Predictions
from flaxcls.system.text import table
from flaxcls.system.translation import Message

_MOST_CLASSES, _MOST_CONFUSIONS = 40, 10


class Result(NamedTuple):
    """What a checkpoint has reached on the validation images.

    Attributes:
      step: training step of the checkpoint.
      count: how many images were evaluated.
      accuracy: share of right predictions.
      interval: of the accuracy, 95 %.
      top_k: k, and how often the label is among the k best.
      loss: cross-entropy, in nats.
      ece: expected calibration error, in 0..1; None: the predictions are not there.
    """

    step: int
    count: int
    accuracy: float
    interval: tuple[float, float]
    top_k: tuple[int, float]
    loss: float
    ece: float | None


def result_of(predictions: Predictions, top_k: int) -> Result:
    """Returns the result of predictions; k is at most the number of classes."""
    labels, logits = predictions.labels, predictions.logits
    k = min(top_k, logits.shape[1])
    return Result(
        step=predictions.step,
        count=len(labels),
        accuracy=predictions.accuracy,
        interval=scores.accuracy_interval(predictions.correct),
        top_k=(k, scores.top_k_accuracy(labels, logits, k)),
        loss=scores.log_loss(labels, logits),
        ece=scores.expected_calibration_error(labels, predictions.probabilities()),
    )


def summary(predictions: Predictions, top_k: int) -> str:
    """Returns a line each for accuracy, top-k accuracy, loss and calibration error."""
    result, classes = result_of(predictions, top_k), len(predictions.class_names)
    (low, high), (k, top_k_accuracy) = result.interval, result.top_k
    return (
        f'step {result.step}: {result.count} validation images of {classes} classes\n'
        f'accuracy {result.accuracy:.2%}, 95% interval {low:.2%} to {high:.2%}\n'
        f'top{k}_accuracy {top_k_accuracy:.2%}\n'
        f'loss {result.loss:.4f}\n'
        f'expected calibration error {result.ece:.2%} ({scores.BINS} bins)'
    )


def class_table(predictions: Predictions, most: int = _MOST_CLASSES) -> str:
    """Returns a line for each class that has images, those of the lowest F1 first.

    Args:
      predictions: to be scored.
      most: lines; what is left out is said.
    """
    names = predictions.class_names
    found = scores.class_scores(predictions.labels, predictions.predicted, len(names))
    present = np.nonzero(found.support)[0]
    order = present[np.argsort(found.f1[present], kind='stable')]
    rows = [('class', 'images', 'precision', 'recall', 'F1')]
    for index in order[:most]:
        shares = (of_classes[index] for of_classes in (found.precision, found.recall, found.f1))
        rows.append((names[index], found.support[index], *map('{:.2%}'.format, shares)))
    lines = table(rows, '<>>>>')
    if len(order) > most:
        lines.append(
            f'The other {len(order) - most} classes have an F1 of {found.f1[order[most]]:.2%} or '
            'more.'
        )
    if len(present) < len(names):
        lines.append(f'{len(names) - len(present)} of {len(names)} classes have no image.')
    return '\n'.join(lines)


def confusions(predictions: Predictions, most: int = _MOST_CONFUSIONS) -> str:
    """Returns a line for each of the most frequent confusions of one class with another."""
    names = predictions.class_names
    matrix = scores.confusion_matrix(predictions.labels, predictions.predicted, len(names))
    images = matrix.sum(1)
    np.fill_diagonal(matrix, 0)
    if not matrix.any():
        return 'Every prediction is right.'
    order = np.argsort(-matrix, axis=None, kind='stable')[:most]
    lines = ['most frequent confusions']
    for truth, predicted in zip(*np.unravel_index(order, matrix.shape), strict=True):
        count = matrix[truth, predicted]
        if count:
            lines.append(
                f'{count:>7}  {names[truth]} taken for {names[predicted]} '
                f'({count / images[truth]:.1%} of its {images[truth]})'
            )
    return '\n'.join(lines)


def comparison(runs: Sequence[tuple[str, Predictions]], top_k: int) -> str:
    """Returns a line for each run, and McNemar's test of each against the first.

    Args:
      runs: their names, and their predictions of the same examples in the same order.
      top_k: k, at most.

    Raises:
      UserError: the examples are not the same.
    """
    first_name, first = runs[0]
    for name, other in runs[1:]:
        require_same_examples(first_name, first, name, other)
    k = min(top_k, len(first.class_names))
    rows = [('run', 'step', 'accuracy', '95% interval', f'top-{k}', 'loss', 'ECE')]
    for name, run in runs:
        result = result_of(run, top_k)
        interval = '{:.2%}-{:.2%}'.format(*result.interval)
        shares = f'{result.accuracy:.2%}', interval, f'{result.top_k[1]:.2%}'
        rows.append((name, result.step, *shares, f'{result.loss:.4f}', f'{result.ece:.2%}'))
    lines = table(rows, '<>>>>>>')
    lines.append(f"against {first_name} on the same {len(first.labels)} images, McNemar's test:")
    for name, run in runs[1:]:
        test = mcnemar(first.correct, run.correct)
        lines.append(
            f'  {name} alone is right on {test.only_b}, {first_name} alone on {test.only_a}: '
            f'p = {test.p_value:.2g}'
        )
    return '\n'.join(lines)


def require_same_examples(name: str, one: Predictions, other_name: str, other: Predictions) -> None:
    """Raises UserError unless both are predictions of the same examples in the same order."""
    if one.class_names != other.class_names:
        reason = Message('their classes are others')
    elif len(one.names) != len(other.names):
        counts = {'count': len(one.names), 'other_count': len(other.names)}
        reason = Message('they are {count} and {other_count}', **counts)
    else:
        pairs = zip(one.names, one.labels, other.names, other.labels, strict=True)
        different = (i for i, (a, x, b, y) in enumerate(pairs) if (a, x) != (b, y))
        place = next(different, None)
        if place is None:
            return
        a, b = ((run.names[place], run.class_names[run.labels[place]]) for run in (one, other))
        reason = Message(
            'number {place} is {image!r} of {label!r}, and {other_image!r} of {other_label!r}',
            place=place,
            image=a[0],
            label=a[1],
            other_image=b[0],
            other_label=b[1],
        )
    raise UserError(
        Message(
            'the validation images of {run!r} and {other!r} are not the same in the same order '
            '({reason}); compare them on one set, with --config.data.source.',
            run=name,
            other=other_name,
            reason=reason,
        )
    )
