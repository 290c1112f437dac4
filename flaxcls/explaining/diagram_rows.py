"""How a network is drawn: its units in rows, one for each size of its maps, and a legend."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flaxcls.explaining.diagram_shapes import BOX_HEIGHT, UnitShape
from flaxcls.explaining.diagram_units import JOINS, TIMES, Unit, by, describe, fold_names, is_strip
from flaxcls.explaining.svg_canvas import Canvas, text_width

_LEFT = 160  # Where the units begin, px; left of it stands what is known of a row.
_RIGHT = 972  # Where a row ends, and another begins.
MARGIN = 10
_BETWEEN = 16  # Units of a row.
_PANEL = 14  # Space within a panel, above and below.
_TURN = 10  # How far behind a row that line goes.
_RETURN = 20  # Between rows, where the line runs from the end of one to the beginning of the next.
_IMAGE_WIDTH = 60


class Row(NamedTuple):
    """Units that stand beside one another; their maps have one size.

    Attributes:
      shapes: the units.
      x: left edge of each, px.
      units: those that the row's texts sum up; none: they stand at an earlier row.
    """

    shapes: list[UnitShape]
    x: list[float]
    units: list[Unit]

    @property
    def right(self) -> float:
        """Where the last unit ends, or the line behind it."""
        return self.x[-1] + max(self.shapes[-1].width, self.shapes[-1].exit + _TURN)

    @property
    def ascent(self) -> float:
        return max(shape.ascent for shape in self.shapes)

    @property
    def descent(self) -> float:
        return max(shape.descent for shape in self.shapes)

    @property
    def height(self) -> float:
        return self.ascent + self.descent + 2 * _PANEL


def arrange(units: Sequence[Unit]) -> Iterator[Row]:
    """Yields the rows: one for each size of maps, or more where it would be too wide."""
    x = _LEFT + _IMAGE_WIDTH + _BETWEEN
    for _, group in itertools.groupby(units, lambda unit: unit.output[1:-1]):
        inside = list(group)
        shapes, places, told = [], [], inside
        for unit in inside:
            shape = UnitShape(unit)
            if shapes and x + shape.width > _RIGHT:
                yield Row(shapes, places, told)
                shapes, places, told, x = [], [], [], _LEFT
            shapes.append(shape)
            places.append(x)
            x += shape.width + _BETWEEN
        yield Row(shapes, places, told)
        x = _LEFT


def draw_rows(
    canvas: Canvas, rows: Sequence[Row], image_size: int, top: float, width: float
) -> float:
    """Draws the rows one below the other, and returns where they end.

    Args:
      canvas: to draw on.
      rows: of `arrange`.
      image_size: side of the images, pixels.
      top: where they begin, px.
      width: of the picture, px.
    """
    y = top
    before = None
    for index, row in enumerate(rows):
        if row.units:
            more = itertools.takewhile(lambda later: not later.units, rows[index + 1 :])
            height = row.height + sum(_RETURN + later.height for later in more)
            canvas.rect(MARGIN, y, width - 2 * MARGIN, height, 'panel', 8)
        line = y + _PANEL + row.ascent
        if before is None:
            _draw_image(canvas, image_size, line)
        else:
            end, old_line = before
            turn, above = _LEFT - 14, y - _RETURN / 2
            points = [(end, old_line), (end + _TURN, old_line), (end + _TURN, above), (turn, above)]
            canvas.line([*points, (turn, line), (_LEFT, line)], arrow=True)
        end = None
        for shape, x in zip(row.shapes, row.x, strict=True):
            if end is not None:
                canvas.line([(end, line), (x, line)], arrow=True)
            shape.draw(canvas, x, line)
            end = x + shape.exit
        if row.units:
            _write_facts(canvas, row, y + _PANEL)
        before = end, line
        y += row.height + _RETURN
    return y - _RETURN


def _draw_image(canvas: Canvas, size: int, line: float) -> None:
    canvas.rect(_LEFT, line - BOX_HEIGHT / 2, _IMAGE_WIDTH, BOX_HEIGHT, 'image')
    for number, text in enumerate(('image', by((size, size)), '3')):
        x, y = _LEFT + _IMAGE_WIDTH / 2, line + 13.5 * (number - 1)
        canvas.text(x, y, text, 10.5, anchor='middle', bold=not number)
    canvas.line([(_LEFT + _IMAGE_WIDTH, line), (_LEFT + _IMAGE_WIDTH + _BETWEEN, line)], arrow=True)


def _write_facts(canvas: Canvas, row: Row, top: float) -> None:
    """Writes what a row's maps are, what its layers weigh, and what they see."""
    for number, text in enumerate(_facts(row)):
        size = 9.5 if number else 13
        options = {'kind': 'quiet' if number else 'ink', 'bold': not number}
        canvas.text(MARGIN + 8, top + 8 + 17 * number, text, size, **options)


def _facts(row: Row) -> list[str]:
    last = row.units[-1]
    parameters = sum(
        layer.parameters for unit in row.units for member in unit.members for layer in member
    )
    field = last.members[-1][-1].receptive_field
    size = by(last.output[1:])
    return [
        size if len(last.output) == 4 else f'{size} logits',
        *([f'{parameters:,} parameters'] if parameters else []),
        f'receptive field {field}' if field else 'sees the whole image',
    ]


def sentence(row: Row) -> str:
    """Returns the layers of a row in words."""
    units = '; '.join(_words(shape) for shape in row.shapes)
    return f'{_facts(row)[0] if row.units else "Further"}: {units}.'


def _words(shape: UnitShape) -> str:
    unit = shape.unit
    boxes = [x for x in unit.main if not is_strip(x) and x.kind not in JOINS]
    words = ' → '.join(describe(layer) for layer in boxes or unit.main)
    for branch in unit.branches:
        words += f', shortcut {" → ".join(map(describe, branch.layers)) or "identity"}'
    words += ', concatenated with its input' if unit.is_dense else ''
    words = f'{fold_names(unit.names)} ({words})' if unit.names else words
    return f'{words} {shape.repeats}'.rstrip()


def draw_legend(canvas: Canvas, rows: Sequence[Row], y: float, width: float) -> float:
    """Draws what the colours and symbols mean, and returns where it ends."""
    layers = [
        layer
        for row in rows
        for s in row.shapes
        for member in s.unit.members[:1]
        for layer in member
    ]
    kinds = {layer.kind for layer in layers}
    entries = []
    if any(layer.kernel and layer.macs for layer in layers):
        entries.append(('conv', 'convolution: kernel, output channels'))
    if any('Pool' in kind for kind in kinds):
        entries.append(('pool', 'pooling'))
    if any(layer.macs and not layer.kernel for layer in layers):
        entries.append(('dense', 'fully connected: outputs'))
    if 'Add' in kinds:
        entries.append(('+', 'sum'))
    if any(shape.unit.is_dense for row in rows for shape in row.shapes):
        entries.append(('C', 'concatenation of channels'))
    if any(shape.unit.count > 1 for row in rows for shape in row.shapes):
        entries.append((f'{TIMES}n', 'n times in a row'))
    x = MARGIN + 4
    for symbol, text in entries:
        needed = 24 + text_width(text, 10.5)
        if x + needed > width - MARGIN:
            x, y = MARGIN + 4, y + 22
        _draw_symbol(canvas, symbol, x, y)
        canvas.text(x + 24, y, text, 10.5, kind='quiet')
        x += needed + 20
    return y + 6


def _draw_symbol(canvas: Canvas, symbol: str, x: float, y: float) -> None:
    if symbol == f'{TIMES}n':
        canvas.text(x, y, symbol, 12, bold=True)
    elif symbol in '+C':
        canvas.circle(x + 8, y, 8, 'join')
        if symbol == '+':
            canvas.line([(x + 4, y), (x + 12, y)])
            canvas.line([(x + 8, y - 4), (x + 8, y + 4)])
        else:
            canvas.text(x + 8, y, 'C', 10, anchor='middle', bold=True)
    else:
        canvas.rect(x, y - 7, 16, 14, symbol, 3)
