"""Runs: training, resuming, evaluating, failing."""

import json
import os
import shutil
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcls
from flaxcls.config.config_dict import set_option
from flaxcls.errors import RunError, Stopped, UserError
from flaxcls.system.files import locked_folder
from flaxcls.system.signals import SignalFlag
from flaxcls.training import loop
from flaxcls.training.checkpoint_files import newest_step, read_run_state
from flaxcls.training.checkpoints import Checkpoints, fingerprint
from flaxcls.training.logging import MetricsWriter, find_trackers, read_metrics
from flaxcls.training.restore import evaluate_workdir, load_run
from flaxcls.training.setup import build_setup
from tests.helpers.unpack import load_state

# Of records that two equal runs share; the others are times.
TIMED = {'train/images_per_second', 'train/data_wait_fraction'}


def _untimed(records):
    return [{k: v for k, v in record.items() if k not in TIMED} for record in records]


def test_history_is_metrics_jsonl_under_the_promised_names(finished):
    _, workdir, _, history = finished
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    names = set().union(*history)
    promised = 'loss accuracy count images_per_second data_wait_fraction learning_rate'
    assert {f'train/{name}' for name in promised.split()} <= names
    assert {'step', 'val/loss', 'val/accuracy', 'val/top5_accuracy', 'val/count'} <= names
    evaluations = [record for record in history if 'val/count' in record]
    assert [record['epoch'] for record in evaluations] == [1, 2]
    assert {record['val/count'] for record in evaluations} == {359}
    # Every example of every step is in exactly one record.
    assert sum(record.get('train/count', 0) for record in history) == 2 * 22 * 64
    assert load_run(workdir).step == 2 * 22
    assert json.loads((workdir / 'class_names.json').read_text()) == list('0123456789')
    assert json.loads((workdir / 'config.json').read_text())['model']['num_classes'] == 10


def test_brief_run_is_the_same_and_prints_its_evaluations_and_notes(finished, tmp_path, capsys):
    config, _, sha256, history = finished
    capsys.readouterr()
    again, brief_history = flaxcls.train_and_evaluate(config, tmp_path / 'brief', brief=True)
    assert fingerprint(again) == sha256
    assert _untimed(brief_history) == _untimed(history)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith('epoch ') for line in lines) == config.num_epochs
    assert len(lines) == config.num_epochs + 4  # Network, data, steps, peak learning rate.
    flaxcls.train_and_evaluate(config, tmp_path / 'brief', brief=True)
    assert 'already finished' in capsys.readouterr().out


def test_training_lowers_the_loss_and_moves_everything(finished):
    config, workdir, _, history = finished
    state = load_state(workdir)
    losses = [record['train/loss'] for record in history if 'train/loss' in record]
    assert losses[-1] < losses[0] - 0.2
    initial = build_setup(config).init_state()
    for before, after in zip(jax.tree.leaves(initial), jax.tree.leaves(state), strict=True):
        assert (before != after).any()
        assert before.dtype == after.dtype


def test_a_network_is_traced_once_for_all_that_precedes_a_run(tiny_config):
    calls = []

    def count(call, args, kwargs, context):
        if (context.module.path, context.method_name) == ((), '__call__'):
            calls.append(context)
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        setup = build_setup(tiny_config())
        state, abstract = setup.init_state(), setup.abstract_state()
    assert len(calls) == 1
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(abstract) == shapes(state)


def test_other_optimizer_loss_and_size_train_and_are_evaluated(tiny_config, tmp_path):
    """As in a recipe of Wightman et al. 2021, which trains on smaller images than it evaluates."""
    config = tiny_config(
        optimizer__name='lamb', optimizer__learning_rate=0.02, optimizer__clip_norm=1.0,
        optimizer__rules='head:lr=2', loss='sigmoid', label_smoothing=0.1,
        data__image_size=12, data__train_image_size=8, schedule__warmup_epochs=0.5,
    )  # fmt: skip
    _, history = flaxcls.train_and_evaluate(config, tmp_path)
    losses = [record['train/loss'] for record in history if 'train/loss' in record]
    assert losses[0] < 1  # Binary cross-entropy, averaged over classes, begins below log 2.
    assert losses[-1] < losses[0] - 0.1
    values = evaluate_workdir(tmp_path)
    assert values == {k: v for k, v in history[-1].items() if k != 'epoch'}


def test_evaluation_repeats_trainings_last_value_exactly(finished):
    _, workdir, sha256, history = finished
    values = evaluate_workdir(workdir)
    last = [record for record in history if 'val/loss' in record][-1]
    assert values == {k: v for k, v in last.items() if k != 'epoch'}
    assert fingerprint(load_state(workdir)) == sha256


def test_ten_crops_are_each_classified_and_their_probabilities_averaged(finished):
    _, workdir, _, _ = finished
    overrides = {'data.eval_crop_fraction': 0.8, 'data.image_size': 8, 'data.eval_crops': 'ten'}
    run = load_run(workdir, overrides=overrides)
    batch = next(run.setup.make_eval_batches()())
    assert batch['image'].shape[1:] == (10, 10, 3)
    logits = jax.jit(run.setup.classify)(run.variables, batch['image'])
    one_crop = load_run(workdir, overrides=overrides | {'data.eval_crops': 'center'}).setup
    classify = jax.jit(one_crop.classify)
    expected = 0
    for top, left in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1)):
        crop = batch['image'][:, top : top + 8, left : left + 8]
        for image in (crop, crop[:, :, ::-1]):
            expected += jax.nn.softmax(classify(run.variables, image)) / 10
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, rtol=1e-4, atol=1e-6)
    assert evaluate_workdir(workdir, overrides=overrides)['val/count'] == 359


def test_best_and_newest_are_kept_and_differ_in_the_step(finished):
    _, workdir, _, history = finished
    evaluations = [record for record in history if 'val/accuracy' in record]
    best = max(evaluations, key=lambda record: (record['val/accuracy'], record['step']))
    assert load_run(workdir, checkpoint='best').step == best['step']
    assert load_run(workdir).step == 44
    assert evaluate_workdir(workdir, checkpoint='best')['val/accuracy'] == best['val/accuracy']
    with pytest.raises(UserError, match='--checkpoint=7 is not in'):
        load_run(workdir, checkpoint='7')


def test_finished_run_says_so_and_changes_nothing(finished, workdir, capsys):
    config, _, sha256, history = finished
    again, history_again = flaxcls.train_and_evaluate(config, workdir)
    assert 'already finished' in capsys.readouterr().out
    assert fingerprint(again) == sha256
    assert history_again == history


def test_another_seed_gives_another_state(finished):
    config = finished.config
    other = config.copy_and_resolve_references()
    other.seed = 1
    assert fingerprint(build_setup(other).init_state()) != fingerprint(
        build_setup(config).init_state()
    )


class _StopAt(SignalFlag):
    """Behaves as if SIGTERM came during a step."""

    step = 0
    looked = 0

    @property
    def signal(self):
        self.looked += 1  # Once a step, or a signal between two looks would not be saved.
        return signal.SIGTERM if self.looked == self.step else None

    @signal.setter
    def signal(self, value):
        pass


@pytest.mark.parametrize('steps', [1, 22])
def test_stopped_and_resumed_is_the_same_run_to_the_byte(finished, tmp_path, monkeypatch, steps):
    config, _, sha256, history = finished
    with monkeypatch.context() as patch:
        patch.setattr(_StopAt, 'step', steps)
        patch.setattr(loop, 'SignalFlag', _StopAt)
        with pytest.raises(Stopped, match=f'SIGTERM: stopped and saved at step {steps} ') as stop:
            flaxcls.train_and_evaluate(config, tmp_path)
    assert stop.value.exit_code == 75
    (tmp_path / 'metrics.jsonl').open('a').write('{"step": 12, "val/lo')  # Died in a line.
    resumed, resumed_history = flaxcls.train_and_evaluate(config, tmp_path)
    assert fingerprint(resumed) == sha256
    evaluations = [
        [r for r in records if 'val/loss' in r] for records in (history, resumed_history)
    ]
    assert evaluations[0] == evaluations[1]
    assert sum(record.get('train/count', 0) for record in resumed_history) == 2 * 22 * 64


def test_another_experiment_in_the_same_workdir_is_refused(finished, workdir):
    config = finished.config
    for key, value in {'seed': 5, 'model.width_multiplier': 0.25, 'batch_size': 32}.items():
        other = config.copy_and_resolve_references()
        set_option(other, key, value)
        with pytest.raises(UserError, match=f'config.{key} is {value}') as caught:
            flaxcls.train_and_evaluate(other, workdir)
        assert '--workdir' in str(caught.value)


def test_longer_run_resumes_with_a_warning(finished, workdir, capsys):
    longer = finished.config.copy_and_resolve_references()
    longer.num_epochs, longer.log_every_steps = 3, 7
    state, history = flaxcls.train_and_evaluate(longer, workdir)
    assert 'num_epochs was 2 and is 3' in capsys.readouterr().out
    assert int(state.step) == 3 * 22
    assert [r['epoch'] for r in history if 'val/loss' in r] == [1, 2, 3]


def test_shorter_run_than_already_made_is_refused_and_changes_nothing(finished, workdir):
    shorter = finished.config.copy_and_resolve_references()
    shorter.num_epochs = 1
    before = (workdir / 'config.json').read_text()
    with pytest.raises(UserError, match=r'ends at step 22, .* has made 44 already'):
        flaxcls.train_and_evaluate(shorter, workdir)
    assert (workdir / 'config.json').read_text() == before


def test_recipe_cut_short_says_which_milestones_it_misses(tiny_config, tmp_path, capsys):
    config = tiny_config(num_epochs=1, schedule__name='step', schedule__milestones='0.5,30,60')
    _, history = flaxcls.train_and_evaluate(config, tmp_path)
    assert 'num_epochs=1 ends before the milestones 30, 60 of' in capsys.readouterr().out
    assert history[-1]['val/count'] == 359


def test_diverging_loss_stops_the_run_with_a_sentence(tiny_config, tmp_path):
    config = tiny_config(optimizer__learning_rate=1e30)
    with pytest.raises(RunError, match=r'nan at step|inf at step|not finite at step') as caught:
        flaxcls.train_and_evaluate(config, tmp_path)
    assert 'learning_rate than 1e+30' in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('overrides', 'says'),
    [
        ({'batch_size': 2000}, 'larger than the training set of 1438'),
        ({'batch_size': 31}, 'cannot be shared by 2 devices; choose 30 or 32'),
        ({'batch_norm.group_size': 32, 'batch_size': 96}, 'asks for 32 examples at once'),
        ({'data.image_size': 2}, 'too small for resnet20; the smallest is 2'),
        ({'model.num_classes': 7}, 'does not match the 10 classes'),
        ({'model.growth_rate': 7}, 'no meaning for resnet20'),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_any_work(tiny_config, tmp_path, overrides, says):
    config = tiny_config(**overrides)
    if 'smallest' in says:
        config.model.stage_sizes = (1, 1, 1)
        says = 'the smallest is 3'
    with pytest.raises(UserError, match=says):
        flaxcls.train_and_evaluate(config, tmp_path / 'new')


def _folder_config(tiny_config, folder, **overrides):
    return tiny_config(data__source=f'folder:{folder}', batch_size=8, num_epochs=1, **overrides)


def test_one_class_is_refused(tiny_config, tmp_path, write_images):
    folder = write_images({f'images/a/{i}.png': (8, 8) for i in range(20)}) / 'images'
    with pytest.raises(UserError, match='has 1 class; a classifier needs two'):
        flaxcls.train_and_evaluate(_folder_config(tiny_config, folder), tmp_path / 'new')


def test_classes_of_a_run_are_checked_wherever_it_resumes(
    tiny_config, tmp_path, write_images, capsys
):
    folder = write_images({f'images/{n}/{i}.png': (8, 8) for n in 'ab' for i in range(9)})
    (folder / 'images/stray').write_text('')
    config = _folder_config(tiny_config, folder / 'images', checkpoint_every_steps=2)
    workdir = tmp_path / 'run'
    flaxcls.train_and_evaluate(config, workdir)
    capsys.readouterr()
    evaluate_workdir(workdir)
    assert '1 files that are not images of a class were left out' in capsys.readouterr().out
    (folder / 'images/a').rename(folder / 'images/z')
    for go_on in (
        lambda: flaxcls.train_and_evaluate(config, workdir),
        lambda: evaluate_workdir(workdir),
    ):
        with pytest.raises(UserError, match='are not those that the run in'):
            go_on()
    (workdir / 'class_names.json').unlink()
    with pytest.raises(UserError, match=r'class_names\.json.* is missing or damaged'):
        evaluate_workdir(workdir)


def test_speed_is_reported_only_where_a_step_was_timed(tiny_config, tmp_path):
    config = tiny_config(num_epochs=1, log_every_steps=1)
    _, history = flaxcls.train_and_evaluate(config, tmp_path)
    records = [record for record in history if 'train/loss' in record]
    assert TIMED.isdisjoint(records[0])  # The first step is compilation.
    for record in records[1:]:
        assert record['train/images_per_second'] > 0
        assert 0 <= record['train/data_wait_fraction'] <= 1


def test_evaluating_what_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match='there is no run in'):
        evaluate_workdir(tmp_path)
    with pytest.raises(UserError, match='is a file'):
        (tmp_path / 'file').write_text('')
        with locked_folder(tmp_path / 'file', 'run is training'):
            pass


def test_checkpoint_of_another_network_is_refused_by_name(finished):
    config, workdir, _, _ = finished
    other = config.copy_and_resolve_references()
    other.model.width_multiplier = 0.25
    with pytest.raises(UserError, match=r'bn_stem\.mean is \(8,\) there, and \(4,\)') as caught:
        read_run_state(workdir, '44', build_setup(other).init_state())
    assert '\n' not in str(caught.value)


def test_full_disk_is_reported_before_the_checkpoint_is_begun(tiny_config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(RunError, match='MB left, and a checkpoint takes'):
        flaxcls.train_and_evaluate(tiny_config(), tmp_path)
    assert newest_step(tmp_path) is None


def test_metrics_after_the_resumed_step_are_written_again(tmp_path):
    writer = MetricsWriter(tmp_path, 0, find_trackers('tensorboard', {}))
    for step in (5, 10, 15):
        writer.write({'step': step, 'train/loss': 1.0})
    writer.close()
    writer = MetricsWriter(tmp_path, 10)
    writer.write({'step': 12, 'train/loss': 2.0})
    writer.close()
    assert [record['step'] for record in read_metrics(tmp_path)] == [5, 10, 12]
    assert list((tmp_path / 'tensorboard').iterdir())


def test_fingerprint_sees_names_types_shapes_and_values():
    states = [
        {'a': jnp.zeros(4)},
        {'b': jnp.zeros(4)},
        {'a': jnp.zeros(4, int)},
        {'a': jnp.zeros((2, 2))},
        {'a': jnp.zeros(4).at[3].set(1e-30)},
    ]
    assert len({fingerprint(state) for state in states}) == len(states)
    assert fingerprint({'a': np.zeros(4, np.float32)}) == fingerprint(states[0])


def test_a_signal_while_the_last_checkpoint_is_written_does_not_lose_it(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config(num_epochs=1)
    wait, asked, reached = Checkpoints.wait, [], []

    def wait_and_be_asked_to_stop(self):
        if not asked:  # The first time; later there is nothing left to write.
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        wait(self)

    monkeypatch.setattr(Checkpoints, 'wait', wait_and_be_asked_to_stop)
    before = signal.signal(signal.SIGTERM, lambda *_: reached.append('what ends a process'))
    try:
        state, _ = flaxcls.train_and_evaluate(config, tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not reached
    assert newest_step(tmp_path) == int(state.step)
