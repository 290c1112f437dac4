"""Every option has an effect: two values make other programs, batches, weights or files.

A row of CASES for each row of OPTIONS. What a run does with a config is looked at from the cheapest
on, and no further than to the first difference.
"""

import dataclasses
import itertools
import pathlib
import re
import threading
import time

import numpy as np
import pytest

import flaxcls
from flaxcls.config.options import OPTIONS
from flaxcls.errors import RunError, UserError
from flaxcls.planning.compiled import abstract_inputs
from flaxcls.training.checkpoints import Checkpoints, fingerprint
from flaxcls.training.setup import build_setup
from tests.helpers.configs import ALEXNET, DENSENET, TINY

SMALLEST = TINY | {'model.stage_sizes': '1', 'model.width_multiplier': 0.125, 'batch_size': 32}
STEP = {'schedule.name': 'step', 'schedule.milestones': '1'}
CROP = {'augment.crop': 'random_resized'}
RANDAUGMENT = {'augment.policy': 'randaugment'}
GROUPS = {'batch_norm.group_size': 8}


@dataclasses.dataclass(frozen=True)
class Case:
    """Values of an option, each with `base`; () are all its choices.

    The texts {images}, {splits}, {broken} and {run} stand for folders that a test makes.
    """

    values: tuple = ()
    base: dict = dataclasses.field(default_factory=dict)


CASES = {
    'seed': Case((0, 1)),
    'batch_size': Case((32, 64)),
    'num_epochs': Case((1, 2)),
    'loss': Case(),
    'label_smoothing': Case((0.0, 0.1, 0.2)),
    'top_k': Case((2, 3)),
    'log_every_steps': Case((10, 20)),
    'eval_every_epochs': Case((1, 2)),
    'checkpoint_every_steps': Case((10, 20)),
    'init_from': Case((None, '{run}')),
    'freeze': Case(('', 'stem*', '*bn1')),
    'trackers': Case(('', 'tensorboard')),
    'extensions': Case(('', '{extension}')),  # Which shifts the images of those who load it.
    'model.name': Case(('resnet20', 'preresnet20')),
    'model.num_classes': Case((10, 11)),
    'model.dtype': Case(),
    'model.dropout_rate': Case((0.2, 0.4), ALEXNET),
    'model.width_multiplier': Case((0.125, 0.25)),
    'model.stage_sizes': Case(('1', '2', '1,1')),
    'model.block_sizes': Case(('1,1', '2,1'), DENSENET),
    'model.growth_rate': Case((4, 8), DENSENET),
    'model.bottleneck': Case((False, True), DENSENET),
    'model.compression': Case((0.5, 1.0), DENSENET),
    'model.stem': Case((), {'data.image_size': 33}),
    'model.shortcut': Case((), {'model.stage_sizes': '1,1'}),
    'model.zero_init_residual': Case((False, True)),
    'model.stochastic_depth_rate': Case((0.0, 0.1)),
    'model.lrn': Case((), ALEXNET | {'model.name': 'alexnet_2012', 'data.image_size': 67}),
    'model.two_groups': Case((False, True), ALEXNET),
    'model.pool_window': Case((2, 3), ALEXNET | {'data.image_size': 67}),
    'model.remat': Case(),
    'model.initializer': Case((), ALEXNET),
    'batch_norm.group_size': Case((None, 8, 16)),
    'batch_norm.momentum': Case((0.9, 0.99)),
    'batch_norm.eps': Case((1e-5, 1e-3)),
    'data.source': Case(('digits', 'folder:{images}')),
    'data.data_dir': Case(('/first', '/second'), {'data.source': 'tfds:mnist'}),
    'data.train_split': Case(('train', 'val'), {'data.source': 'folder:{splits}'}),
    'data.val_split': Case(('val', 'test'), {'data.source': 'folder:{splits}'}),
    'data.val_fraction': Case((0.25, 0.5), {'data.source': 'folder:{images}'}),
    'data.image_size': Case((8, 10)),
    'data.train_image_size': Case((None, 10)),
    'data.eval_crop_fraction': Case((1.0, 0.5)),
    'data.eval_crops': Case(),
    'data.mean': Case(('0.4,0.4,0.4', '0.5,0.4,0.4')),
    'data.std': Case(('0.2,0.2,0.2', '0.3,0.2,0.2')),
    'data.num_threads': Case((1, 3), {'data.source': 'folder:{images}'}),
    'data.on_error': Case((), {'data.source': 'folder:{broken}'}),
    'data.cache': Case((), {'data.source': 'folder:{images}'}),
    'augment.crop': Case(),
    'augment.pad': Case((1, 2), {'augment.crop': 'pad'}),
    'augment.min_area': Case((0.08, 0.3), CROP),
    'augment.crop_on': Case((), CROP),
    'augment.flip': Case((False, True)),
    'augment.color_jitter': Case(('()', '0.4,0.4,0.4,0.1', '0.4,0.4,0.4,0.2')),
    'augment.lighting': Case((0.0, 0.1, 0.2)),
    'augment.policy': Case(),
    'augment.randaugment_layers': Case((1, 2), RANDAUGMENT),
    'augment.randaugment_magnitude': Case((5, 9), RANDAUGMENT),
    'augment.erase': Case((0.0, 0.25, 0.5)),
    'augment.cutout': Case((0, 2, 4)),
    'augment.mixup': Case((0.0, 0.2, 0.4)),
    'augment.cutmix': Case((0.0, 0.5, 1.0)),
    'augment.repeats': Case((1, 2)),
    'optimizer.name': Case(),
    'optimizer.learning_rate': Case((0.1, 0.2)),
    'optimizer.base_batch_size': Case((0, 128)),
    'optimizer.momentum': Case((0.8, 0.9)),
    'optimizer.nesterov': Case((False, True)),
    'optimizer.beta1': Case((0.8, 0.9), {'optimizer.name': 'adamw'}),
    'optimizer.beta2': Case((0.98, 0.99), {'optimizer.name': 'lion'}),
    'optimizer.eps': Case((1e-8, 1e-6), {'optimizer.name': 'lamb'}),
    'optimizer.trust_coefficient': Case((0.001, 0.01), {'optimizer.name': 'lars'}),
    'optimizer.weight_decay': Case((0.0, 1e-4, 1e-3)),
    'optimizer.decay_all': Case((False, True)),
    'optimizer.rules': Case(('', 'head:lr=10', 'head:decay=0')),
    'optimizer.clip_norm': Case((0.0, 1.0, 2.0)),
    'ema.decay': Case((0.0, 0.9, 0.99)),
    'parallel.mode': Case((), GROUPS),
    'parallel.accumulation_steps': Case((1, 2), GROUPS),
    'schedule.name': Case((), {'schedule.final': 0.0}),
    'schedule.warmup_epochs': Case((0.0, 0.5)),
    'schedule.warmup_start': Case((0.1, 0.2), {'schedule.warmup_epochs': 1}),
    'schedule.milestones': Case(('1', '1,1.5'), STEP),
    'schedule.decay_factor': Case((0.1, 0.2), STEP),
    'schedule.final': Case((0.0, 0.1)),
    'schedule.power': Case((1.0, 2.0), {'schedule.name': 'polynomial'}),
}
# Only the loop heeds these, so that a run is trained.
OF_THE_LOOP = {'log_every_steps', 'eval_every_epochs', 'checkpoint_every_steps', 'trackers'}


def test_there_is_a_case_for_every_option():
    assert list(CASES) == list(OPTIONS)


@pytest.fixture(scope='module')
def folders(tmp_path_factory, finished):
    """Folders of images: as they are, with splits, with an unreadable file; and one of a run."""
    from PIL import Image

    root = tmp_path_factory.mktemp('options')
    rng = np.random.default_rng(0)

    def write(name, count):
        for index in range(count):
            path = root / name / 'ab'[index % 2] / f'{index}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)

    write('images', 88)
    write('broken', 88)
    for split in ('train', 'val', 'test'):
        write(f'splits/{split}', 64)
    (root / 'broken/a/0.png').write_bytes(b'')
    names = ('images', 'splits', 'broken')
    (root / 'darker.py').write_text(
        'import flaxcls\n'
        "flaxcls.add_option(flaxcls.Option('augment.darken', 0.5, help='Factor.'))\n"
        "@flaxcls.AUGMENTATIONS.register('darken')\n"
        'def darken(*, darken):\n'
        '    return lambda key, image: darken * image\n'
    )
    paths = {name: str(root / name) for name in names}
    return paths | {'run': str(finished.workdir), 'extension': str(root / 'darker.py')}


@pytest.fixture
def make_config(folders):
    """Returns options -> a config, the names of folders in it replaced."""

    def make(options):
        filled = {
            key: value.format(**folders) if isinstance(value, str) else value
            for key, value in (SMALLEST | options).items()
        }
        return flaxcls.load_config(None, filled)

    return make


def _observe(setup):
    """Yields (what it is, something comparable), the cheapest first."""
    yield 'sizes', (len(setup.dataset.train), len(setup.dataset.val), setup.dataset.class_names)
    yield 'where images are', type(getattr(setup.dataset.train, 'records', None)).__name__
    yield 'notes', setup.dataset.notes
    yield (
        'learning rates',
        [float(setup.learning_rate.schedule(s)) for s in range(setup.total_steps)],
    )
    yield 'training batches', _batches(setup.make_train_batches()(0))
    yield 'evaluation batches', _batches(setup.make_eval_batches()())
    if setup.num_threads:
        yield 'threads', _count_threads(setup)
    yield 'state', fingerprint(setup.init_state())
    step = setup.make_train_step()
    yield 'how a step is laid out', type(step).__name__
    state, batch = abstract_inputs(setup)
    yield 'training', _text(step.lower(state, batch))
    batch = dict(next(setup.make_eval_batches()()))
    yield 'evaluation', _text(setup.make_eval_step().lower(state.eval_variables, batch))


def _batches(batches):
    return [
        {name: value.tobytes() for name, value in batch.items()}
        for batch in itertools.islice(batches, 2)
    ]


def _text(lowered):
    return re.sub('0x[0-9a-f]{6,}', '', lowered.as_text())


def _count_threads(setup):
    """Returns by how many threads the images of a batch are read."""
    names = set()

    class Watched:
        def __len__(self):
            return len(setup.dataset.train)

        def __getitem__(self, index):
            time.sleep(0.02)  # So that each thread gets one.
            names.add(threading.current_thread().name.split('_')[-1])
            return setup.dataset.train[index]

        def name(self, index):
            return setup.dataset.train.name(index)

    dataset = setup.dataset.replace(train=Watched())
    next(setup._replace(dataset=dataset).make_train_batches()(0))
    return len(names)


def _train(config, workdir):
    """Yields what a run writes, and when it saves."""
    saved, save = [], Checkpoints.save

    def record_and_save(checkpoints, state, val):
        saved.append(int(state.step))
        save(checkpoints, state, val)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, 'save', record_and_save)
        _, history = flaxcls.train_and_evaluate(config, workdir)
    yield 'records', [(record['step'], 'val/loss' in record) for record in history]
    yield 'saved', saved
    yield 'events', bool(list(pathlib.Path(workdir).rglob('*tfevents*')))


class _Seen:
    """What an iterator yields, as often as one looks, and no further than anyone has looked."""

    def __init__(self, iterator):
        self._iterator, self._items = iterator, []

    def __iter__(self):
        for place in itertools.count():
            if place == len(self._items):
                try:
                    self._items.append(next(self._iterator))
                except StopIteration:
                    return
            yield self._items[place]


def _observe_config(key, config, workdir):
    try:
        if key in OF_THE_LOOP:
            yield from _train(config, workdir)
        else:
            yield from _observe(build_setup(config))
    except (UserError, RunError) as error:  # A value that is refused has an effect too.
        yield 'refusal', str(error)


@pytest.mark.parametrize('key', OPTIONS)
def test_any_two_values_of_an_option_differ_in_what_a_run_does(key, make_config, tmp_path):
    case = CASES[key]
    seen = {
        value: _Seen(
            _observe_config(key, make_config(case.base | {key: value}), tmp_path / f'run_{value}')
        )
        for value in case.values or OPTIONS[key].choices
    }
    for a, b in itertools.combinations(seen, 2):
        pairs = zip(seen[a], seen[b], strict=False)
        assert any(x != y for x, y in pairs), f'config.{key}={a} does the same as {b}'


def test_equal_configs_do_the_same(make_config):
    """Otherwise the test above would find differences anywhere."""
    one, other = (_observe(build_setup(make_config({}))) for _ in range(2))
    assert all(a == b for a, b in zip(one, other, strict=True))
