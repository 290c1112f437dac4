"""What a workdir says about its run, be it finished, still running, or without its data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxcls.config.config_dict import flatten
from flaxcls.config.workdir import load_class_names, load_stored_config
from flaxcls.errors import RunError, UserError
from flaxcls.evaluation.tables import Result, result_of
from flaxcls.inference.calibration import load_calibration
from flaxcls.inference.classifier import Classifier
from flaxcls.inference.predictions import Predictions, load_predictions, predict_validation
from flaxcls.inference.scores import accuracy_interval
from flaxcls.models.summary import Cost, Layer, count_cost, list_layers
from flaxcls.system.translation import Message
from flaxcls.training.from_config import create_network
from flaxcls.training.logging import Record, read_metrics
from flaxcls.training.restore import open_run, restore_run
from flaxcls.training.run_record import read_record
from flaxcls.training.setup import Setup


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """A run as its workdir has it; what is None is not there, and a sentence of `why` says why.

    Attributes:
      workdir: as it was given.
      options: all, by dotted key.
      history: the records of metrics.jsonl.
      record: of record.json; {}: there is none yet.
      class_names: in the order of the logits.
      cost: of an image of evaluation's size.
      layers: as `list_layers` has them.
      setup: what it was made of, with its data.
      predictions: of the newest checkpoint.
      classifier: of the same, for the central crop.
      calibration: of calibration.json, if it belongs to the newest checkpoint.
      why: {'data', 'predictions': sentence}.
    """

    workdir: str
    options: Mapping[str, Any]
    history: Sequence[Record]
    record: Mapping[str, Any]
    class_names: Sequence[str]
    cost: Cost
    layers: Sequence[Layer]
    setup: Setup | None
    predictions: Predictions | None
    classifier: Classifier | None
    calibration: Mapping[str, Any] | None
    why: Mapping[str, str]

    @property
    def model_name(self) -> str:
        return self.options['model.name']

    @property
    def source(self) -> str:
        return self.options['data.source']

    @property
    def image_size(self) -> int:
        return self.options['data.image_size']

    @property
    def num_epochs(self) -> int:
        return self.options['num_epochs']

    @property
    def evaluations(self) -> list[Record]:
        return [record for record in self.history if 'val/accuracy' in record]

    @property
    def best(self) -> Record | None:
        """The evaluation with the highest accuracy, the later one of equals."""
        rank = lambda record: (record['val/accuracy'], record['step'])  # noqa: E731
        return max(self.evaluations, key=rank, default=None)

    @property
    def step(self) -> int:
        """The last that anything is known of."""
        known = [self.record.get('step', 0), *(record['step'] for record in self.history[-1:])]
        return max([*known, self.predictions.step if self.predictions else 0])

    @property
    def total_steps(self) -> int | None:
        """None: neither a record nor the data says."""
        return self.setup.total_steps if self.setup else self.record.get('total_steps')

    @property
    def finished(self) -> bool:
        return self.total_steps is not None and self.record.get('step', 0) >= self.total_steps

    @property
    def epoch(self) -> float | None:
        total = self.total_steps
        return self.step / total * self.num_epochs if total else None

    @property
    def result(self) -> Result | None:
        """None: nothing has been evaluated, and nothing can be."""
        if self.predictions is not None:
            return result_of(self.predictions, self.options['top_k'])
        return _result_in(self.evaluations[-1]) if self.evaluations else None


def load_reported_run(workdir: str, earlier: ReportedRun | None = None) -> ReportedRun:
    """Returns what is known of the run in `workdir`.

    Args:
      workdir: path of the directory that the run was trained in.
      earlier: what was known before; predictions of the same checkpoint are taken from there.

    Raises:
      UserError: no run has been started there, or its config or class names cannot be read.
    """
    config = load_stored_config(workdir)
    model, side = create_network(config), config.data.image_size
    names = load_class_names(workdir) or list(map(str, range(config.model.num_classes)))
    why: dict[str, str] = {}
    setup = _attempt(lambda: open_run(workdir), why, 'data')
    classifier = _attempt(lambda: Classifier.load(workdir, crops='center'), why, 'predictions')
    predictions = None
    if classifier is not None:
        predictions = _same_step(earlier, classifier.step) or _attempt(
            lambda: _predict(workdir, setup, classifier.step), why, 'predictions'
        )
    if predictions is None and setup is None:
        why['predictions'] = why['data']
    return ReportedRun(
        workdir=workdir,
        options=dict(flatten(config)),
        history=read_metrics(workdir),
        record=read_record(workdir),
        class_names=names,
        cost=count_cost(model, side),
        layers=list_layers(model, side),
        setup=setup,
        predictions=predictions,
        classifier=classifier,
        calibration=load_calibration(workdir, classifier.step) if classifier else None,
        why=why,
    )


def _attempt(get: Callable[[], Any], why: dict[str, str], what: str) -> Any:
    try:
        return get()
    except (UserError, RunError) as error:
        why[what] = error.args[0]  # A Message stays one.
        return None


def _same_step(earlier: ReportedRun | None, step: int) -> Predictions | None:
    known = earlier.predictions if earlier else None
    return known if known and known.step == step else None


def _predict(workdir: str, setup: Setup | None, step: int) -> Predictions:
    """Returns the predictions of a checkpoint; where the data is gone, those kept with the run."""
    if setup is not None:
        return predict_validation(restore_run(setup, workdir, checkpoint=str(step)))
    kept = load_predictions(workdir)
    if kept.step != step:
        raise UserError(
            Message(
                'the predictions in {workdir!r} are of step {kept}, and the newest checkpoint of '
                'step {newest}.',
                workdir=workdir,
                kept=kept.step,
                newest=step,
            )
        )
    return kept


def _result_in(record: Record) -> Result:
    name = next(name for name in record if name.startswith('val/top'))
    count = record['val/count']
    correct = np.arange(count) < round(record['val/accuracy'] * count)
    return Result(
        step=record['step'],
        count=count,
        accuracy=record['val/accuracy'],
        interval=accuracy_interval(correct),
        top_k=(int(name.removeprefix('val/top').removesuffix('_accuracy')), record[name]),
        loss=record['val/loss'],
        ece=None,
    )
