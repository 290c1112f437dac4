"""What a plan says, against what a run then does; and every experiment, planned and begun."""

import pathlib
import re
import subprocess
import sys

import jax
import pytest

import flaxcls
from flaxcls.commands import plan
from flaxcls.config.files import load_config
from flaxcls.data.known_sizes import PUBLISHED
from flaxcls.errors import RunError, UserError
from flaxcls.planning import compiled as compiled_lib
from flaxcls.planning import estimate
from flaxcls.planning.compiled import collectives, step_resources
from flaxcls.planning.hardware import CHIPS, open_hardware
from flaxcls.training import parallel
from flaxcls.training.setup import build_setup
from tests.helpers.configs import EXPERIMENTS, TINY

# The others take XLA up to minutes to compile.
FAST = ('digits_alexnet',)


def _make_plan(path, **overrides):
    overrides = {key.replace('__', '.'): value for key, value in overrides.items()}
    return estimate.create_plan(load_config(path, overrides))


@pytest.mark.parametrize('path', EXPERIMENTS)
def test_every_experiment_can_be_planned(path, tmp_path):
    overrides = {}
    if 'transfer' in path:
        for name in 'ab':
            (tmp_path / name).mkdir()
            for i in range(100):
                (tmp_path / name / f'{i}.png').touch()
        overrides = {'data__source': f'folder:{tmp_path}'}
    found = _make_plan(path, data__data_dir=str(tmp_path), **overrides)
    text = '\n'.join(estimate.describe_plan(found))
    assert f'{found.setup.total_steps:,} in all' in text
    assert f'{found.cost.parameters:,}' in text


@pytest.mark.parametrize(
    'path',
    [
        path
        if pathlib.Path(path).name.startswith(FAST)
        else pytest.param(path, marks=pytest.mark.weekly)
        for path in EXPERIMENTS
    ],
)
def test_every_experiment_trains_two_steps_of_its_own_shape(path, tmp_path):
    config = load_config(path)
    batch = 6 if config.augment.repeats == 3 else 8
    published = PUBLISHED.get(config.data.source.removeprefix('tfds:'))
    overrides = {
        'data.source': f'synthetic:{2 * batch}', 'batch_size': batch, 'num_epochs': 1,
        'model.num_classes': published.classes if published else 10, 'init_from': None,
        'batch_norm.group_size': None,
        'schedule.warmup_epochs': min(config.schedule.warmup_epochs, 0.5),
    }  # fmt: skip
    state, history = flaxcls.train_and_evaluate(load_config(path, overrides), tmp_path)
    assert int(state.step) == 2
    assert history[-1]['val/count'] == 1


IMPOSSIBLE = [
    ({'batch_size': 2000}, 'batch_size=2000 is larger than the training set'),
    ({'num_epochs': 0}, 'num_epochs=0 must be at least 1'),
    ({'batch_size': 63}, 'batch_size=63 cannot be shared by 2 devices'),
    ({'batch_norm.group_size': 7}, 'batch_norm.group_size=7 does not divide'),
    ({'parallel.accumulation_steps': 2}, 'asks for 64 examples at once'),
    ({'model.num_classes': 7}, 'model.num_classes=7 does not match the 10 classes'),
    ({'data.train_image_size': 0}, 'train_image_size=0 must be at least 1'),
    ({'model.name': 'alexnet', 'data.image_size': 40}, 'the smallest is 63 pixels'),
    ({'model.name': 'alexnet', 'data.image_size': 63, 'data.train_image_size': 40}, 'train_image'),
    ({'schedule.warmup_epochs': 20.0}, 'warmup_epochs=20 leaves nothing'),
    ({'schedule.warmup_start': 0.1}, 'warmup_start=0.1 needs config.schedule.warmup_epochs'),
    ({'schedule.name': 'step'}, 'needs config.schedule.milestones'),
    ({'augment.repeats': 3}, 'augment.repeats=3 does not divide'),
    ({'optimizer.rules': 'haed:lr=10'}, "'haed' fits no layer"),
    ({'optimizer.rules': 'head=10'}, 'is not a rule'),
    ({'optimizer.name': 'adam'}, 'did you mean adamw'),
    ({'optimizer.beta2': 0.9}, 'belongs to config.optimizer.name'),
    ({'data.source': 'tfds:imagenet', 'data.data_dir': 'none'}, 'imagenet is not prepared'),
]


@pytest.mark.parametrize(('overrides', 'says'), IMPOSSIBLE, ids=str)
def test_impossible_runs_are_refused_by_plan_and_by_training(overrides, says, tmp_path):
    config = load_config(None, overrides)
    for attempt in (estimate.create_plan, lambda c: flaxcls.train_and_evaluate(c, tmp_path)):
        with pytest.raises(UserError) as caught:
            attempt(config)
        assert says in str(caught.value)
        assert '\n' not in str(caught.value)


def test_milestones_past_the_end_are_refused_by_plan_alone():
    """Training notes them: a recipe that is cut short on purpose is a common trial."""
    config = {'schedule.name': 'step', 'schedule.milestones': '5,30', 'num_epochs': 10}
    with pytest.raises(UserError, match='last until epoch 30'):
        estimate.create_plan(load_config(None, config))


@pytest.mark.parametrize(
    'options', [{}, {'ema.decay': 0.9, 'optimizer.name': 'lamb'}, {'model.remat': 'norm'}], ids=str
)
def test_planned_memory_is_that_of_the_program_that_trains(options):
    config = load_config(None, TINY | options)
    found = estimate.compile_plan(estimate.create_plan(config)).resources.memory
    setup = build_setup(config)
    step = setup.make_train_step()
    batches = setup.make_train_batches()(0)
    batch = next(parallel.microbatches_to_devices(batches, setup.layout))
    compiled = step.lower(setup.init_state(), batch).compile().memory_analysis()
    whole = (
        compiled.argument_size_in_bytes
        + compiled.output_size_in_bytes
        - compiled.alias_size_in_bytes
        + compiled.temp_size_in_bytes
        + compiled.generated_code_size_in_bytes
    )
    assert found.total == pytest.approx(whole, rel=0.1)
    assert found.weights + found.optimizer + found.batch == pytest.approx(
        compiled.argument_size_in_bytes, rel=0.1
    )


def test_published_sizes_stand_in_for_sets_that_are_not_prepared(tmp_path):
    found = _make_plan('experiments/densenet121.py', data__data_dir=str(tmp_path))
    assert (found.setup.steps_per_epoch, found.setup.total_steps) == (1_281_167 // 256, 450_360)
    assert found.flops_per_step == 256 * 3 * 2 * found.cost.macs
    text = '\n'.join(estimate.describe_plan(found))
    assert 'its published size is taken' in text
    assert '143 images of each epoch wait for the next' in text
    assert '0.01 at step 150,120' in text
    with pytest.raises(UserError, match='is not prepared'):
        _make_plan(
            'experiments/densenet121.py', data__data_dir=str(tmp_path), data__val_split='test'
        )


def test_other_sizes_in_training_and_evaluation_cost_what_they_are():
    small = _make_plan(None, data__train_image_size=8, data__image_size=16)
    assert small.cost.macs < small.eval_cost.macs
    assert small.eval_cost == _make_plan(None, data__image_size=16).cost


def test_roofline_is_the_slower_of_arithmetic_and_memory():
    chip = CHIPS['tpu:v5e']
    found = estimate.compile_plan(
        _make_plan(None, **{k.replace('.', '__'): v for k, v in TINY.items()})
    )
    assert found.least_seconds_per_step == {}
    found = found._replace(hardware=found.hardware._replace(chip=chip))
    limits = found.least_seconds_per_step
    assert limits['FLOPs'] == found.flops_per_step / 2 / chip.flops
    assert limits['memory traffic'] == found.resources.traffic / chip.bandwidth
    text = '\n'.join(estimate.describe_resources(found))
    assert f'limited by {max(limits, key=limits.get)}' in text
    assert 'fits in 16.00 GiB' in text


def test_the_plan_is_the_same_under_pmap():
    options = {k.replace('.', '__'): v for k, v in TINY.items()}
    plans = [_make_plan(None, parallel__mode=mode, **options) for mode in ('jit', 'pmap')]
    under_jit, under_pmap = (estimate.compile_plan(plan).resources for plan in plans)
    assert under_jit == under_pmap


def test_step_that_does_not_fit_is_one_sentence(monkeypatch):
    def compile_train_step(setup, compiler_options):
        raise RuntimeError(
            'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory '
            'space hbm.\n  Used 33.13G of 15.75G hbm. Exceeded hbm capacity by 17.38G.\n\nTotal'
        )

    monkeypatch.setattr(estimate, 'compile_train_step', compile_train_step)
    with pytest.raises(RunError, match=r'does not fit on cpu \(Used 33.13G of 15.75G') as caught:
        estimate.compile_plan(_make_plan(None))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('target', 'says'),
    [
        ('tpu:v9', r'unknown .did you mean tpu:v'),
        ('cpu', 'is unknown'),
        ('gpu:h100:0', 'flaxcls.cuda.|no number of devices'),
        ('tpu:v5e:3x7', 'flaxcls.tpu.|no such topology'),
    ],
)
def test_targets_that_are_not_there_are_one_sentence(target, says):
    with pytest.raises(UserError, match=says) as caught:
        open_hardware(target)
    assert '\n' not in str(caught.value)


def test_collectives_are_counted_with_their_bytes():
    hlo = """
      %all-reduce.1 = (f32[3,4]{1,0}, bf16[8]{0}) all-reduce(%a, %b), replica_groups={}
      %ag = f32[16]{0} all-gather-start(%c), dimensions={0}
      %all-reduce.2 = pred[5]{0} all-reduce(%d)
      %fusion = f32[9] fusion(%all-reduce.2)
    """
    assert collectives(hlo) == {'all-reduce': (2, 48 + 16 + 5), 'all-gather': (1, 64)}


def test_command_prints_the_plan(capsys):
    flags = [f'--config.{key}={value}' for key, value in TINY.items()]
    plan.main(flags)
    out = capsys.readouterr().out
    for word in ('44 in all', 'learning rate', 'parameters      1,406', 'memory', 'MB of memory'):
        assert word in out


def test_needs_take_all_devices_into_account():
    """Two devices have half of the batch each, and all of the weights."""
    one, two = (
        build_setup(load_config(None, TINY), devices=jax.devices()[:count]) for count in (1, 2)
    )
    found = [step_resources(compiled_lib.compile_train_step(setup), setup) for setup in (one, two)]
    assert found[0].memory.weights == found[1].memory.weights
    assert found[0].memory.batch == 2 * found[1].memory.batch
    assert found[0].collectives == {}
    number, size = found[1].collectives['all-reduce']
    assert number >= 1
    assert size >= found[1].memory.weights  # The gradients, and what BatchNorm's groups share.


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--effort=0'], r'--effort=0 belongs to --target=tpu'),
        (['--target=gpu:h100', '--effort=-1'], 'belongs to --target=tpu'),
        (['--target=tpu:v5e', '--effort=0.5'], 'must lie between -1 and 0'),
        (['--target=tpu:v5e', '--effort=much'], 'invalid float value'),
    ],
)
def test_an_effort_that_cannot_be_made_is_one_sentence(flags, says):
    with pytest.raises(UserError, match=says):
        plan.main(flags)


@pytest.mark.weekly
def test_a_larger_tpu_changes_nothing_for_a_chip():
    """The same examples a chip: the same bytes and collectives, on 4 chips and on 256."""
    pytest.importorskip('libtpu', reason='needs the extra [tpu]')
    lines = []
    for topology, batch in (('2x2', 32), ('16x16', 2048)):
        options = {
            'model.stage_sizes': '1,1', 'data.image_size': 32, 'data.source': 'fashion_mnist',
            'batch_size': batch,
        }  # fmt: skip
        command = [f'--config.{key}={value}' for key, value in options.items()]
        result = subprocess.run(
            [sys.executable, '-m', 'flaxcls', 'plan', f'--target=tpu:v5e:{topology}',
            *command],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = [re.sub(r'.* a device: ', '', line) for line in result.stdout.splitlines()]
        lines.append(
            [line for line in lines if line.startswith(('weights ', 'traffic ', 'between '))]
        )
    assert len(lines[0]) == 3 and 'all-reduce' in lines[0][-1]
    assert lines[0] == lines[1]
