"""The table for choosing a network: which runs count, and what its numbers are."""

import collections
import pathlib

import pytest
from scipy import stats

from benchmarks import comparison
from flaxcls.errors import UserError
from flaxcls.models.registry import MODELS
from flaxcls.sweeping import expand
from flaxcls.sweeping.results import ACCURACY, Outcome

SWEEP = 'experiments/sweeps/comparison.py'


@pytest.fixture(scope='module')
def sweep_and_runs(extensions_unloaded):
    sweep = expand.load_sweep(SWEEP)
    return sweep, expand.expand(sweep, pathlib.Path('runs'))


def _outcomes(runs, accuracy_of):
    values = {run: accuracy_of(dict(run.cell.levels), run.seed) for run in runs}
    return {run: Outcome(1, 1, {ACCURACY.key: value}, 1.0) for run, value in values.items()}


def test_the_rate_with_the_best_mean_counts_and_not_the_best_run(sweep_and_runs):
    sweep, runs = sweep_and_runs
    first, second, third = sweep.axes['rate']
    # By the mean over the seeds: 0.70, 0.80 and 0.75; the single best run has the third rate.
    reached = {first: (0.7, 0.7, 0.7), second: (0.8, 0.8, 0.8), third: (0.99, 0.63, 0.63)}
    chosen = comparison.choose_rates(
        _outcomes(runs, lambda levels, seed: reached[levels['rate']][seed])
    )
    assert list(chosen) == list(sweep.axes['network'])
    for network, own in chosen.items():
        assert {dict(run.cell.levels)['rate'] for run in own} == {second}
        assert {dict(run.cell.levels)['network'] for run in own} == {network}
        assert [run.seed for run in own] == sweep.seed_list


def test_an_unfinished_run_is_named(sweep_and_runs):
    _, runs = sweep_and_runs
    outcomes = _outcomes(runs, lambda *_: 0.5)
    outcomes[runs[-1]] = Outcome(0, None, {}, None)
    with pytest.raises(UserError, match='seed 2 is not finished; let flaxcls sweep'):
        comparison.choose_rates(outcomes)


def test_every_network_has_the_same_budget(sweep_and_runs):
    """The same images, epochs, augmentation and rates; only the network and its pixels differ."""
    _, runs = sweep_and_runs
    own = ('model.', 'extensions', 'data.image_size', 'augment.pad')
    shared = collections.defaultdict(set)
    for run in runs:
        common = {k: v for k, v in run.options.items() if not k.startswith(own)}
        shared[run.seed, dict(run.cell.levels)['rate']].add(str(sorted(common.items())))
    assert all(len(kinds) == 1 for kinds in shared.values())
    # The same shifts, as a share of the side.
    assert len({run.options['augment.pad'] / run.options['data.image_size'] for run in runs}) == 1


def test_intervals_are_those_of_a_t_test():
    values = [0.81, 0.84, 0.86]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert comparison.half_interval(values) == pytest.approx((high - low) / 2)
    assert comparison.half_interval(values[:1]) is None
    assert comparison.half_interval([0.8] * 3) == 0


def test_the_readme_has_the_table_of_the_papers_networks():
    assert comparison.published_table() in pathlib.Path('README.md').read_text(encoding='utf-8')


def test_gradients_of_the_papers_networks_are_four_bytes_a_parameter():
    lines = comparison.published_table().splitlines()
    megabytes = {line.split('`')[1]: line.split('|')[-2].strip() for line in lines[2:]}
    assert list(megabytes) == list(comparison.PUBLISHED)
    assert (megabytes['alexnet'], megabytes['densenet121']) == ('244', '32')
    for name, text in megabytes.items():
        assert abs(float(text) - 4 * MODELS[name].parameters / 1e6) <= 0.5
