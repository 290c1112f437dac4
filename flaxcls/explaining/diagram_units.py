"""What a picture of a network shows: its blocks and layers, repetitions folded, and their words."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flaxcls.models.graph import Layer

TIMES = '\N{MULTIPLICATION SIGN}'
JOINS = ('Add', 'Multiply', 'Join')
# Beside those with a window or multiply-adds.
_BOXES = {'GlobalAvgPool', 'GlobalMaxPool', 'Subsample', 'PadChannels'}
NAMES = {
    'MaxPool': 'max pool',
    'AvgPool': 'avg pool',
    'AdaptiveAvgPool': 'avg pool',
    'StochasticDepth': 'Stoch. depth',
}
# As many fit beside one another.
_MOST_BOXES = 10


class Branch(NamedTuple):
    """What leads around a part of a unit's main path.

    Attributes:
      start: index in the main path of the layer whose output it takes; -1: the unit's input.
      end: index in the main path of the join that it leads to.
      layers: on it; none: it is the identity.
    """

    start: int
    end: int
    layers: tuple[Layer, ...]


@dataclasses.dataclass
class Unit:
    """A block, or a layer with its normalisation and activation.

    Attributes:
      names: of the block, and of those that are folded into it; (): it is no block.
      main: the layers of its main path.
      branches: around parts of it.
      members: all layers of the block, and of each that is folded into it.
      input: shape of the unit's input, concatenated.
      is_dense: its input is concatenated with its output.
      is_tangled: it has other paths than these, which are not drawn.
    """

    names: tuple[str, ...]
    main: tuple[Layer, ...]
    branches: tuple[Branch, ...]
    members: tuple[tuple[Layer, ...], ...]
    input: tuple[int, ...]
    is_dense: bool = False
    is_tangled: bool = False

    @property
    def count(self) -> int:
        """How many units it stands for."""
        return len(self.members)

    @property
    def output(self) -> tuple[int, ...]:
        """Shape of the unit's output, and of what it is concatenated with."""
        *size, channels = self.main[-1].output
        return (*size, channels * self.count + self.input[-1] if self.is_dense else channels)

    def only(self, name: str) -> 'Unit':
        """Returns one of the blocks that are folded into this one, by its name."""
        index = self.names.index(name)
        return dataclasses.replace(self, names=(name,), members=(self.members[index],))

    @property
    def begins_with_strip(self) -> bool:
        return is_strip(self.main[0])

    def signature(self) -> tuple:
        """Returns what units that are folded have in common: all but names and input channels."""
        return (
            bool(self.names),
            self.is_dense,
            tuple(map(_signature, self.main)),
            tuple((b.start, b.end, tuple(map(_signature, b.layers))) for b in self.branches),
        )


def by(numbers: Sequence[int]) -> str:
    """Returns numbers as in 3x3, with the sign of multiplication."""
    return TIMES.join(map(str, numbers))


def is_strip(layer: Layer) -> bool:
    """Returns whether a layer changes neither the size of a map nor its channels."""
    return not (layer.macs or layer.kernel or layer.kind in _BOXES or layer.kind in JOINS)


def box_kind(layer: Layer) -> str:
    """Returns the class of colours of a layer."""
    if layer.kernel and layer.macs:
        return 'conv'
    if 'Pool' in layer.kind:
        return 'pool'
    if layer.macs:
        return 'dense'
    if layer.rate is not None:
        return 'drop'
    if layer.parameters or layer.kind == 'LRN':
        return 'norm'
    return 'act' if is_strip(layer) else 'other'


def box_lines(layer: Layer) -> list[str]:
    """Returns what stands in a box, the first line in bold."""
    kernel = by(layer.kernel or ())
    stride = [f'stride {layer.stride}'] if layer.stride and layer.stride > 1 else []
    channels = str(layer.output[-1])
    if layer.is_depthwise:
        return [f'depthwise {kernel}', channels, *stride]
    if layer.kernel and layer.macs:
        groups = [f'{layer.groups} groups'] if layer.groups and layer.groups > 1 else []
        return [f'conv {kernel}', channels, *stride, *groups]
    if layer.kind.startswith('Global'):
        return ['global', 'max pool' if 'Max' in layer.kind else 'avg pool']
    if layer.kind == 'AdaptiveAvgPool':
        return ['avg pool', f'to {by(layer.output[1:3])}']
    if layer.kernel:
        return [NAMES.get(layer.kind, layer.kind), kernel, *stride]
    if layer.kind == 'Subsample':
        return stride
    if layer.kind == 'PadChannels':
        return ['zero-pad', f'to {channels}']
    return ['dense' if layer.kind == 'Dense' else layer.kind, channels]


def describe(layer: Layer) -> str:
    """Returns a layer in a line of words."""
    if layer.rate is not None:
        return f'{layer.kind} {layer.rate:g}'
    if is_strip(layer):
        return layer.kind
    first, *others = box_lines(layer)
    if layer.macs:
        return ', '.join([first, *others])
    return ', '.join([' '.join([first, *others[:1]]), *others[1:]])


def fold_names(names: tuple[str, ...]) -> str:
    """Returns the first name and what is other in the last, as in stage3_block2…36."""
    first, last = names[0], names[-1]
    if first == last:
        return first
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    while same and first[same - 1].isdigit():
        same -= 1
    return f'{first}…{last[same:]}'


def _signature(layer: Layer) -> tuple:
    if layer.kind == 'StochasticDepth':  # Its rate rises from block to block.
        return (layer.kind,)
    channels = None if is_strip(layer) else layer.output[-1]
    window = layer.kernel, layer.stride, layer.padding, layer.groups, layer.rate
    return (layer.kind, *window, layer.output[1:-1], channels)


def find_units(layers: Sequence[Layer]) -> list[Unit]:
    """Returns the units of a network in the order of its layers, equal neighbours folded."""
    found = [
        unit
        for name, run in _split(list(enumerate(layers)), 1)
        for unit in _units_of(layers, run, name)
    ]
    return [_fold(list(group)) for _, group in itertools.groupby(found, Unit.signature)]


def _fold(units: list[Unit]) -> Unit:
    first = units[0]
    names = tuple(name for unit in units for name in unit.names)
    members = tuple(member for unit in units for member in unit.members)
    return dataclasses.replace(first, names=names, members=members)


def _split(run: list[tuple[int, Layer]], depth: int) -> Iterator[tuple[str, list[int]]]:
    """Yields the name of a module and its layers, with as many boxes as fit beside one another."""
    module = lambda item: item[1].path.split('/')[:-1][:depth]  # noqa: E731
    for name, group in itertools.groupby(run, module):
        inside = list(group)
        deeper = any(layer.path.count('/') > depth for _, layer in inside)
        boxes = sum(not is_strip(layer) for _, layer in inside)
        if deeper and boxes > _MOST_BOXES:
            yield from _split(inside, depth + 1)
        else:
            yield '/'.join(name), [index for index, _ in inside]


def _units_of(layers: Sequence[Layer], run: list[int], name: str) -> Iterator[Unit]:
    """Yields the block that a run of layers is, or else each of its layers with its strips."""
    inside = [layers[index] for index in run]
    boxes = [layer for layer in inside if not is_strip(layer)]
    joins = any(layer.kind in JOINS for layer in inside)
    is_dense = bool(name and boxes) and _is_dense(layers, run)
    if name and (len(boxes) > 1 or joins or is_dense):
        yield _block(layers, run, name, is_dense)
        return
    for group in _groups(inside):
        shape = _joined_shape(layers, group[0].inputs)
        yield Unit((), tuple(group), (), (tuple(group),), shape)


def _is_dense(layers: Sequence[Layer], run: list[int]) -> bool:
    """Returns whether some later layer reads the output together with all that the run reads."""
    read = {source for index in run for source in layers[index].inputs}
    together = read - set(run) | {run[-1]}
    return any(together <= set(layer.inputs) for layer in layers[run[-1] + 1 :])


def _groups(inside: list[Layer]) -> Iterator[list[Layer]]:
    """Yields each layer that is drawn as a box, with the strips behind it."""
    group: list[Layer] = []
    for layer in inside:
        if group and not is_strip(layer):
            yield group
            group = []
        group.append(layer)
    yield group


def _joined_shape(layers: Sequence[Layer], inputs: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of the outputs of some layers, concatenated; of the image, its channels."""
    shapes = [layers[index].output if index >= 0 else (1, 3) for index in inputs]
    return (*shapes[-1][:-1], sum(shape[-1] for shape in shapes))


def _block(layers: Sequence[Layer], run: list[int], name: str, is_dense: bool) -> Unit:
    """Returns the block that the layers of a run are, with its longest path as the main one."""
    members = {index: layers[index] for index in run}
    before = _longest_paths(members)
    main = _back(run[-1], before)
    place = {index: position for position, index in enumerate(main)}
    branches, drawn = [], set(main)
    for index in main:
        if layers[index].kind in JOINS:
            for source in layers[index].inputs:
                if source != before[index]:
                    path = []
                    while source in members and source not in place:
                        path.insert(0, source)
                        source = before[source]
                    drawn |= set(path)
                    start = place.get(source, -1)
                    branches.append(Branch(start, place[index], tuple(layers[i] for i in path)))
    outside = [i for i in dict.fromkeys(layers[main[0]].inputs) if i not in members]
    inside = tuple(members.values())
    is_tangled = drawn != set(members)
    shown = inside if is_tangled else tuple(layers[index] for index in main)
    around = () if is_tangled else tuple(branches)
    shape = _joined_shape(layers, outside)
    return Unit((name,), shown, around, (inside,), shape, is_dense, is_tangled)


def _longest_paths(members: dict[int, Layer]) -> dict[int, int | None]:
    """Returns for each layer which of its inputs the way with the most boxes comes from."""
    length, before = {}, {}
    for index, layer in members.items():
        options = [source for source in layer.inputs if source in members]
        before[index] = max(options, key=length.get, default=None)
        own = 0.01 if is_strip(layer) else 1
        length[index] = own + (length[before[index]] if options else 0)
        outside = [source for source in layer.inputs if source not in members]
        if not options:
            before[index] = outside[0] if outside else None
    return before


def _back(last: int, before: dict[int, int | None]) -> list[int]:
    path = [last]
    while before.get(path[0]) in before:
        path.insert(0, before[path[0]])
    return path
