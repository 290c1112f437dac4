"""Pictures of networks and of their blocks, drawn from the programs that they trace to.

network_diagram('resnet50').save('resnet50.svg')
block_diagram('bottleneck')  # As the last line of a notebook's cell, it is shown.
"""

import pathlib

import flax.linen as nn

from flaxcls.config.option import require_choice
from flaxcls.explaining.diagram_rows import MARGIN, arrange, draw_legend, draw_rows, sentence
from flaxcls.explaining.diagram_shapes import UnitShape
from flaxcls.explaining.diagram_units import by, describe, find_units
from flaxcls.explaining.svg_canvas import Canvas, text_width
from flaxcls.models.image_size import require_image_size
from flaxcls.models.registry import MODELS, create_model
from flaxcls.models.trace import trace_layers
from flaxcls.system.files import require_place, write_atomically

# Kind of block -> a network that has it, options of that network, and the block's name.
BLOCKS = {
    'plain': ('resnet34', {'shortcut': 'none'}, 'stage1_block1'),
    'residual': ('resnet34', {}, 'stage1_block1'),
    'projection': ('resnet34', {}, 'stage2_block1'),
    'bottleneck': ('resnet50', {}, 'stage1_block2'),
    'resnext': ('resnext50_32x4d', {}, 'stage1_block2'),
    'inverted': ('mobilenet_v2', {}, 'stage3_block2'),
    'preactivation': ('resnet50_v2', {}, 'stage1_block2'),
    'dense': ('densenet121', {}, 'block1_layer1'),
    'transition': ('densenet121', {}, 'transition1'),
}


class Diagram:
    """A picture; a notebook shows it, and `str` is its SVG."""

    def __init__(self, svg: str):
        self._svg = svg

    def __str__(self) -> str:
        return self._svg

    def _repr_svg_(self) -> str:
        return self._svg

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the picture into an .svg file; raises UserError if it cannot be there."""
        write_atomically(require_place(path), self._svg)


def network_diagram(
    name: str, *, image_size: int | None = None, model: nn.Module | None = None
) -> Diagram:
    """Returns the picture of a network, a row for each size of its maps.

    Args:
      name: a key of MODELS; with `model`, whatever it is to be called.
      image_size: pixels; None: the paper's, or 224.
      model: any network of Linen that is called with images and `train`; None: that of the name.

    Raises:
      UserError: there is no such network, or it does not take images of this size.
    """
    if model is None:
        require_choice('model.name', name, list(MODELS))
        model = create_model(name)
    row = MODELS.get(name)
    paper = row.paper if row else ''
    size = image_size or (row.image_size if row else 224)
    require_image_size(model, name, size, 'image_size')
    layers = trace_layers(model, size)
    parameters, macs = sum(x.parameters for x in layers), sum(x.macs for x in layers)
    facts = [f'{parameters:,} parameters', f'{macs / 1e9:.4f} GMACs']
    facts += [f'images of {by((size, size))} pixels', *filter(None, [paper])]
    rows = list(arrange(find_units(layers)))
    canvas = Canvas()
    canvas.text(MARGIN + 4, 26, name, 18, bold=True)
    canvas.text(MARGIN + 4, 50, ' · '.join(facts), 11.5, kind='quiet')
    texts = text_width(' · '.join(facts), 11.5) + 2 * MARGIN
    width = max(texts, *(row.right + 8 + MARGIN for row in rows), 680)
    bottom = draw_rows(canvas, rows, size, 70, width)
    bottom = draw_legend(canvas, rows, bottom + 22, width)
    about = f'The network {name}: its layers from the image to the logits'
    description = ' '.join(sentence(row) for row in rows)
    return Diagram(canvas.svg(width, bottom + 14, name, about, description))


def block_diagram(kind: str) -> Diagram:
    """Returns the picture of a block of a kind of BLOCKS, as a network here has it.

    Raises:
      UserError: there is no such kind.
    """
    require_choice('kind', kind, list(BLOCKS))
    name, options, block = BLOCKS[kind]
    return module_diagram(create_model(name, **options), block, title=f'{kind} ({name})')


def module_diagram(
    model: nn.Module, block: str, *, image_size: int = 224, title: str = ''
) -> Diagram:
    """Returns the picture of one block of a network.

    Args:
      model: a network of Linen that is called with images and `train`.
      block: its name there, such as stage2_block1.
      image_size: pixels.
      title: what stands above it; '': the block's name.

    Raises:
      UserError: the network has no such block.
    """
    layers = trace_layers(model, image_size)
    units = {name: unit for unit in find_units(layers) for name in unit.names}
    require_choice('block', block, list(units))
    shape = UnitShape(units[block].only(block))
    canvas = Canvas()
    height = 46 + shape.ascent
    input_, output = by(shape.unit.input[1:]), by(shape.unit.output[1:])
    left = text_width(input_, 10.5) + 40
    right = left + shape.width + 28
    canvas.text(MARGIN, 22, title or block, 14, bold=True)
    canvas.text(MARGIN, height, input_, 10.5, kind='quiet')
    canvas.line([(left - 22, height), (left, height)], arrow=True)
    shape.draw(canvas, left, height)
    canvas.line([(left + shape.exit, height), (right - 6, height)], arrow=True)
    canvas.text(right, height, output, 10.5, kind='quiet')
    width = max(right + text_width(output, 10.5), text_width(title, 14, bold=True)) + MARGIN
    about = f'The block {title or block}'
    words = ', '.join(describe(layer) for layer in shape.unit.main)
    return Diagram(canvas.svg(width, height + shape.descent + 14, block, about, f'{words}.'))
