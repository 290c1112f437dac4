"""The tables of the page: options, confusions, scores of each class, and two runs compared."""

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxcls.config.extensions import FOLDER, split
from flaxcls.config.option import as_flag
from flaxcls.config.options import OPTIONS
from flaxcls.errors import UserError
from flaxcls.evaluation.mcnemar import McNemar, mcnemar
from flaxcls.evaluation.tables import require_same_examples
from flaxcls.inference.predictions import Predictions
from flaxcls.inference.scores import class_scores, confusion_matrix
from flaxcls.reporting.runs import ReportedRun
from flaxcls.system.translation import Message

_IN_MATRIX, _PAIRS, _IN_CLASS_TABLE = 20, 12, 60


class ChosenOption(NamedTuple):
    """An option of a run.

    Attributes:
      key: dotted.
      value: in the config of the run.
      default: the option's value where it is not set.
    """

    key: str
    value: Any
    default: Any

    @property
    def chosen(self) -> bool:
        """Whether it is not the default, nor what the data and the network fill in."""
        return self.value != self.default and self.key != 'model.num_classes'


def list_options(run: ReportedRun) -> list[ChosenOption]:
    """Returns all options of a run."""
    defaults = {key: row.default for key, row in OPTIONS.items()}
    return [ChosenOption(key, value, defaults.get(key)) for key, value in run.options.items()]


def repeating_command(run: ReportedRun) -> str:
    """Returns a command for a shell that repeats the run in another workdir."""
    workdir = f'{run.workdir.rstrip("/")}-again'
    words = ['flaxcls', 'train', '--config=default', f'--workdir={workdir}']
    for option in list_options(run):
        if option.chosen:
            words.append(f'--config.{option.key}={as_flag(_as_given(run, option))}')
    begin, *rest = shlex.join(words[:2]), *map(shlex.quote, words[2:])
    return ' \\\n    '.join([begin, *rest])


def _as_given(run: ReportedRun, option: ChosenOption) -> Any:
    """Returns the value of an option; of extensions, the copies in the run."""
    if option.key != 'extensions':
        return option.value
    return ','.join(f'{run.workdir}/{FOLDER}/{label}' for label in split(option.value))


class DifferingOption(NamedTuple):
    """An option in which runs differ, with the value of each."""

    key: str
    values: Sequence[Any]


def differing_options(runs: Sequence[ReportedRun]) -> list[DifferingOption]:
    """Returns the options in which any two runs differ."""
    columns = [run.options for run in runs]
    rows = [DifferingOption(key, [column[key] for column in columns]) for key in columns[0]]
    return [row for row in rows if any(value != row.values[0] for value in row.values)]


class Comparison(NamedTuple):
    """What only the first run, or only another, has right; or a sentence why that is unknown."""

    test: McNemar | None
    why: str


def compare(first: ReportedRun, other: ReportedRun) -> Comparison:
    """Returns McNemar's test of two runs on the images that both were evaluated on."""
    ours, theirs = first.predictions, other.predictions
    for run in (first, other):
        if run.predictions is None:
            why = Message('There are no predictions of {workdir}.', workdir=run.workdir)
            return Comparison(None, why)
    try:
        require_same_examples(first.workdir, ours, other.workdir, theirs)
    except UserError as error:
        return Comparison(None, error.args[0])
    return Comparison(mcnemar(ours.correct, theirs.correct), '')


class TableCell(NamedTuple):
    """A number of the confusion matrix.

    Attributes:
      count: how many images it stands for.
      right: whether it lies on the diagonal.
      strength: of its colour, 0 to 1.
    """

    count: int
    right: bool
    strength: float


class Pair(NamedTuple):
    """How often images of one class are taken for another."""

    label: str
    prediction: str
    count: int
    of: int  # Images of the class.


class Confusions(NamedTuple):
    """The confusion matrix, or the part of it with the most mistakes.

    Attributes:
      names: of the rows and of the columns.
      rows: a TableCell for each label and prediction.
      left_out: number of classes that are not shown.
      pairs: what is taken for what, the most frequent first.
      more_pairs: number of those that are not listed.
    """

    names: list[str]
    rows: list[list[TableCell]]
    left_out: int
    pairs: list[Pair]
    more_pairs: int


def confusions(predictions: Predictions, names: Sequence[str]) -> Confusions:
    """Returns the confusion matrix for people; of over 20 classes, the 20 with most mistakes."""
    matrix = confusion_matrix(predictions.labels, predictions.predicted, len(names))
    support, wrong = matrix.sum(1), matrix.copy()
    np.fill_diagonal(wrong, 0)
    involved = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind='stable')[:_IN_MATRIX]
    shown, most = np.sort(involved), max(wrong.max(), 1)
    rows = [
        [
            TableCell(int(matrix[row, column]), row == column, _strength(matrix, row, column, most))
            for column in shown
        ]
        for row in shown
    ]
    places = np.argwhere(wrong)
    places = places[np.argsort(-wrong[tuple(places.T)], kind='stable')]
    pairs = [
        Pair(names[row], names[column], int(wrong[row, column]), int(support[row]))
        for row, column in places[:_PAIRS]
    ]
    left_out, more = len(names) - len(shown), len(places) - len(pairs)
    return Confusions([names[label] for label in shown], rows, left_out, pairs, more)


def _strength(matrix: np.ndarray, row: int, column: int, most: int) -> float:
    """Returns how strong a cell's colour is: of its row, or, of mistakes, of the most frequent."""
    count = matrix[row, column]
    return float(count / (max(matrix[row].sum(), 1) if row == column else most))


class ClassRow(NamedTuple):
    """The scores of a class; `taken_for` is its most frequent wrong prediction, or ''."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float
    taken_for: str


class ClassTable(NamedTuple):
    """Rows, and the number of classes that are left out."""

    rows: list[ClassRow]
    left_out: int


def class_table(predictions: Predictions, names: Sequence[str]) -> ClassTable:
    """Returns the scores of each class; of over 60 classes, of the 60 with the lowest F1."""
    labels, predicted = predictions.labels, predictions.predicted
    scores = class_scores(labels, predicted, len(names))
    wrong = confusion_matrix(labels, predicted, len(names))
    np.fill_diagonal(wrong, 0)
    shown = np.arange(len(names))
    if len(names) > _IN_CLASS_TABLE:
        absent = scores.support == 0  # Their F1 says nothing.
        shown = np.lexsort((scores.f1, absent))[:_IN_CLASS_TABLE]
    rows = [
        ClassRow(
            names[label],
            int(scores.support[label]),
            float(scores.precision[label]),
            float(scores.recall[label]),
            float(scores.f1[label]),
            names[wrong[label].argmax()] if wrong[label].any() else '',
        )
        for label in shown
    ]
    return ClassTable(rows, len(names) - len(rows))
