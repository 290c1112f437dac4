"""Exported networks predict as flaxcls does, where there is no flaxcls, or are not kept."""

import dataclasses
import errno
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from flaxcls.commands import export as export_command
from flaxcls.errors import RunError, UserError
from flaxcls.exporting import export, formats, run
from flaxcls.exporting.certificate import Bounds, certify
from flaxcls.exporting.formats import FORMATS, Request
from flaxcls.exporting.jax_promise import readable_until
from flaxcls.exporting.onnx_files import join_relu6
from flaxcls.exporting.samples import take_samples
from flaxcls.inference.classifier import Classifier
from flaxcls.training.restore import load_run, open_run
from tests.helpers.configs import TRAINED
from tests.helpers.converters import need_converter
from tests.helpers.networks import NETWORKS, draw_images, draw_variables, make_config
from tests.helpers.runs import common_folder, train_once
from tests.helpers.unpack import classifier_of


def _if_installed(names):
    missing = {
        name: [module for module in FORMATS[name].needs if not importlib.util.find_spec(module)]
        for name in names
    }
    return [
        pytest.param(name, marks=pytest.mark.skipif(bool(missing[name]), reason=f'{missing[name]}'))
        for name in names
    ]


@pytest.fixture(autouse=True)
def converter(request):
    """Fetches what the test's format is converted with, at the first test of all."""
    form = getattr(request.node, 'callspec', None) and request.node.callspec.params.get('form')
    if form and FORMATS[form].converter:
        need_converter(FORMATS[form].converter)


FORMS = _if_installed(FORMATS)
EXACT = _if_installed(
    [name for name, form in FORMATS.items() if form.bounds.difference is not None]
)
# The page's file is that of `onnx` with maps besides, and StableHLO is JAX's own program, which
# test_folded_network_is_the_network compares for every network: one of each family is enough.
ANSWERING = [
    pytest.param(name, *form.values, marks=form.marks)
    for name in NETWORKS
    for form in EXACT
    if form.values not in (('web',), ('stablehlo',))
    or name in ('alexnet', 'resnet20', 'densenet_bc_100_12')
]
ABOUT = {'class_names': ['a'], 'preprocessing': {'shorter_side': 80}}


def make_classifier(name):
    config = make_config(name)
    names = [f'class {index}' for index in range(10)]
    return classifier_of(config, draw_variables(config), names, temperature=1.5)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Trained for longer, since eight bits leave only the sure predictions as they are."""
    options = TRAINED | {'num_epochs': 6}
    return train_once(common_folder(tmp_path_factory), 'longer', options)


@pytest.fixture(scope='module')
def exported(finished, tmp_path_factory):
    """The folder of a StableHLO export of that run, and its certificate."""
    folder = tmp_path_factory.mktemp('exported') / 'out'
    return folder, export.export(finished.workdir, 'stablehlo', folder, images=20)


@pytest.mark.parametrize(('name', 'form'), ANSWERING)
def test_exported_network_predicts_as_the_network(name, form, tmp_path):
    classifier = make_classifier(name)
    images = draw_images(make_config(name), 7)
    file = tmp_path / FORMATS[form].file
    FORMATS[form].write(Request(classifier, ABOUT), file)
    expected = classifier.to_probabilities(classifier.classify(images))
    predict = run.load(str(file))
    for count in (1, 7):
        found = predict(images[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('bound_first', [False, True])
def test_a_relu_and_a_minimum_become_one_clip_unless_another_sees_between_them(bound_first):
    helper = pytest.importorskip('onnx').helper
    given, between, other, out = (
        helper.make_tensor_value_info(name, 1, [5]) for name in ('x', 'r', 'y', 'out')
    )
    six = helper.make_tensor('six', 1, [], [6.0])
    relu = helper.make_node('Relu', ['x'], ['r'])
    minimum = helper.make_node('Min', ['six', 'r'] if bound_first else ['r', 'six'], ['out'])
    graph = helper.make_graph([relu, minimum], 'g', [given], [out], [six])
    join_relu6(graph)
    assert [node.op_type for node in graph.node] == ['Clip']
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 21)], ir_version=10)
    evaluator = pytest.importorskip('onnx.reference').ReferenceEvaluator(model)
    x = np.array([-1, 0, 3, 6, 9], np.float32)
    np.testing.assert_array_equal(evaluator.run(None, {'x': x})[0], [0, 0, 3, 6, 6])

    seen = helper.make_node('Neg', ['r'], ['y'])
    graph = helper.make_graph(
        [relu, seen, minimum], 'g', [given], [other, out], [six], value_info=[between]
    )
    join_relu6(graph)
    assert [node.op_type for node in graph.node] == ['Relu', 'Neg', 'Min']


@pytest.mark.parametrize('form', _if_installed(sorted(FORMATS.keys() - {'web'})))
def test_a_full_disk_is_reported_as_such(form, tmp_path):
    classifier = make_classifier('resnet20')
    images = draw_images(make_config('resnet20'), 8)
    file = tmp_path / FORMATS[form].file
    file.symlink_to('/dev/full')
    with pytest.raises(OSError) as caught:
        FORMATS[form].write(Request(classifier, ABOUT, images), file)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ('form', 'writer'),
    [
        ('onnx', 'onnxruntime.InferenceSession'),
        ('onnx-int8', 'onnxruntime.quantization.quantize_static'),
    ],
)
@pytest.mark.parametrize(('free', 'raised'), [(1000, OSError), (2**30, ValueError)])
def test_what_fails_for_want_of_room_alone_is_a_full_disk(
    form, writer, free, raised, tmp_path, monkeypatch
):
    """Of libraries that do not look whether a file is written whole."""
    pytest.importorskip('onnxruntime')
    classifier = make_classifier('resnet20')
    request = Request(classifier, ABOUT, draw_images(make_config('resnet20'), 8))
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)

    def fail(*_, **__):
        raise ValueError('a network cannot be parsed')

    monkeypatch.setattr(writer, fail)
    with pytest.raises(raised):
        FORMATS[form].write(request, tmp_path / 'model.onnx')


@pytest.mark.parametrize('form', _if_installed(['onnx-int8']))
def test_pairs_of_products_in_int8_fit_into_16_bits(form, tmp_path):
    """As processors without VNNI add them: elsewhere nobody would notice."""
    import onnx

    request = Request(make_classifier('resnet20'), ABOUT, draw_images(make_config('resnet20'), 8))
    FORMATS[form].write(request, tmp_path / 'model.onnx')
    graph = onnx.load(tmp_path / 'model.onnx').graph
    arrays = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    weights = [a for a in arrays.values() if a.dtype == np.int8 and a.ndim > 1]
    assert weights
    assert all(2 * 255 * abs(array.astype(int)).max() < 2**15 for array in weights)


@pytest.mark.parametrize('form', FORMS)
def test_a_run_is_exported_with_its_proof(form, workdir, tmp_path):
    certificate = export.export(workdir, form, tmp_path / 'new' / 'out', images=100)
    folder = tmp_path / 'new' / 'out'
    files = {path.name for path in folder.iterdir()}
    network = FORMATS[form].file
    assert files >= {
        network, 'certificate.json', 'class_names.json', 'preprocessing.json', 'run.py'
    }  # fmt: skip
    assert not [name for name in files if name.startswith('.')]
    stored = json.loads((folder / 'certificate.json').read_text())
    assert stored['passed'] is True
    assert stored['images'] == 100
    assert stored['sha256'] == certificate.sha256
    assert stored['bytes'] == (folder / network).stat().st_size
    assert (stored['readable_until'] is not None) == (form == 'stablehlo')
    assert abs(stored['accuracy_before'] - stored['accuracy_after']) <= 0.02
    assert stored['accuracy_before'] > 0.5
    assert json.loads((folder / 'class_names.json').read_text()) == list('0123456789')
    assert json.loads((folder / 'preprocessing.json').read_text())['side'] == 12


def test_an_export_that_jax_reads_says_until_when(exported):
    folder, certificate = exported
    until = readable_until(certificate.versions_of_export['jaxlib']).isoformat()
    stored = json.loads((folder / 'certificate.json').read_text())
    assert stored['readable_until'] == until
    assert certificate.describe().splitlines()[2] == (
        f'written by JAX {jax.__version__}; releases of JAX until {until} promise to read it, and '
        '--format=onnx is for archives'
    )
    lasting = dataclasses.replace(certificate, format='onnx', readable_until=None)
    assert len(lasting.describe().splitlines()) == 2


def test_what_travels_along_runs_without_flaxcls(workdir, tmp_path):
    pytest.importorskip('onnxruntime')
    need_converter('jax2onnx')
    export.export(workdir, 'onnx', tmp_path, images=20)
    classifier = Classifier.load(workdir)
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8)
    np.save(tmp_path / 'images.npy', images)
    code = (
        'import sys, runpy; sys.modules["flaxcls"] = sys.modules["jax"] = None;'
        'sys.argv = ["run.py", "model.onnx", "images.npy", "predictions.npy"];'
        'runpy.run_path("run.py", run_name="__main__")'
    )
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)
    predicted = np.load(tmp_path / 'predictions.npy')
    np.testing.assert_allclose(predicted, classifier.predict(images), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('form', FORMS)
def test_a_wrong_export_is_rejected_and_the_good_one_before_stays(
    form, workdir, tmp_path, monkeypatch
):
    out = tmp_path / 'out'
    export.export(workdir, form, out, images=50)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    right = Classifier.load

    def load_broken(*args, **options):
        classifier = right(*args, **options)
        kernel = classifier.variables['params']['head']['dense']['kernel']
        classifier.variables['params']['head']['dense']['kernel'] = -kernel
        return classifier

    def write(request, path):
        classifier = load_broken(workdir)
        FORMATS[form].write(request._replace(classifier=classifier), path)

    broken = FORMATS[form]._replace(write=write)
    monkeypatch.setattr(export, 'find_format', lambda _: broken)
    with pytest.raises(RunError, match=r'predictions are the same .* kept in .*\.rejected'):
        export.export(workdir, form, out, images=50)
    for name, content in before.items():
        assert (out / name).read_bytes() == content
    rejected = tmp_path / 'out.rejected'
    assert json.loads((rejected / 'certificate.json').read_text())['passed'] is False
    assert (rejected / broken.file).is_file()
    assert {path.name for path in tmp_path.iterdir()} == {'out', 'out.rejected'}


@pytest.mark.parametrize('scale', [2.0, np.nan])
def test_one_wrong_weight_is_enough(scale, workdir, tmp_path):
    classifier = Classifier.load(workdir)
    samples = take_samples(classifier, open_run(workdir).dataset.val, 20)
    params = jax.tree.map(np.array, classifier.variables['params'])
    kernel = params['stem']['kernel']
    kernel[np.unravel_index(np.abs(kernel).argmax(), kernel.shape)] *= scale
    wrong = Classifier.load(workdir)
    wrong.variables = {**classifier.variables, 'params': params}
    file = wrong.export(tmp_path / 'model.stablehlo')
    bounds = Bounds(agreement=0, difference=1e-4)
    assert not certify('stablehlo', file, classifier, samples, bounds).passed
    assert certify('stablehlo', file, wrong, samples, bounds).passed == np.isfinite(scale)


def test_bounds_are_the_users(workdir, tmp_path):
    with pytest.raises(RunError, match='--min_agreement=1 and differences up to 0 allow'):
        export.export(workdir, 'stablehlo', tmp_path, images=20, max_difference=0)


def test_samples_are_spread_over_the_split(workdir):
    classifier = Classifier.load(workdir)
    images = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((12, 12, 3), np.uint8)

    class Split:
        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            return images[index], index // 10

    samples = take_samples(classifier, Split(), 10)
    assert samples.labels.tolist() == list(range(10))
    assert len(take_samples(classifier, Split(), 500).images) == 100


@pytest.mark.parametrize('form', [name for name, found in FORMATS.items() if found.needs])
def test_a_missing_package_is_named_with_its_command(form, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(UserError, match=re.escape(FORMATS[form].install)):
        formats.find_format(form)


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--format=onxx'], 'did you mean onnx?'),
        (['--format=stablehlo', '--images=0'], '--images=0 must be positive'),
        (
            ['--format=stablehlo', '--min_agreement=95'],
            '--min_agreement=95.0 must be within 0 and 1',
        ),
        (['--format=stablehlo', '--max_difference=nan'], '--max_difference=nan must be 0 or more'),
        (['--format=stablehlo', '--config.data.mean=0,0,0'], 'data.mean would change the network'),
        (['--format=stablehlo', '--imges=3'], '--images'),
        (['--format=stablehlo', '--language=zh'], '--format=stablehlo has none; leave it out'),
        (['--format=stablehlo', '--workdir=nowhere'], 'nowhere'),
    ],
    ids=str,
)
def test_mistakes_are_reported_in_a_sentence(flags, says, workdir, tmp_path):
    with pytest.raises(UserError) as caught:
        export_command.main([f'--workdir={workdir}', f'--out={tmp_path / "out"}', *flags])
    assert says in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_cannot_be_is_reported_before_any_work(workdir, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='is a file'):
        export.export(workdir, 'stablehlo', tmp_path / 'file' / 'below')
    with pytest.raises(UserError, match='is empty'):
        export.export(workdir, 'stablehlo', '')


def test_files_that_no_export_has_written_are_left_alone(workdir, tmp_path):
    for name in ('run.py', 'index.html', 'notes.txt'):
        folder = tmp_path / name.partition('.')[0]
        folder.mkdir()
        (folder / name).write_text('mine')
        with pytest.raises(UserError, match=f'not part of an export, such as {name}'):
            export.export(workdir, 'stablehlo', folder, images=20)
        assert [path.name for path in folder.iterdir()] == [name]
    export.export(workdir, 'stablehlo', tmp_path / 'out', images=20)
    (tmp_path / 'out' / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match=r'such as notes\.txt'):
        export.export(workdir, 'stablehlo', tmp_path / 'out', images=20)
    with pytest.raises(UserError, match='not part of an export'):
        export.export(workdir, 'stablehlo', workdir, images=20)
    (tmp_path / 'new.rejected').mkdir()
    (tmp_path / 'new.rejected' / 'mine.txt').write_text('mine')
    with pytest.raises(UserError, match=r'new\.rejected has files .* such as mine'):
        export.export(workdir, 'stablehlo', tmp_path / 'new', images=20)


def test_another_format_takes_the_place_of_the_earlier_one(workdir, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, 'other', FORMATS['stablehlo']._replace(file='other.stablehlo'))
    monkeypatch.setattr(export, 'EXPORT_FILES', export.EXPORT_FILES | {'other.stablehlo'})
    export.export(workdir, 'other', tmp_path / 'out', images=20)
    export.export(workdir, 'stablehlo', tmp_path / 'out', images=20)
    assert not (tmp_path / 'out' / 'other.stablehlo').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('field', ['largest_difference', 'batch_difference'])
@pytest.mark.parametrize('value', [np.nan, np.inf, 2e-4])
def test_a_certificate_passes_only_with_numbers_within_its_bounds(field, value, exported):
    _, good = exported
    assert good.passed
    wrong = dataclasses.replace(good, **{field: value})
    assert not wrong.passed
    assert json.loads(wrong.to_json())['passed'] is False
    loose = dataclasses.replace(wrong, bounds=Bounds(agreement=1.0, difference=None))
    assert loose.passed == np.isfinite(value)


def _draw(folder):
    """Writes pictures of every kind that takes a step of its own; returns their files."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (30, 47, 4), np.uint8)
    picture = Image.fromarray(colours[..., :3])
    picture.save(folder / 'plain.png')
    Image.fromarray(colours).save(folder / 'transparent.png')
    Image.fromarray(colours[..., 0]).save(folder / 'grey.png')
    Image.fromarray(rng.integers(0, 65536, (20, 31), np.uint16)).save(folder / 'deep.png')
    exif = Image.Exif()
    exif[274] = 6
    picture.save(folder / 'turned.png', exif=exif)
    picture.quantize(16).save(folder / 'palette.gif')
    return sorted(folder.iterdir())


def test_pictures_are_prepared_without_flaxcls_as_with_it(workdir, tmp_path):
    classifier = Classifier.load(workdir)
    (tmp_path / 'pictures').mkdir()
    for file in _draw(tmp_path / 'pictures'):
        with Image.open(file) as picture:
            found = run.prepare(picture, classifier.side, classifier.side).astype(int)
        expected = classifier.preprocess(file).astype(int)
        assert np.abs(found - expected).max() <= 1, file


def test_pictures_are_named_without_flaxcls(exported, workdir, tmp_path, capsys):
    folder, _ = exported
    (tmp_path / 'pictures').mkdir()
    files = _draw(tmp_path / 'pictures')
    run.main([str(folder / 'model.stablehlo'), *map(str, files)])
    lines = capsys.readouterr().out.splitlines()[-len(files) :]
    for line, file, expected in zip(
        lines, files, Classifier.load(workdir).predict(files), strict=True
    ):
        assert line.split('  ')[0] == str(file)
        assert line.split('  ')[1].split()[0] == str(expected.argmax())


@pytest.mark.parametrize(
    ('images', 'says'),
    [
        (np.zeros((2, 12, 12, 3), np.float32), r'float32 \[2, 12, 12, 3\]; give uint8'),
        (np.zeros((12, 12, 3), np.uint8), r'uint8 \[12, 12, 3\]'),
        (np.zeros((0, 12, 12, 3), np.uint8), r'uint8 \[0, 12, 12, 3\]'),
        (np.zeros((2, 9, 9, 3), np.uint8), 'error: '),
    ],
    ids=['float', 'one image', 'no image', 'another side'],
)
def test_wrong_images_are_a_sentence_without_flaxcls(images, says, exported, tmp_path):
    folder, _ = exported
    np.save(tmp_path / 'images.npy', images)
    network = folder / 'model.stablehlo'
    with pytest.raises(SystemExit, match=says):
        run.main([str(network), str(tmp_path / 'images.npy'), str(tmp_path / 'predictions.npy')])


def test_a_set_smaller_than_a_batch_is_enough_to_compare(workdir, tmp_path):
    images = load_run(workdir)[0].dataset.val.images
    for index in range(20):
        for part in ('train', 'val'):
            folder = tmp_path / 'set' / part / str(index % 10)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index, ..., 0]).save(folder / f'{index}.png')
    overrides = {'data.source': f'folder:{tmp_path / "set"}'}
    found = export.export(workdir, 'stablehlo', tmp_path / 'out', overrides=overrides)
    assert found.images == 20
    assert found.data == overrides['data.source']


def test_a_network_that_is_wrong_in_batches_alone_is_found(tmp_path, monkeypatch, capsys):
    def predict(images):
        return np.full((len(images), 10), len(images), np.float32)

    monkeypatch.setattr(run, 'load', lambda path: predict)
    np.save(tmp_path / 'images.npy', np.zeros((3, 8, 8, 3), np.uint8))
    run.main(['model.onnx', str(tmp_path / 'images.npy'), str(tmp_path / 'predictions.npy')])
    difference = json.loads(capsys.readouterr().out)['batch_difference']
    assert difference == run.BATCH_SIZE - 1
