"""How a unit is drawn: boxes in a row, shortcuts above them, a frame around a block."""

import dataclasses
import re

from flaxcls.explaining.diagram_units import (
    JOINS,
    NAMES,
    TIMES,
    Branch,
    Unit,
    box_kind,
    box_lines,
    by,
    describe,
    fold_names,
    is_strip,
)
from flaxcls.explaining.svg_canvas import Canvas, mono_width, text_width
from flaxcls.models.graph import Layer

BOX_HEIGHT = 64
_STRIP = 13.5
_GAP = 10
_RADIUS = 9
_EDGE = 13  # From a frame to the first box, where a shortcut leaves.
_LEVEL = 32  # From one shortcut to the one above.
_CAPTION = 11  # Sizes of text, px.
_SMALL = 9.5
_TITLE = 24  # Height of the line with a block's name.
_CONCATENATE = Layer('', 'Concatenate', (), ())


@dataclasses.dataclass
class _Arc:
    """A line around a part of the main path, from one x to another, and what lies on it."""

    branch: Branch
    label: str
    boxes: list[str]
    level: int = 0
    start: float = 0
    end: float = 0

    @property
    def needed(self) -> float:
        """The length that its boxes and its label take."""
        boxes = sum(_pill_width(text) + 12 for text in self.boxes)
        return max(boxes + 14, text_width(self.label, _SMALL) + 12)


def _pill_width(text: str) -> float:
    return text_width(text, _SMALL) + 12


class UnitShape:
    """A unit with the places of its parts; x counts from its left edge.

    Attributes:
      unit: what is drawn.
      width: px.
      exit: where the line behind the layers begins, px.
      ascent, descent: above and below the line that the layers lie on, px.
    """

    def __init__(self, unit: Unit):
        self.unit = unit
        self._framed = bool(unit.names)
        self._layers = [*unit.main, _CONCATENATE] if unit.is_dense else [*unit.main]
        self._arcs = [_Arc(b, '' if b.layers else 'identity', _pills(b)) for b in unit.branches]
        if unit.is_dense:
            growth, channels = unit.main[-1].output[-1], unit.output[-1]
            times = f'{unit.count}·{growth}' if unit.count > 1 else str(growth)
            label = f'{unit.input[-1]} + {times} = {channels} channels'
            around = Branch(-1, len(self._layers) - 1, ())
            self._arcs.append(_Arc(around, label, []))
        self._set_levels()
        self._place()
        levels = 1 + max((arc.level for arc in self._arcs), default=-1)
        self.descent = BOX_HEIGHT / 2 + (12 if self._framed else 0)
        self.ascent = BOX_HEIGHT / 2 + (_TITLE + 8 if self._framed else 18) + _LEVEL * levels

    @property
    def caption(self) -> str:
        """The code's name of the unit; '' of what has none."""
        if self._framed:
            return fold_names(self.unit.names)
        named = [self._main_layer(member) for member in self.unit.members]
        paths = tuple(layer.path for layer in named)
        return fold_names(paths) if named[0].parameters else ''

    @property
    def repeats(self) -> str:
        return f'{TIMES}{self.unit.count}' if self.unit.count > 1 else ''

    def _main_layer(self, member: tuple[Layer, ...]) -> Layer:
        return next((layer for layer in member if not is_strip(layer)), member[0])

    def _set_levels(self) -> None:
        spans = sorted(self._arcs, key=lambda arc: arc.branch.end - arc.branch.start)
        for number, arc in enumerate(spans):
            below = [
                other.level + 1
                for other in spans[:number]
                if other.branch.start < arc.branch.end and arc.branch.start < other.branch.end
            ]
            arc.level = max(below, default=0)

    def _place(self) -> None:
        """Places the layers, and moves a join to the right whose shortcut has no room."""
        self._x = []
        x = _EDGE if self._framed else 0
        for index, layer in enumerate(self._layers):
            x += self._gap(index) if index else 0
            for arc in self._arcs:
                if arc.branch.start == index - 1:
                    arc.start = x - self._gap(index) / 2 if index else x - _EDGE / 2
                if arc.branch.end == index:
                    x = max(x, arc.start + arc.needed - _RADIUS)
                    arc.end = x + _RADIUS
            self._x.append(x)
            x += _layer_width(layer)
        self.exit = self.width = x + (8 if self._framed else 0)
        size = _CAPTION if self._framed else 10
        title = mono_width(self.caption, size)
        title += text_width(self.repeats, 12, bold=True) + 12 if self.repeats else 0
        self.width = max(self.width, title + (20 if self._framed else 0))
        if self._framed:
            self.exit = self.width

    def _gap(self, index: int) -> float:
        """Returns the space between a layer and the one before."""
        layer, before = self._layers[index], self._layers[index - 1]
        if before.kind in JOINS and is_strip(layer):
            return 8
        leaves_here = any(arc.branch.start == index - 1 for arc in self._arcs)
        if leaves_here or layer.kind in JOINS or before.kind in JOINS or layer is _CONCATENATE:
            return _GAP
        if is_strip(layer):
            # In blocks that begin with a normalisation, each goes with the layer behind it.
            opens = self.unit.begins_with_strip and not is_strip(before)
            return _GAP if opens and layer.rate is None else 0
        return 0 if self.unit.begins_with_strip and is_strip(before) else _GAP

    def draw(self, canvas: Canvas, left: float, y: float) -> None:
        """Draws the unit with its layers on the line y."""
        if self._framed:
            canvas.rect(left, y - self.ascent, self.width, self.ascent + self.descent, 'frame', 8)
            if not self.unit.is_tangled:
                canvas.line([(left, y), (left + self.width, y)])
        self._write_caption(canvas, left, y)
        for arc in self._arcs:
            self._draw_arc(canvas, arc, left, y)
        for x, layer in zip(self._x, self._layers, strict=True):
            if layer is _CONCATENATE or layer.kind in JOINS:
                _draw_join(canvas, layer, left + x + _RADIUS, y)
            else:
                self._draw_layer(canvas, layer, left + x, y)

    def _write_caption(self, canvas: Canvas, left: float, y: float) -> None:
        if self._framed:
            x, height, size = left + 10, y - self.ascent + 14, _CAPTION
        else:
            x, height, size = left, y - BOX_HEIGHT / 2 - 9, 10
        if self.caption:
            kind = 'ink' if self._framed else 'quiet'
            canvas.text(x, height, self.caption, size, kind=kind, mono=True)
        if self.repeats:
            right = left + self.width - (10 if self._framed else 0)
            canvas.text(right, height, self.repeats, 12, anchor='end', bold=True)

    def _draw_layer(self, canvas: Canvas, layer: Layer, x: float, y: float) -> None:
        width, kind = _layer_width(layer), box_kind(layer)
        folded = [
            member[index]
            for index, own in enumerate(self.unit.members[0])
            if own is layer
            for member in self.unit.members
        ]
        parameters = sum(each.parameters for each in folded)
        about = f'{fold_names(tuple(each.path for each in folded))}: {describe(layer)}'
        about += f'; output {by(layer.output[1:])}'
        about += f'; {parameters:,} parameters' if parameters else ''
        canvas.open(about, kind=kind, count=len(folded))
        canvas.rect(x, y - BOX_HEIGHT / 2, width, BOX_HEIGHT, kind)
        if is_strip(layer):
            name = NAMES.get(layer.kind, layer.kind)
            text = f'{name} {layer.rate:g}' if layer.kind == 'Dropout' else name
            canvas.text(x + width / 2, y, text, _SMALL, anchor='middle', upwards=True)
        else:
            lines = box_lines(layer)
            height = y - 6.75 * (len(lines) - 1)
            for number, line in enumerate(lines):
                size = 10.5 if number < 2 else _SMALL
                options = {'anchor': 'middle', 'bold': not number}
                options['kind'] = 'ink' if number < 2 else 'quiet'
                canvas.text(x + width / 2, height + 13.5 * number, line, size, **options)
        canvas.close()

    def _draw_arc(self, canvas: Canvas, arc: _Arc, left: float, y: float) -> None:
        height = y - BOX_HEIGHT / 2 - 17 - _LEVEL * arc.level
        start, end = left + arc.start, left + arc.end
        canvas.line(
            [(start, y), (start, height), (end, height), (end, y - _RADIUS)],
            arrow=True,
        )
        middle = (start + end) / 2
        if arc.label:
            options = {'kind': 'quiet', 'anchor': 'middle'}
            canvas.text(middle, height - 9, arc.label, _SMALL, **options)
        widths = [_pill_width(text) for text in arc.boxes]
        x = middle - (sum(widths) + 12 * (len(widths) - 1)) / 2
        boxes = [layer for layer in arc.branch.layers if not is_strip(layer)]
        for text, width, layer in zip(arc.boxes, widths, boxes, strict=True):
            canvas.open(f'{layer.path}: {text}', kind=box_kind(layer), count=self.unit.count)
            canvas.rect(x, height - 10, width, 20, box_kind(layer))
            canvas.text(x + width / 2, height, text, _SMALL, anchor='middle')
            canvas.close()
            x += width + 12


def _pills(branch: Branch) -> list[str]:
    """Returns the texts of the boxes on a branch, each with the strips behind it."""
    texts: list[str] = []
    for layer in branch.layers:
        if is_strip(layer) and texts:
            texts[-1] += f' · {describe(layer)}'
        else:
            texts.append(describe(layer))
    return texts


def _layer_width(layer: Layer) -> float:
    if layer is _CONCATENATE or layer.kind in JOINS:
        return 2 * _RADIUS
    if is_strip(layer):
        return _STRIP
    first, *others = box_lines(layer)
    widths = [text_width(line, 10.5) for line in others]
    return max(50, text_width(first, 10.5, bold=True), *widths, 0) + 6


def _draw_join(canvas: Canvas, layer: Layer, x: float, y: float) -> None:
    words = {
        'Add': 'sum',
        'Multiply': 'product',
        'Concatenate': 'concatenation of the channels',
    }
    canvas.open(words.get(layer.kind, 'join'), kind='join', count=1)
    canvas.circle(x, y, _RADIUS, 'join')
    if layer.kind == 'Add':
        canvas.line([(x - 5, y), (x + 5, y)])
        canvas.line([(x, y - 5), (x, y + 5)])
    else:
        symbol = re.sub('Concatenate|Join', 'C', layer.kind.replace('Multiply', TIMES))
        canvas.text(x, y, symbol, 10.5, anchor='middle', bold=True)
    canvas.close()
