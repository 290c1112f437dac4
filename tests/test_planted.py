"""A patch is planted in noise, and the heat has to lie on it, in every family of networks."""

import numpy as np
import pytest
from PIL import Image

import flaxcls
from flaxcls.attribution import cam, grad_cam, occlusion
from flaxcls.classifier import Classifier

# The class is the colour of the patch, a chequer of random squares, and its place is any: where the
# place itself is the class, the maps of networks that average over the map lie elsewhere.
COLOURS = {'blue': (60, 60, 255), 'green': (60, 255, 60), 'red': (255, 60, 60)}
COLOURS |= {'yellow': (255, 255, 60)}
SHARE = 3  # Of the image's side by the patch's.
FAMILIES = {
    # At 64 pixels each of its 3x3 places sees all of the image, wherever the patch is.
    'alexnet_bn': {
        'model.width_multiplier': 0.125,
        'model.dropout_rate': 0.0,
        'data.image_size': 224,
        'optimizer.learning_rate': 1e-3,
    },
    'resnet20': {'model.width_multiplier': 0.5, 'data.image_size': 32},
    'densenet_bc_100_12': {
        'model.block_sizes': '3,3,3',
        'model.growth_rate': 8,
        'data.image_size': 32,
    },
}


def _plant(rng, size, colour):
    """Returns an image with a patch in it, uint8 [S, S, 3], and the corner of the patch."""
    image = rng.normal((124, 116, 104), 6, (size, size, 3)).clip(0, 255).astype(np.uint8)
    side = size // SHARE
    squares = rng.integers(0, 2, (side // 2, side // 2, 1)).repeat(2, 0).repeat(2, 1)
    top, left = rng.integers(0, size - side + 1, 2)
    image[top : top + side, left : left + side] = squares * colour
    return image, (top, left)


def _write_set(folder, size, count, seed):
    """Writes `count` images of each class; returns their files and corners [N, 2]."""
    rng, paths, corners = np.random.default_rng(seed), [], []
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image, corner = _plant(rng, size, colour)
            paths.append(folder / name / f'{index}.png')
            Image.fromarray(image).save(paths[-1], compress_level=1)
            corners.append(corner)
    return paths, np.array(corners)


def _hits(heat, corners, size):
    """Tells of each map [N, h, w] whether the cell of its maximum meets the patch."""
    count, height, width = heat.shape
    hottest = np.stack(np.divmod(heat.reshape(count, -1).argmax(-1), width), axis=-1)
    cell = np.array([size / height, size / width])
    first, side = hottest * cell, size // SHARE
    return ((first + cell > corners) & (first < corners + side)).all(-1)


@pytest.mark.parametrize('name', FAMILIES)
def test_the_maximum_lies_on_the_patch(name, tmp_path):
    options = FAMILIES[name]
    size = options['data.image_size']
    _write_set(tmp_path / 'set' / 'train', size, 64, seed=0)
    paths, corners = _write_set(tmp_path / 'set' / 'val', size, 25, seed=1)
    config = {
        'model.name': name,
        'data.source': f'folder:{tmp_path / "set"}',
        'batch_size': 32,
        'num_epochs': 8,
        'eval_every_epochs': 8,
        'log_every_steps': 1000,
        'optimizer.name': 'adamw',
        'optimizer.learning_rate': 3e-3,
    }
    flaxcls.train_and_evaluate(flaxcls.load_config(None, config | options), tmp_path / 'run')
    classifier = Classifier.load(tmp_path / 'run')
    images = np.stack([classifier.prepare(path) for path in paths])
    methods = {'grad_cam': grad_cam} if name == 'alexnet_bn' else {'grad_cam': grad_cam, 'cam': cam}
    rates = {
        key: _hits(method(classifier, images), corners, size).mean()
        for key, method in methods.items()
    }
    few = slice(None, None, 20)
    covered = occlusion(classifier, images[few], stride=size // 8)
    rates['occlusion'] = _hits(covered, corners[few], size).mean()
    assert min(rates.values()) >= 0.95, rates
