"""Writes the table for choosing a network, from the finished runs of the sweep `comparison`.

  flaxcls sweep --sweep=comparison --workdir=runs/comparison
  python -m benchmarks.comparison --workdir=runs/comparison --out=comparison.md

Of each network those runs count whose learning rate has the highest mean accuracy on the validation
images, so that the test images choose nothing. Sizes and times of one image are those of exports,
in onnxruntime on this machine; memory is that of the compiled training step.
"""

import pathlib
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flaxcls.config.files import load_config
from flaxcls.errors import UserError
from flaxcls.exporting.export import export
from flaxcls.models.registry import MODELS
from flaxcls.planning.estimate import compile_plan, create_plan
from flaxcls.sweeping.definition import SweepRun
from flaxcls.sweeping.expand import open_sweep
from flaxcls.sweeping.results import ACCURACY, CONFIDENCE, Outcome, read_outcomes
from flaxcls.system.cli import CommandParser, run_command
from flaxcls.system.files import require_place, write_atomically
from flaxcls.training.restore import evaluate_workdir

# Of each family the one that others are compared with, at the size of its paper.
PUBLISHED = ('alexnet', 'vgg16', 'resnet50', 'densenet121', 'mobilenet_v2')
_BYTES = 4  # Of a float32: a weight, and its gradient, which data-parallel training sums up.


class Row(NamedTuple):
    """What was measured of a network, at the learning rate that was chosen for it.

    Attributes:
      network, rate: levels of the sweep's axes.
      accuracies: on the test images, of each seed.
      parameters, macs: of the network; multiply-adds of an image.
      float_bytes, int8_bytes: of the ONNX files of the first seed.
      float_ms, int8_ms: median time of one image by itself, in onnxruntime.
      agreement: share of predictions that int8 leaves as they are.
      memory: bytes that a training step needs.
      seconds: mean of a run, compilation and evaluation included.
    """

    network: str
    rate: str
    accuracies: Sequence[float]
    parameters: int
    macs: int
    float_bytes: int
    int8_bytes: int
    float_ms: float
    int8_ms: float
    agreement: float
    memory: int
    seconds: float


def choose_rates(outcomes: dict[SweepRun, Outcome]) -> dict[str, list[SweepRun]]:
    """Returns the runs of each network at its best rate, by mean validation accuracy.

    Raises:
      UserError: a run is not finished.
    """
    reached: dict[str, dict[str, list[SweepRun]]] = {}
    for run, outcome in outcomes.items():
        if not outcome.finished:
            raise UserError(f'{run} is not finished; let flaxcls sweep resume it.')
        levels = dict(run.cell.levels)
        reached.setdefault(levels['network'], {}).setdefault(levels['rate'], []).append(run)

    def mean_accuracy(runs: list[SweepRun]) -> float:
        return statistics.fmean(outcomes[run].values[ACCURACY.key] for run in runs)

    return {network: max(rates.values(), key=mean_accuracy) for network, rates in reached.items()}


def measure(runs: Sequence[SweepRun], outcomes: dict[SweepRun, Outcome]) -> Row:
    """Returns what is said of a network, by its runs at the chosen rate."""
    first = runs[0]
    plan = compile_plan(create_plan(load_config(first.experiment, first.overrides)))
    test = {'data.val_split': 'test'}
    accuracies = [evaluate_workdir(run.workdir, overrides=test)['val/accuracy'] for run in runs]
    with tempfile.TemporaryDirectory() as folder:
        exact = export(first.workdir, 'onnx', f'{folder}/onnx')
        # Whatever it keeps is reported, not required.
        int8 = export(first.workdir, 'onnx-int8', f'{folder}/int8', min_agreement=0.0)
    return Row(
        **dict(first.cell.levels),
        accuracies=accuracies,
        parameters=plan.cost.parameters,
        macs=plan.cost.macs,
        float_bytes=exact.bytes,
        int8_bytes=int8.bytes,
        float_ms=exact.milliseconds,
        int8_ms=int8.milliseconds,
        agreement=int8.agreement,
        memory=plan.resources.memory.total,
        seconds=statistics.fmean(outcomes[run].seconds for run in runs),
    )


def half_interval(values: Sequence[float]) -> float | None:
    """Returns half the width of the mean's confidence interval (Student's t); None: of one value.

    Equal values have an interval of no width.
    """
    from scipy import stats

    if len(values) < 2:
        return None
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * statistics.stdev(values) / len(values) ** 0.5)


def measured_table(rows: Iterable[Row]) -> str:
    """Returns the table of the trained networks, in Markdown."""
    titles = (
        'network', 'learning rate', 'test accuracy, %', 'parameters', 'multiply-adds, M',
        'float32, MB', 'int8, MB', 'same predictions in int8, %', 'one image, ms',
        'one image in int8, ms', 'memory in training, MB', 'training, s', 'all-reduced a step, MB',
    )  # fmt: skip
    return _markdown(titles, map(_cells, rows), names=1)


def _cells(row: Row) -> list[str]:
    accuracy, half = f'{100 * statistics.fmean(row.accuracies):.2f}', half_interval(row.accuracies)
    return [
        row.network,
        row.rate,
        accuracy if half is None else f'{accuracy} ± {100 * half:.2f}',
        f'{row.parameters:,}',
        f'{row.macs / 1e6:.3g}',
        f'{row.float_bytes / 1e6:.3f}',
        f'{row.int8_bytes / 1e6:.3f}',
        f'{100 * row.agreement:.1f}',
        f'{row.float_ms:.2f}',
        f'{row.int8_ms:.2f}',
        f'{row.memory / 1e6:.3g}',
        f'{row.seconds:.0f}',
        f'{_BYTES * row.parameters / 1e6:.2f}',
    ]


def published_table() -> str:
    """Returns the same networks at their papers' sizes, which follow from their rows of MODELS."""
    titles = ('network', 'parameters', 'multiply-adds, M', 'float32 and all-reduced a step, MB')
    rows = [(name, MODELS[name]) for name in PUBLISHED]
    cells = [
        [
            f'`{name}`',
            f'{row.parameters:,}',
            f'{1000 * row.gmacs:,.0f}',
            f'{_BYTES * row.parameters / 1e6:.0f}',
        ]
        for name, row in rows
    ]
    return _markdown(titles, cells, names=1)


def _markdown(titles: Sequence[str], rows: Iterable[Sequence[str]], names: int) -> str:
    rule = ['---'] * names + ['---:'] * (len(titles) - names)
    return '\n'.join(f'| {" | ".join(line)} |' for line in (titles, rule, *rows))


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('python -m benchmarks.comparison', __doc__)
    parser.add_argument('--sweep', default='comparison', help='its name, or a file (comparison)')
    parser.add_argument('--workdir', help='of the sweep; default: as flaxcls sweep has it')
    parser.add_argument('--out', help='file for the tables; default: they are printed alone')
    flags = parser.parse_args(argv)
    out: pathlib.Path | None = require_place(flags.out) if flags.out else None
    _, runs, _ = open_sweep(flags.sweep, flags.workdir)
    outcomes = read_outcomes(runs)
    rows = []
    for network, chosen in choose_rates(outcomes).items():
        print(f'{network}: {len(chosen)} runs at {chosen[0].cell}', flush=True)
        rows.append(measure(chosen, outcomes))
    text = f'{measured_table(rows)}\n\n{published_table()}\n'
    print(f'\n{text}', end='')
    if out:
        write_atomically(out, text)
        print(f'wrote {flags.out}')


if __name__ == '__main__':
    run_command(main)
