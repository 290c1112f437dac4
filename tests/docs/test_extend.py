"""The examples of docs/how_to/extend.md, outside the checkout, through every command."""

import pathlib
import runpy
import shutil

import numpy as np
import pytest
from PIL import Image

import flaxcls
from flaxcls.commands import evaluate, explain, export, models, predict, report, sweep, train
from flaxcls.config import extensions
from flaxcls.config.validation import validate
from flaxcls.errors import UserError
from flaxcls.training.logging import read_metrics
from tests.helpers.configs import TINY
from tests.helpers.documents import code, write_file

PAGE = pathlib.Path('docs/how_to/extend.md')
QUICK = ['--config.num_epochs=1', '--config.data.image_size=8', '--config.log_every_steps=2']
NETWORK = [
    '--config=digits_resnet20', '--config.extensions=se_resnet.py',
    '--config.model.name=se_resnet', '--config.model.stage_sizes=1,1',
]  # fmt: skip
EXPERIMENT = ['--config=my_experiment.py', '--config.model.stage_sizes=1']


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files of the page and an image; nothing is trusted yet."""
    for piece in code(PAGE):
        write_file(piece, tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / 'image.jpg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'home'))
    monkeypatch.delenv(extensions.TRUST, raising=False)
    return tmp_path


@pytest.fixture
def forget():
    """Returns a function after which this process has loaded no extension, as a new one has."""

    yield extensions.unload_all
    extensions.unload_all()


@pytest.mark.parametrize('options', [NETWORK, EXPERIMENT], ids=['network', 'experiment'])
def test_what_an_extension_adds_is_found_by_every_command(options, here, forget, capsys):
    train.main([*options, *QUICK, '--workdir=run'])
    for path in here.glob('*.py'):
        path.unlink()  # The run has its copy.
    for command, *flags in (
        (evaluate, '--csv=rows.csv'), (predict, 'image.jpg'), (explain,), (report,),
        (export, '--format=stablehlo', '--out=exported'),
    ):  # fmt: skip
        forget()
        command.main(['--workdir=run', *flags])
    forget()
    train.main(['--workdir=run'])
    assert 'is already finished' in capsys.readouterr().out
    assert (here / 'exported/model.stablehlo').exists()


@pytest.mark.usefixtures('forget')
def test_a_sweep_varies_an_extensions_option(here):
    sweep.main(['--sweep=my_sweep.py', '--config.model.stage_sizes=1', *QUICK])
    assert len(list(here.rglob('seed*/extensions/my_experiment.py'))) == 4


@pytest.mark.usefixtures('forget')
def test_the_callback_sees_records_evaluations_and_saves(here, monkeypatch):
    load = flaxcls.load_config
    small = {'model.stage_sizes': '1', 'data.image_size': 8}
    monkeypatch.setattr(flaxcls, 'load_config', lambda p, o=None: load(p, small | (o or {})))
    shown = runpy.run_path('watch.py')
    assert shown['history'][-1]['val/accuracy'] >= 0
    seen = []
    config = flaxcls.load_config(None, TINY | {'num_epochs': 1})
    flaxcls.train_and_evaluate(config, here / 'run', callback=lambda *event: seen.append(event))
    events = [event for event, _ in seen]
    assert events[-3:] == ['record', 'evaluation', 'save']
    written = read_metrics(here / 'run')
    assert [record for event, record in seen if event != 'save'] == written


@pytest.mark.usefixtures('forget')
def test_help_and_the_table_of_networks_know_what_is_named(here, capsys):
    with pytest.raises(SystemExit):
        train.main(['--config.extensions=se_resnet.py', '--help'])
    assert '--config.model.squeeze=4' in capsys.readouterr().out
    models.main(['--extensions=se_resnet.py'])
    assert 'se_resnet' in capsys.readouterr().out


def _break(here, how):
    copy = here / 'run/extensions/se_resnet.py'
    if how == 'missing':
        copy.unlink()
    elif how == 'changed':
        copy.write_text(copy.read_text() + '# More.')
    elif how == 'untrusted':
        shutil.rmtree(here / 'home')
    return copy


@pytest.mark.parametrize(
    ('how', 'says'),
    [
        ('missing', 'cannot be read'),
        ('changed', 'has changed'),
        ('untrusted', 'that you have not run before'),
    ],
)
def test_what_is_wrong_with_a_runs_extension_is_a_sentence(how, says, here, forget, monkeypatch):
    train.main([*NETWORK, *QUICK, '--workdir=run'])
    copy = _break(here, how)
    forget()
    with pytest.raises(UserError, match=says) as caught:
        evaluate.main(['--workdir=run'])
    assert str(copy.relative_to(here)) in str(caught.value)
    assert '\n' not in str(caught.value)
    if how == 'untrusted':
        evaluate.main(['--workdir=run', '--trust_extensions'])
        monkeypatch.delenv(extensions.TRUST)
        forget()
        with pytest.raises(UserError, match=says):  # It was for once.
            evaluate.main(['--workdir=run'])


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        (None, r"mine\.py' cannot be read"),
        ('1 / 0', 'mine.py.* does not run .ZeroDivisionError'),
        ('import nowhere', 'mine.py.* does not run .ModuleNotFoundError'),
        ("import flaxcls\nflaxcls.LOSSES.register('softmax')(print)", "'softmax' is in the table"),
        (
            "import flaxcls\nflaxcls.add_option(flaxcls.Option('seed', 1, 'x'))",
            'config.seed already',
        ),
    ],
)
@pytest.mark.usefixtures('forget')
def test_a_file_that_fails_is_a_sentence_and_leaves_nothing(text, says, here):
    before = dict(flaxcls.LOSSES)
    if text is not None:
        (here / 'mine.py').write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        flaxcls.load_config(None, {'extensions': 'mine.py'})
    assert '\n' not in str(caught.value)
    assert before == flaxcls.LOSSES


@pytest.mark.parametrize(
    ('lines', 'says'),
    [
        ("flaxcls.LOSSES.register('mine')(lambda logits, targets: 0)", 'would not find'),
        ("flaxcls.MODELS['mine'] = flaxcls.MODELS['resnet20']", 'cannot be assigned to'),
    ],
)
@pytest.mark.usefixtures('forget')
def test_what_nobody_else_would_find_is_refused(lines, says, here):
    text = f'import flaxcls\n{lines}\ndef get_config():\n  return flaxcls.default_config()'
    (here / 'experiment.py').write_text(text)
    with pytest.raises(UserError, match=says):
        flaxcls.load_config('experiment.py')


@pytest.mark.usefixtures('forget')
def test_a_module_that_can_be_imported_is_an_extension(here):
    package = here / 'package'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'part.py').write_text('LOSS = "own"')
    (package / 'mine.py').write_text(
        'import flaxcls\nfrom package.part import LOSS\n'
        'flaxcls.LOSSES.register(LOSS)(lambda logits, targets: logits.sum(-1))'
    )
    config = flaxcls.load_config(None, {'extensions': 'package.mine', 'loss': 'own'})
    assert config.loss == 'own'
    (package / 'relative.py').write_text('from .part import LOSS')
    with pytest.raises(UserError, match='relative import'):  # As the copy in a run would fail.
        flaxcls.load_config(None, {'extensions': 'package.relative'})
    with pytest.raises(UserError, match=r'neither a file that ends in .py nor a module'):
        flaxcls.load_config(None, {'extensions': 'package.none'})


@pytest.mark.usefixtures('forget')
def test_configs_of_others_lack_the_options_and_a_new_version_counts(here):
    config = flaxcls.load_config('my_experiment.py')
    assert config.focal_gamma == 1
    assert 'focal_gamma' not in flaxcls.default_config()
    with pytest.raises(UserError, match=r'no option config.focal_gamma'):
        flaxcls.load_config(None, {'focal_gamma': 1})
    path = here / 'my_experiment.py'
    path.write_text(path.read_text().replace("'focal_gamma', 2.0", "'focal_gamma', 3.0"))
    again = flaxcls.load_config('my_experiment.py')
    assert again.extensions != config.extensions
    assert flaxcls.SCHEDULES['restarts'].__name__ == 'cosine_with_restarts'
    wrong = flaxcls.load_config('my_experiment.py', {'focal_gamma': -1})
    with pytest.raises(UserError, match=r'focal_gamma=-1.0 must be at least 0'):
        validate(wrong)
