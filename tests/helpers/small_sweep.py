"""A sweep of small networks, for tests to import."""

import pathlib

from flaxcls.sweeping.definition import values, zipped

ROOT = pathlib.Path('somewhere')
DEPTH = zipped(['4', '6'], {'model.stage_sizes': [(1,), (1, 1)]})
WIDTH = values('model.width_multiplier', [0.125, 0.25, 0.5])
SMALL = {
    'config': 'experiments/digits_resnet20.py',
    'axes': {'depth': DEPTH, 'width': WIDTH},
    'seeds': 2,
}
