"""What is timed is what a run does, and numbers are put together rightly; no time is asserted."""

import json
import math
from types import SimpleNamespace

import jax
import pytest

import flaxcls
from flaxcls.commands import benchmark
from flaxcls.config.files import load_config
from flaxcls.errors import UserError
from flaxcls.models.summary import count_cost
from flaxcls.planning import hardware, timing
from flaxcls.planning.results import BenchmarkResults, Compilation, Rate, describe_results
from flaxcls.training.checkpoints import fingerprint
from flaxcls.training.setup import build_setup
from tests.helpers.configs import TINY

TINY_FLAGS = [f'--config.{key}={value}' for key, value in TINY.items()]
CHIP = hardware.CHIPS['gpu:h100']


@pytest.fixture(scope='module')
def measured():
    return timing.benchmark(load_config(None, TINY), steps=3, rounds=3)


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_number_is_finite_and_positive(measured):
    values = measured.to_json()
    assert 0 <= values.pop('data_wait_fraction') <= 1
    numbers = _numbers(values)
    assert len(numbers) > 30
    assert all(math.isfinite(number) and number > 0 for number in numbers)


def test_facts_of_the_run_are_its_own(measured):
    setup = build_setup(load_config(None, TINY))
    cost = count_cost(setup.model, 8)
    assert (measured.train_flops, measured.eval_flops) == (6 * cost.macs, 2 * cost.macs)
    assert measured.about['devices'] == setup.layout.devices == 2
    assert measured.about['source'] == 'digits'
    assert measured.mfu is measured.peak_flops is None
    assert (measured.steps, len(measured.step.rounds)) == (3, 3)


def test_the_loop_that_is_timed_takes_the_steps_of_the_run(tmp_path):
    config = load_config(None, TINY | {'num_epochs': 1})
    trained, _ = flaxcls.train_and_evaluate(config, tmp_path)
    setup = build_setup(config)
    state = setup.init_state()
    programs = timing.compile_programs(setup, state)
    timed = 18
    assert timed + timing.untimed_steps(timed) == setup.total_steps == 22
    state, round_ = timing.time_loop(programs, state, timed)
    assert fingerprint(state) == fingerprint(trained)
    assert 0 < round_.waited < round_.seconds
    state, _ = timing.time_loop(programs, state, 1)
    assert int(state.step) == 22 + 3  # Past the end of the run, which has no more batches.


@pytest.mark.parametrize('mode', ['jit', 'pmap'])
def test_every_layout_and_ten_crops_can_be_measured(mode):
    options = {'parallel.mode': mode, 'parallel.accumulation_steps': 2, 'data.eval_crops': 'ten'}
    options |= {'data.eval_crop_fraction': 0.8, 'batch_norm.group_size': 16}
    found = timing.benchmark(load_config(None, TINY | options), steps=1, rounds=2)
    assert found.eval_flops == 10 * found.train_flops / 3
    assert '\n'.join(describe_results(found)).count('\n') > 9


def _fake(**values):
    """Returns results of 100 images/s in the step and 90 in the loop, on two fake H100."""
    about = {'model': 'm', 'dtype': 'bfloat16', 'image_size': 8, 'source': 's', 'devices': 2,
             'device_kind': 'NVIDIA H100 80GB HBM3', 'host': 'h', 'versions': {'jax': '1'},
             'commit': None, 'date': 'd', 'notes': ['n']}  # fmt: skip
    compilation = Compilation(1.0, 2.0, from_cache=None)
    found = BenchmarkResults(
        about, 50, 1.0, compilation, compilation, 7,
        step=Rate((100.0, 80.0, 160.0)), loop=Rate((60.0, 90.0, 100.0)), forward=Rate((1.0, 2.0)),
        data_wait_fraction=0.25, train_flops=3e9, eval_flops=1e9, peak_flops=2 * CHIP.flops,
        peak_memory=2**30, step_memory=2**29,
    )  # fmt: skip
    return found._replace(**values)


def test_ratios_are_of_medians():
    found = _fake()
    assert found.step.median == 100
    assert found.loop_to_step == 0.9
    assert found.step_seconds == 0.5
    assert found.mfu == 3e9 * 100 / (2 * CHIP.flops)
    low, high = found.loop_to_step_middle_half
    assert low <= 0.625 <= high  # The ratio within the last round, the middle one.
    text = '\n'.join(describe_results(found))
    for words in ('0.900 x step', '500.00 ms a step', '25.0% waiting', '7 steps', 'no persistent'):
        assert words in text


def test_mfu_names_the_peak_that_it_is_of():
    line = lambda **values: next(  # noqa: E731
        line for line in describe_results(_fake(**values)) if line.startswith('MFU')
    )
    assert line().endswith("of the devices' 1,978 T/s in bfloat16")
    about = _fake().about | {'dtype': 'float32'}
    assert line(about=about).endswith('in bfloat16, and this computes in float32')
    assert 'not known' in line(peak_flops=None)


def test_devices_are_known_by_the_names_that_jax_gives_them():
    assert hardware.chip_of('NVIDIA H100 80GB HBM3') == CHIP
    assert hardware.chip_of('TPU v5 lite') == hardware.CHIPS['tpu:v5e']
    assert hardware.chip_of('NVIDIA A100-SXM4-80GB').flops == 312e12
    assert hardware.chip_of('cpu') is None


def test_memory_is_the_fullest_devices_where_devices_report_it():
    devices = [SimpleNamespace(memory_stats=lambda n=n: {'peak_bytes_in_use': n}) for n in (5, 7)]
    assert timing.peak_memory(devices) == 7
    assert timing.peak_memory([SimpleNamespace(memory_stats=lambda: None)]) > 2**20


def test_rounds_are_short_and_many_unless_steps_take_long():
    for seconds in (1e-4, 1e-2, 1.0, 100.0):
        steps, rounds = timing.choose_rounds(seconds, None, None)
        assert steps >= 4
        assert 5 <= rounds <= 20
    assert timing.choose_rounds(1e-2, None, None) == (100, 20)
    assert timing.choose_rounds(1.0, None, None) == (4, 5)
    assert timing.choose_rounds(1.0, 3, 2) == (3, 2)


def test_a_program_from_the_cache_is_reported():
    found = [timing.compile_step(jax.jit(lambda x, y: x - y), 1.0, 2.0) for _ in range(2)]
    assert found[1].compilation.from_cache is True


def test_command_writes_what_it_prints_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    benchmark.main([*TINY_FLAGS, '--steps=2', '--rounds=2', '--json=found.json'])
    out = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['found.json']
    values = json.loads((tmp_path / 'found.json').read_text())
    assert f'{values["step"]["median"]:,.1f} images/s' in out
    assert f'{values["loop_to_step"]:.3f} x step' in out
    assert values['loop_to_step'] == values['loop']['median'] / values['step']['median']


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--step=3'], 'did you mean --steps'),
        (['--steps=0'], '--steps=0 must be 1 or more'),
        (['--steps=few'], 'invalid int value'),
        (['--rounds=1'], '--rounds=1 must be 2 or more'),
        (['--json=no/such/file'], "there is no folder 'no/such' for file"),
        (['--config.data.source=tfds:imagenet2012', '--config.data.data_dir=none'], 'not prepared'),
        (['--config.bach_size=1'], 'did you mean batch_size'),
    ],
)
def test_a_users_mistake_is_one_sentence(flags, says):
    with pytest.raises(UserError, match=says) as caught:
        benchmark.main(flags)
    assert '\n' not in str(caught.value)
