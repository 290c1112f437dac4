"""A patch is planted in noise, and the heat has to lie on it, in every family of networks."""

import numpy as np
import pytest
from PIL import Image

import flaxcls
from flaxcls.explaining.attribution import cam, grad_cam, occlusion
from flaxcls.inference.classifier import Classifier

# The class is the quadrant with the coloured patch, a chequer of random squares, among grey ones.
# Every quadrant has its colour: a network that averages over its map would know a place without it
# by what the padding does at the borders alone, and look there. The grey ones keep a network whose
# dense layers know places from taking any chequer for the patch, and the images with nothing but
# grey ones, a class of their own, from recognising a quadrant by what is not in the three others.
QUADRANTS = {
    'top_left': (60, 60, 255),
    'top_right': (60, 255, 60),
    'bottom_left': (255, 60, 60),
    'bottom_right': (255, 255, 60),
}
NOWHERE = 'nowhere'
GREY = (160, 160, 160)
SHARE = 4  # Of the image's side by a patch's.
# Each place of a feature map sees a part of the image; where it sees all, heat may lie anywhere.
FAMILIES = {
    'alexnet_bn': {
        'model.width_multiplier': 0.125,
        'model.dropout_rate': 0.0,
        'data.image_size': 224,
        'optimizer.learning_rate': 1e-3,
    },
    'resnet20': {'model.stage_sizes': '1,1,1', 'data.image_size': 48, 'num_epochs': 5},
    'densenet_bc_100_12': {
        'model.block_sizes': '2,2,2',
        'model.growth_rate': 8,
        'data.image_size': 48,
        'num_epochs': 5,
    },
}


def _plant(rng, size, coloured):
    """Returns an image uint8 [S, S, 3], its coloured patch in a quadrant, and that one's corner."""
    image = rng.normal((124, 116, 104), 6, (size, size, 3)).clip(0, 255).astype(np.uint8)
    side, half = size // SHARE, size // 2
    corners = {}
    for place, (quadrant, colour) in enumerate(QUADRANTS.items()):
        top, left = half * np.array(divmod(place, 2)) + rng.integers(0, half - side + 1, 2)
        squares = rng.integers(0, 2, (side // 2, side // 2, 1)).repeat(2, 0).repeat(2, 1)
        squares = squares * (colour if quadrant == coloured else GREY)
        image[top : top + side, left : left + side] = squares
        corners[quadrant] = top, left
    return image, corners.get(coloured)


def _write_set(folder, size, count, seed):
    """Writes `count` images of each class; returns files and corners [N, 2] of coloured patches."""
    rng, paths, corners = np.random.default_rng(seed), [], []
    for name in [*QUADRANTS, NOWHERE]:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image, corner = _plant(rng, size, name)
            paths.append(folder / name / f'{index}.png')
            Image.fromarray(image).save(paths[-1], compress_level=1)
            corners.append(corner)
    planted = [path for path, corner in zip(paths, corners, strict=True) if corner]
    return planted, np.array([corner for corner in corners if corner])


def _hits(heat, corners, size):
    """Returns for each map [N, h, w] whether the cell of its maximum meets the patch."""
    count, height, width = heat.shape
    hottest = np.stack(np.divmod(heat.reshape(count, -1).argmax(-1), width), axis=-1)
    cell = np.array([size / height, size / width])
    first, side = hottest * cell, size // SHARE
    return ((first + cell > corners) & (first < corners + side)).all(-1)


# The others take a minute each; that their maps are what they should be, test_methods.py has too.
@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=() if n == 'resnet20' else pytest.mark.weekly) for n in FAMILIES],
)
def test_the_maximum_lies_on_the_patch(name, tmp_path):
    options = FAMILIES[name]
    size = options['data.image_size']
    _write_set(tmp_path / 'set' / 'train', size, 64, seed=0)
    paths, corners = _write_set(tmp_path / 'set' / 'val', size, 25, seed=1)
    config = {
        'model.name': name,
        'data.source': f'folder:{tmp_path / "set"}',
        'data.cache': 'memory',
        'batch_size': 32,
        'num_epochs': 8,
        'eval_every_epochs': 8,  # At the end alone.
        'log_every_steps': 1000,
        'optimizer.name': 'adamw',
        'optimizer.learning_rate': 3e-3,
    }
    flaxcls.train_and_evaluate(flaxcls.load_config(None, config | options), tmp_path / 'run')
    classifier = Classifier.load(tmp_path / 'run')
    images = np.stack([classifier.preprocess(path) for path in paths])
    methods = {'grad_cam': grad_cam} if name == 'alexnet_bn' else {'grad_cam': grad_cam, 'cam': cam}
    rates = {
        key: _hits(method(classifier, images), corners, size).mean()
        for key, method in methods.items()
    }
    few = slice(None, None, 20)
    covered = occlusion(classifier, images[few], stride=size // 8)
    rates['occlusion'] = _hits(covered, corners[few], size).mean()
    assert min(rates.values()) >= 0.95, rates
