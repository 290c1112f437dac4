"""What the runs of a sweep have reached, and what that says of its axes."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flaxcls.config.workdir import CHECKPOINTS_FOLDER, METRICS_FILE
from flaxcls.sweeping.definition import Cell, Sweep, SweepRun
from flaxcls.training.logging import read_metrics
from flaxcls.training.run_record import read_record

CONFIDENCE = 0.95


class Metric(NamedTuple):
    """A number that is compared.

    Attributes:
      key: in metrics.jsonl, and in the tables that are written.
      title: for people.
      share: whether it is one, and read in percent.
    """

    key: str
    title: str
    share: bool

    @property
    def label(self) -> str:
        """The title, with the unit of a share."""
        return f'{self.title}, %' if self.share else self.title

    def format(self, value: float, *, sign: bool = False) -> str:
        """Returns the number for people; a share in percent, without the sign for it."""
        form = '+z' if sign else 'z'  # What is rounded to zero has no minus.
        return f'{100 * value:{form}.2f}' if self.share else f'{value:{form}.4f}'


METRICS = (
    Metric('val/accuracy', 'validation accuracy', True),
    Metric('val/loss', 'validation loss', False),
    Metric('train/accuracy', 'training accuracy', True),
    Metric('train/loss', 'training loss', False),
)
ACCURACY, TRAIN_LOSS = METRICS[0], METRICS[3]
SHOWN = (ACCURACY, TRAIN_LOSS)  # To people; the tables that are written have all.


class Outcome(NamedTuple):
    """What a run has left.

    Attributes:
      step: of the last save; 0: nothing.
      total_steps: None: not known yet.
      values: {key of METRICS: number} of a finished run, otherwise {}: after the last step in
        validation, over the last epoch in training.
      seconds: of all its parts.
    """

    step: int
    total_steps: int | None
    values: Mapping[str, float]
    seconds: float | None

    @property
    def finished(self) -> bool:
        return bool(self.values)

    @property
    def lacks_metrics(self) -> bool:
        """Whether all steps are made, and metrics.jsonl does not have them."""
        return not self.values and self.step == self.total_steps


def describe_state(outcome: Outcome) -> str:
    """Returns finished, to do, at which step the run resumes, or what it lacks."""
    if outcome.finished:
        return 'finished'
    if outcome.lacks_metrics:
        return f'no {METRICS_FILE}'
    return f'resumes at {outcome.step:,}' if outcome.step else 'to do'


def read_outcomes(runs: Sequence[SweepRun]) -> dict[SweepRun, Outcome]:
    """Returns what each run has left."""
    return {run: read_outcome(run) for run in runs}


def read_outcome(run: SweepRun) -> Outcome:
    """Returns what the workdir of a run says."""
    record = read_record(run.workdir)
    if not record:
        return Outcome(0, None, {}, None)
    step, total, seconds = _saved_step(run, record['step']), record['total_steps'], None
    if not record['parts'][0]['from_step']:
        seconds = sum(part['seconds'] for part in record['parts'])
    values = {}
    if step >= total and record['val']:
        values = {m.key: record['val'][m.key] for m in METRICS if m.key in record['val']}
        values |= _last_epoch(run, total)
        if values.keys() != {metric.key for metric in METRICS}:
            values = {}  # See `Outcome.lacks_metrics`.
    return Outcome(step, total, values, seconds)


def _saved_step(run: SweepRun, step: int) -> int:
    """Returns the recorded step, or that of the newest checkpoint where its save has failed.

    Where somebody has removed all checkpoints, for room, the record is believed.
    """
    folder = run.workdir / CHECKPOINTS_FOLDER
    if not folder.is_dir() or (folder / str(step)).is_dir():
        return step
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)


def _last_epoch(run: SweepRun, total_steps: int) -> dict[str, float]:
    """Returns the means of training over the records that end within the last epoch."""
    begins = total_steps - total_steps // run.options['num_epochs']
    sums: dict[str, float] = {}
    before = weight = 0
    for record in read_metrics(run.workdir):
        if 'train/loss' not in record:
            continue
        steps, before = record['step'] - before, record['step']
        if record['step'] > begins:
            weight += steps
            for metric in METRICS:
                if metric.key.startswith('train/'):
                    sums[metric.key] = sums.get(metric.key, 0.0) + steps * record[metric.key]
    return {key: value / weight for key, value in sums.items()}


class Summary(NamedTuple):
    """Mean and sample standard deviation over seeds; None: too few for it."""

    count: int
    mean: float | None
    deviation: float | None


class Difference(NamedTuple):
    """Mean of a cell minus that of its base.

    Attributes:
      mean: the difference, in units of the metric.
      interval: with 95 % confidence; None: too few seeds, or no spread to judge by.
      paired: whether seeds were compared with the same seeds.
    """

    mean: float
    interval: tuple[float, float] | None
    paired: bool


class SweepRow(NamedTuple):
    """A line of the table.

    Attributes:
      cell: the level of each axis.
      base: whether it is what it would be compared with.
      summaries: {key of METRICS: Summary}.
      differences: {key: Difference}; None: there is nothing to compare, or with.
      cost: {'parameters', 'flops', 'steps'}, where known.
    """

    cell: Cell
    base: bool
    summaries: Mapping[str, Summary]
    differences: Mapping[str, Difference | None]
    cost: Mapping[str, float]


def summarize(values: Sequence[float]) -> Summary:
    """Returns the summary of the values of some seeds."""
    if not values:
        return Summary(0, None, None)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(len(values), statistics.fmean(values), deviation)


def compare(ours: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Returns the difference of two cells, {seed: value} each; None: one is empty.

    Where both have the same seeds these are paired (Student's t); otherwise Welch's t.
    """
    from scipy import stats  # noqa: PLC0415 - slow to import

    if not ours or not base:
        return None
    paired = ours.keys() == base.keys()
    a, b = ([values[seed] for seed in sorted(values)] for values in (ours, base))
    mean = statistics.fmean(a) - statistics.fmean(b)
    if min(len(a), len(b)) < 2:
        return Difference(mean, None, paired)
    if paired:
        spread = statistics.stdev([x - y for x, y in zip(a, b, strict=True)])
    else:
        spread = max(statistics.stdev(a), statistics.stdev(b))
    if spread < 1e-12:
        return Difference(mean, None, paired)
    test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return Difference(mean, (float(low), float(high)), paired)


def tabulate(
    sweep: Sweep, outcomes: Mapping[SweepRun, Outcome], costs: Mapping[Cell, Mapping[str, float]]
) -> list[SweepRow]:
    """Returns a row for each cell, in their order, of the runs that are finished."""
    reached: dict[Cell, dict[int, Mapping[str, float]]] = {cell: {} for cell in sweep.cells}
    for run, outcome in outcomes.items():
        if outcome.finished:
            reached[run.cell][run.seed] = outcome.values
    rows = []
    for cell, by_seed in reached.items():
        base = sweep.base_of(cell)
        summaries, changes = {}, {}
        for metric in METRICS:
            ours = {seed: values[metric.key] for seed, values in by_seed.items()}
            theirs = {seed: v[metric.key] for seed, v in reached.get(base, {}).items()}
            summaries[metric.key] = summarize(list(ours.values()))
            changes[metric.key] = None if cell == base else compare(ours, theirs)
        rows.append(SweepRow(cell, cell == base, summaries, changes, costs.get(cell, {})))
    return rows


def remaining_seconds(
    outcomes: Mapping[SweepRun, Outcome], costs: Mapping[Cell, Any]
) -> float | None:
    """Returns how long the unfinished runs would take, from the finished; None: too little known.

    A cell none of whose runs is finished is taken at the rate of the others, in FLOPs.
    """
    done = [(run, o.seconds) for run, o in outcomes.items() if o.finished and o.seconds]
    if not done:
        return None
    rate = sum(costs[run.cell]['flops'] for run, _ in done) / sum(s for _, s in done)
    total = 0.0
    for run, outcome in outcomes.items():
        if not outcome.finished:
            same = [seconds for other, seconds in done if other.cell == run.cell]
            whole = statistics.fmean(same) if same else costs[run.cell]['flops'] / rate
            left = 1 - outcome.step / outcome.total_steps if outcome.total_steps else 1
            total += whole * left
    return total if math.isfinite(total) else None
