"""What each cell of a sweep costs, from the plan of one of its runs; nothing is compiled."""

import json
from collections.abc import Iterator, Mapping, Sequence

from flaxcls.config.files import load_config
from flaxcls.data.datasets import Dataset
from flaxcls.errors import UserError
from flaxcls.planning.estimate import create_plan, open_or_published
from flaxcls.sweeping.definition import Cell, SweepRun
from flaxcls.sweeping.results import Outcome, describe_state, remaining_seconds
from flaxcls.system.text import clock, table

Costs = Mapping[Cell, Mapping[str, float]]


def plan_cells(runs: Sequence[SweepRun]) -> Costs:
    """Returns {cell: {'steps', 'parameters', 'forward_flops', 'flops'}}.

    forward_flops are those of one image of training's size, flops those of a whole run with its
    evaluations.

    Raises:
      UserError: a run is impossible.
    """
    costs: dict[Cell, dict[str, float]] = {}
    datasets: dict[str, Dataset] = {}
    for run in runs:
        if run.cell not in costs:
            costs[run.cell] = _plan(run, datasets)
    return costs


def plan_or_note(runs: Sequence[SweepRun]) -> Costs:
    """Returns what `plan_cells` does, or, where the data is not here, {} with a note."""
    try:
        return plan_cells(runs)
    except UserError as error:
        print(f'Note: the costs are left out. {error}')
        return {}


def _plan(run: SweepRun, datasets: dict[str, Dataset]) -> dict[str, float]:
    """Returns the costs of a run; data sets that are opened are kept in `datasets`."""
    data = {key: value for key, value in run.options.items() if key.startswith('data.')}
    key = json.dumps([run.seed, data])
    config = load_config(run.experiment, run.overrides)
    try:
        if key not in datasets:
            datasets[key] = open_or_published(config)
        plan = create_plan(config, dataset=datasets[key])
    except UserError as error:
        raise UserError(f'at {run.cell}: {error}') from None
    return {
        'steps': plan.setup.total_steps,
        'parameters': plan.cost.parameters,
        'forward_flops': 2 * plan.cost.macs,
        'flops': plan.flops,
    }


def describe_runs(outcomes: Mapping[SweepRun, Outcome], costs: Costs) -> Iterator[str]:
    """Yields a line for each run, and what all cost and what is left of it."""
    rows = [('run', 'state', 'steps', 'parameters', 'FLOPs')]
    left = 0.0
    for run, outcome in outcomes.items():
        cost = costs[run.cell]
        if not outcome.finished:
            left += cost['flops'] * (1 - outcome.step / cost['steps'])
        numbers = f'{cost["steps"]:,}', f'{cost["parameters"]:,}', f'{cost["flops"]:.3g}'
        rows.append((run, describe_state(outcome), *numbers))
    yield from table(rows, '<<>>>')
    done = sum(outcome.finished for outcome in outcomes.values())
    total = sum(costs[run.cell]['flops'] for run in outcomes)
    steps = sum(costs[run.cell]['steps'] for run in outcomes)
    yield (
        f'{len(outcomes)} runs, {done} of them finished; {steps:,.0f} steps and {total:.3g} FLOPs '
        f'in all, of which {left:.3g} are left'
    )
    seconds = remaining_seconds(outcomes, costs)
    if left and seconds is not None:
        took = clock(seconds)
        yield f'{took} for what is left, one run at a time, as long as the finished ones took'
    elif left:
        yield 'How long they take is known when the first has finished.'
