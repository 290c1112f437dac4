"""What a trained network sees, on networks and images whose prediction is known."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flaxcls
from flaxcls.commands import explain
from flaxcls.errors import RunError, UserError
from flaxcls.explaining import methods
from flaxcls.explaining.attribution import (
    cam,
    grad_cam,
    integrated_gradients,
    occlusion,
    smooth_grad,
)
from flaxcls.explaining.features import feature_maps, first_filters, nearest_neighbours
from flaxcls.explaining.plots import draw_curves, overlay
from flaxcls.models.init import init_variables
from flaxcls.models.intermediates import apply_with_intermediates
from flaxcls.training.from_config import create_network
from tests.helpers.configs import TINY
from tests.helpers.unpack import classifier_of

NETWORKS = {
    'resnet': {'model.name': 'resnet20', 'model.stage_sizes': '1,1'},
    'densenet': {
        'model.name': 'densenet_40_12',
        'model.block_sizes': '2,2',
        'model.growth_rate': 4,
        'model.width_multiplier': None,
        'model.stage_sizes': None,
    },
    'alexnet': {
        'model.name': 'alexnet',
        'model.width_multiplier': 0.05,
        'model.stage_sizes': None,
        'data.image_size': 64,
    },
}
METHODS = {
    'grad_cam': grad_cam,
    'cam': cam,
    'integrated_gradients': lambda *given: integrated_gradients(*given, steps=2),
    'smooth_grad': lambda *given: smooth_grad(*given, samples=2),
    'occlusion': lambda *given: occlusion(*given, stride=4),
}
BY_MEANS = ['resnet', 'densenet']  # Whose classifier is one layer over the means of a map.


@pytest.fixture(scope='module', params=NETWORKS)
def classifier(request):
    return _random_classifier(request.param)


def _random_classifier(name, **more):
    """A network of random weights, whose BatchNorm has seen something."""
    options = TINY | {'model.num_classes': 5, 'data.image_size': 12} | NETWORKS[name] | more
    config = flaxcls.load_config(None, options)
    model, size = create_network(config), config.data.image_size
    variables = init_variables(model, jax.random.key(0), size)
    rng = np.random.default_rng(1)
    variables['batch_stats'] = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 2, x.shape), x.dtype), variables['batch_stats']
    )
    return classifier_of(config, variables, 'abcde')


def _methods(classifier):
    by_means = 'dense' in classifier.variables['params']['head']
    return METHODS if by_means else {k: v for k, v in METHODS.items() if k != 'cam'}


def _images(classifier, count):
    rng = np.random.default_rng(2)
    return rng.integers(0, 256, (count, classifier.side, classifier.side, 3), dtype=np.uint8)


def test_maps_are_those_of_the_predictions_and_of_an_image_alone(classifier):
    images = _images(classifier, 5)
    predicted = classifier.classify(images).argmax(-1)
    others = (predicted + 1) % 5
    for name, method in _methods(classifier).items():
        heat = method(classifier, images)
        assert heat.dtype == np.float32 and len(heat) == 5 and heat.ndim in (3, 4), name
        tolerance = {'rtol': 1e-4, 'atol': 1e-5 * np.abs(heat).max(), 'err_msg': name}
        np.testing.assert_allclose(method(classifier, images, predicted), heat, **tolerance)
        np.testing.assert_allclose(method(classifier, images[3:4]), heat[3:4], **tolerance)
        assert np.abs(method(classifier, images, others) - heat).max() > tolerance['atol'], name


@pytest.mark.parametrize('name', BY_MEANS)
def test_grad_cam_is_cam_but_for_the_scale(name):
    """Grad-CAM, arXiv:1610.02391, section 3.1: of such networks it is a generalization of CAM."""
    classifier = _random_classifier(name)
    images, classes = _images(classifier, 20), np.arange(20) % 5
    weighted = cam(classifier, images, classes)
    heat = grad_cam(classifier, images, classes)
    assert (heat > 0).any() and (heat == 0).any()
    pixels = heat.shape[1] * heat.shape[2]
    np.testing.assert_allclose(heat * pixels, np.maximum(weighted, 0), rtol=1e-5, atol=1e-5)
    bias = np.asarray(classifier.variables['params']['head']['dense']['bias'])
    logits = classifier.classify(images)[np.arange(20), classes]
    np.testing.assert_allclose(weighted.mean((1, 2)) + bias[classes], logits, rtol=1e-4, atol=1e-5)


def test_grad_cam_of_a_layer_is_its_equations():
    classifier = _random_classifier('resnet')
    layer, images = 'stage1_block1/conv1', _images(classifier, 2)
    normalized = classifier.normalize(images)
    output = feature_maps(classifier, images, layer)

    def logit(shift):
        perturbations = {layer: shift}
        logits, _ = apply_with_intermediates(
            classifier.model, classifier.variables, normalized, [layer], perturbations=perturbations
        )
        return logits[:, 3].sum()

    weights = jax.grad(logit)(jnp.zeros(output.shape)).mean((1, 2))
    expected = np.maximum(np.einsum('nhwc,nc->nhw', output, weights), 0)
    heat = grad_cam(classifier, images, np.array([3, 3]), layer=layer)
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_are_complete(classifier):
    """The sum over an image is its logit less that of black (arXiv:1703.01365, proposition 1)."""
    images, classes = _images(classifier, 3), np.array([0, 2, 4])
    logits = classifier.classify(images) - classifier.classify(np.zeros_like(images))
    expected = logits[np.arange(3), classes]
    errors = [
        np.abs(integrated_gradients(classifier, images, classes, steps=steps).sum((1, 2, 3))
               - expected).max()
        for steps in (2, 128)
    ]  # fmt: skip
    assert errors[1] < 0.02 * np.abs(expected).max() + 1e-4
    assert errors[1] < errors[0]


def test_smooth_grad_without_noise_is_the_gradient(classifier):
    images, classes = _images(classifier, 2), np.array([1, 1])

    def logit(pixels):
        normalized = classifier.normalize(pixels)
        return classifier.model.apply(classifier.variables, normalized, train=False)[:, 1].sum()

    expected = jax.jit(jax.grad(logit))(images.astype(np.float32))
    heat = smooth_grad(classifier, images, classes, samples=2, noise=0)
    np.testing.assert_allclose(heat, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    first, again, other = (
        smooth_grad(classifier, images, classes, samples=2, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-5 * np.abs(expected).max()


def test_occlusion_is_the_fall_of_the_logit():
    classifier = _random_classifier(
        'resnet', **{'data.mean': (0.0, 0.0, 0.0)}
    )  # Covers with black.
    images, classes = _images(classifier, 2), np.array([1, 4])
    heat = occlusion(classifier, images, classes, window=6, stride=4)
    assert heat.shape == (2, 3, 3)
    for row in range(3):
        for column in range(3):
            covered = images.copy()
            top, left = 4 * row - 1, 4 * column - 1  # In the middle of the cell.
            covered[:, max(top, 0) : top + 6, max(left, 0) : left + 6] = 0
            fall = classifier.classify(images) - classifier.classify(covered)
            expected = fall[np.arange(2), classes]
            np.testing.assert_allclose(heat[:, row, column], expected, rtol=1e-3, atol=1e-4)


def test_programs_are_compiled_once(caplog):
    classifier = _random_classifier('resnet')
    images = _images(classifier, 2)

    def compiled():
        caplog.clear()
        with jax.log_compiles():
            for method in METHODS.values():
                method(classifier, images)
            feature_maps(classifier, images, 'stem')
        return [record.getMessage() for record in caplog.records if 'Compil' in record.msg]

    assert 5 <= len(compiled()) <= 8  # Occlusion's are of few and of many.
    assert compiled() == []


def test_what_does_not_fit_is_refused(classifier):
    images = _images(classifier, 2)
    for method in _methods(classifier).values():
        with pytest.raises(UserError, match=r"are not uint8 \[N, .*crops='center'"):
            method(classifier, images[:, :-1])
        for classes in ([0, 5], [-1, 0], [0], [0.0, 1.0]):
            with pytest.raises(UserError, match='are not a number from 0 to 4 for each of 2'):
                method(classifier, images, np.array(classes))
    with pytest.raises(UserError, match='is not a map'):
        grad_cam(classifier, images, layer='features')
    with pytest.raises(UserError, match=r'did you mean feature_map\?'):
        feature_maps(classifier, images, 'featuremap')
    for call in (
        lambda: integrated_gradients(classifier, images, steps=0),
        lambda: smooth_grad(classifier, images, samples=0),
        lambda: occlusion(classifier, images, window=0),
        lambda: occlusion(classifier, images, stride=-1),
    ):
        with pytest.raises(UserError, match='is not a positive number'):
            call()


def test_cam_needs_a_classifier_over_means():
    classifier = _random_classifier('alexnet')
    with pytest.raises(UserError, match='which alexnet has not; take grad_cam'):
        cam(classifier, _images(classifier, 1))


@pytest.mark.parametrize('name', NETWORKS)
def test_filters_are_the_first_weights_centred_at_grey(name):
    classifier = _random_classifier(name)
    kernel = next(
        leaf for leaf in jax.tree.leaves(classifier.variables['params'])
        if leaf.ndim == 4 and leaf.shape[2] == 3
    )  # fmt: skip
    filters = first_filters(classifier)
    assert filters.shape == (kernel.shape[3], *kernel.shape[:3]) and filters.dtype == np.float32
    assert filters.min() >= 0 and filters.max() <= 1
    np.testing.assert_allclose(np.abs(filters - 0.5).max((1, 2, 3)), 0.5, rtol=1e-6)
    weights = np.moveaxis(np.asarray(kernel), -1, 0)
    ratio = (filters - 0.5) / weights
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1, :1], ratio.shape), rtol=1e-3)


def test_the_nearest_point_the_same_way():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 6)).astype(np.float32)
    queries = features[[3, 7]] * 5
    found = nearest_neighbours(features, queries, 4)
    assert found.shape == (2, 4) and found[:, 0].tolist() == [3, 7]
    for query, places in zip(queries, found, strict=True):
        cosines = features @ query / np.linalg.norm(features, axis=1)
        assert places.tolist() == sorted(range(20), key=lambda i: -cosines[i])[:4]
    with pytest.raises(UserError, match='k=21 neighbours are not among 20'):
        nearest_neighbours(features, queries, 21)


def test_an_overlay_is_strongest_where_the_heat_is():
    image = np.full((32, 32, 3), 128, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    np.testing.assert_array_equal(overlay(image, heat), image)
    np.testing.assert_array_equal(overlay(image, heat - 1), image)
    heat[1, 2] = 7
    laid = overlay(image, heat)
    assert laid.shape == image.shape and laid.dtype == np.uint8
    changed = np.abs(laid.astype(int) - 128).sum(-1)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert 8 <= row < 16 and 16 <= column < 24
    assert (changed[24:] == 0).all() and (changed[:, :8] == 0).all()
    np.testing.assert_array_equal(overlay(image, 100 * heat), laid)


def test_curves_show_loss_and_accuracy_of_every_run(tmp_path):
    keys = ('train/loss', 'train/accuracy', 'val/loss', 'val/accuracy')
    runs = {name: [{'epoch': e, key: 0.5} for e in (1, 2) for key in keys] for name in 'ab'}

    def picture():
        draw_curves(runs, 'title', tmp_path / 'curves.png')
        return (tmp_path / 'curves.png').read_bytes()

    seen = {picture()}
    for record, key in zip(runs['b'], keys, strict=False):
        record[key] = 0.7
        seen.add(picture())
    assert len(seen) == 1 + len(keys)


@pytest.fixture(scope='module', params=BY_MEANS)
def workdir(request, finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / request.param
    if request.param == 'resnet':
        return shutil.copytree(finished.workdir, folder)
    options = TINY | {'num_epochs': 1, 'batch_size': 256} | NETWORKS[request.param]
    flaxcls.train_and_evaluate(flaxcls.load_config(None, options), folder)
    return folder


def _run(workdir, *arguments):
    explain.main([f'--workdir={workdir}', *arguments])


def test_every_method_draws_a_picture(workdir, capsys):
    of_a_resnet = 'resnet' in str(workdir)  # Which has no other picture than a DenseNet but depth.
    for method in ['depth'] if of_a_resnet else methods.METHODS:
        _run(workdir, f'--method={method}')
        path = workdir / f'{method}.png'
        assert f'wrote {path}' in capsys.readouterr().out
        assert Image.open(path).convert('RGB').getcolors(10) is None, method  # It has more.
    if of_a_resnet:
        with pytest.raises(UserError, match='take a DenseNet'):
            _run(workdir, '--method=reuse')


def test_files_layers_and_classes_may_be_named(workdir, write_images):
    folder = write_images({'a.png': (9, 14), 'b.png': (30, 20)})
    files = [str(folder / name) for name in ('a.png', 'b.png')]
    layer = 'stage1_block1' if 'resnet' in str(workdir) else 'block1_layer2'
    pictures = []
    for flags in ([], ['--class=7'], [f'--layer={layer}'], ['--method=neighbours']):
        out = folder / 'out.png'
        _run(workdir, f'--out={out}', *flags, *files)
        pictures.append(out.read_bytes())
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--method=gradcam'], r"--method='gradcam' is unknown \(did you mean grad_cam\?\)"),
        (['--class=cat'], "--class='cat' is unknown; choose from 0, 1"),
        (['--layer=feature_mop'], r"no layer 'feature_mop' \(did you mean feature_map\?\)"),
        (['--method=occlusion', '--layer=stem'], 'takes no --layer; grad_cam, feature_maps would'),
        (['--method=filters', '--class=3'], 'takes no --class; grad_cam, cam'),
        (['--method=depth', 'a.png'], 'takes no images; grad_cam'),
        (['--metod=cam'], 'did you mean --method?'),
    ],
)
def test_a_wrong_name_is_refused_naming_the_nearest(workdir, flags, says):
    with pytest.raises(UserError, match=says):
        _run(workdir, *flags)


def test_data_that_is_gone_is_reported_where_it_is_needed(tmp_path, write_images):
    folder = write_images({f'set/{part}/{c}/{i}.png': (8, 8) for part in ('train', 'val')
                           for c in 'ab' for i in range(4)})  # fmt: skip
    config = flaxcls.load_config(
        None, TINY | {'data.source': f'folder:{folder}/set', 'num_epochs': 1, 'batch_size': 8}
    )
    flaxcls.train_and_evaluate(config, tmp_path / 'run')
    (folder / 'set').rename(folder / 'elsewhere')
    with pytest.raises(UserError, match='--method=grad_cam looks for validation images, and'):
        _run(tmp_path / 'run')
    _run(tmp_path / 'run', str(folder / 'elsewhere/val/a/0.png'))
    with pytest.raises(RunError, match=r'absent\.png: No such file'):
        _run(tmp_path / 'run', str(folder / 'absent.png'))


@pytest.mark.parametrize(
    ('out', 'says'), [('', 'is a folder; name a file'), ('/x.foo', 'must end in .png, .jpg')]
)
def test_a_picture_that_cannot_be_is_refused_before_any_work(workdir, tmp_path, out, says):
    with pytest.raises(UserError, match=says):
        _run(workdir, f'--out={tmp_path}{out}')
    with pytest.raises(UserError, match='there is no folder'):
        _run(workdir, f'--out={tmp_path}/absent/x.png')
