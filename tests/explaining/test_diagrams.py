"""Pictures of networks: complete, legible, and in no need of anything else."""

import functools
import re
from xml.etree import ElementTree

import matplotlib.font_manager
import pytest
from PIL import ImageFont

from flaxcls.commands import models
from flaxcls.errors import UserError
from flaxcls.explaining.diagram_units import find_units, fold_names
from flaxcls.explaining.diagrams import BLOCKS, block_diagram, module_diagram, network_diagram
from flaxcls.models.registry import MODELS, create_model
from flaxcls.models.summary import list_layers
from flaxcls.models.trace import trace_layers
from tests.helpers.documents import ROOT

_SVG = '{http://www.w3.org/2000/svg}'
_TIMES = '\N{MULTIPLICATION SIGN}'
# Those that docs/ shows.
_FIGURES = ('resnet50', 'densenet121')
# Forms that no row of MODELS has.
_FORMS = [
    ('resnet20', {'shortcut': 'none'}),
    ('resnet20', {'shortcut': 'C', 'stochastic_depth_rate': 0.2}),
    ('resnet18_d', {'shortcut': 'A'}),
    ('densenet_bc_100_12', {'dropout_rate': 0.2, 'block_sizes': (3, 1, 2)}),
    ('alexnet', {'width_multiplier': 0.1, 'lrn': 'caffe'}),
]
_POST = _PRE = ('BatchNorm', 'ReLU')
_RELU6 = ('BatchNorm', 'ReLU6')
# Kind of block -> what stands in it from left to right, and what else.
_BASIC = ['conv 3x3', *_POST, 'conv 3x3', *_POST]
_BOTTLENECK = ['conv 1x1', *_POST, 'conv 3x3', *_POST, 'conv 1x1', *_POST]
_BLOCK_WORDS = {
    'plain': (_BASIC, set()),
    'residual': (_BASIC, {'identity'}),
    'projection': (_BASIC, {'conv 1x1, 128, stride 2 · BatchNorm'}),
    'bottleneck': (_BOTTLENECK, {'identity'}),
    'resnext': (_BOTTLENECK, {'identity', '32 groups'}),
    'inverted': (
        ['conv 1x1', *_RELU6, 'depthwise 3x3', *_RELU6, 'conv 1x1', 'BatchNorm'],
        {'identity', '192'},
    ),
    'preactivation': (
        [*_PRE, 'conv 1x1', *_PRE, 'conv 3x3', *_PRE, 'conv 1x1'],
        {'identity'},
    ),
    'dense': ([*_PRE, 'conv 1x1', *_PRE, 'conv 3x3'], {'64 + 32 = 96 channels', 'C'}),
    'transition': ([*_PRE, 'conv 1x1', 'avg pool'], {'2x2', 'stride 2'}),
}


@functools.cache
def _font(bold, mono):
    family = 'DejaVu Sans Mono' if mono else 'DejaVu Sans'
    weight = 'bold' if bold else 'normal'
    found = matplotlib.font_manager.FontProperties(family=family, weight=weight)
    return ImageFont.truetype(matplotlib.font_manager.findfont(found), 100)


def _box(element):
    """Returns left, top, right and bottom of a text in DejaVu, the widest of common fonts."""
    x, y, size = (float(element.get(key)) for key in ('x', 'y', 'font-size'))
    font = _font(element.get('font-weight') == '600', 'mono' in element.get('class'))
    width = font.getlength(element.text) * size / 100
    left = x - {'start': 0, 'middle': 0.5, 'end': 1}[element.get('text-anchor', 'start')] * width
    box = left, y - 0.75 * size, left + width, y + 0.2 * size
    if turn := re.match(r'rotate\(-90 (\S+) (\S+)\)', element.get('transform', '')):
        cx, cy = map(float, turn.groups())
        corners = [(cx + (b - cy), cy - (a - cx)) for a in box[::2] for b in box[1::2]]
        box = (*map(min, zip(*corners, strict=True)), *map(max, zip(*corners, strict=True)))
    return box


def _is_within(inner, outer):
    return all(a >= b - 0.5 for a, b in zip(inner[:2], outer[:2], strict=True)) and all(
        a <= b + 0.5 for a, b in zip(inner[2:], outer[2:], strict=True)
    )


def _overlap(a, b):
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5


def _assert_legible(svg):
    """Every text lies within the picture, a box's within the box, and none on another."""
    picture = tuple(map(float, svg.get('viewBox').split()))
    assert picture[2] <= 1000
    texts = [(element, _box(element)) for element in svg.iter(f'{_SVG}text')]
    for index, (element, box) in enumerate(texts):
        assert _is_within(box, picture), element.text
        for other, other_box in texts[:index]:
            assert not _overlap(box, other_box), (element.text, other.text)
    for group in svg.iter(f'{_SVG}g'):
        frame = group.find(f'{_SVG}rect')
        if frame is not None:
            x, y, width, height = (float(frame.get(k)) for k in ('x', 'y', 'width', 'height'))
            for element in group.iter(f'{_SVG}text'):
                assert _is_within(_box(element), (x, y, x + width, y + height)), element.text


def _assert_stands_by_itself(text, svg):
    assert not re.search(r'href|src=|url\(|@import|<script', text)
    assert text.count('http') == 1  # The namespace.
    assert (svg.get('role'), svg.find(f'{_SVG}title').text is not None) == ('img', True)
    named = svg.get('aria-labelledby').split()
    assert [svg.find(f'{_SVG}{tag}').get('id') for tag in ('title', 'desc')] == named
    assert len(svg.find(f'{_SVG}desc').text) > 20
    for size in ('width', 'height'):
        assert float(svg.get(size)) > 0


def _rgb(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _assert_readable_in_both_modes(svg):
    """Every class has colours in both modes, and texts stand out from all that is below them."""
    style = svg.find(f'{_SVG}style').text
    light, dark = style.split('@media (prefers-color-scheme:dark)')
    used = {
        kind
        for element in svg.iter()
        if element.tag in {f'{_SVG}{tag}' for tag in ('rect', 'text', 'path', 'circle')}
        for kind in element.get('class').split()
    } - {'mono'}
    for mode in (light, dark):
        fills = dict(re.findall(r'\.(\w+)\{fill:(#\w{6})', mode))
        known = set(re.findall(r'\.(\w+)\{(?:fill|stroke):#', mode))
        assert used <= known
        for ink in ('ink', 'quiet'):
            for kind in fills.keys() - {'ink', 'quiet', 'head'}:
                a, b = sorted(map(_luminance, (fills[ink], fills[kind])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, kind)


def _assert_complete(svg, layers):
    """The boxes stand for all layers with a window or a product, and the rows for all weights."""
    shown = dict.fromkeys(('conv', 'dense', 'pool'), 0)
    times = {element.text for element in svg.iter(f'{_SVG}text')}
    for group in svg.iter(f'{_SVG}g'):
        count = int(group.get('data-count'))
        assert count == 1 or f'{_TIMES}{count}' in times
        if group.get('data-kind') in shown:
            shown[group.get('data-kind')] += count
    conv = sum(layer.kernel is not None and layer.macs > 0 for layer in layers)
    dense = sum(layer.kernel is None and layer.macs > 0 for layer in layers)
    pool = sum('Pool' in layer.kind for layer in layers)
    assert shown == {'conv': conv, 'dense': dense, 'pool': pool}
    of_rows = [
        int(element.text.split()[0].replace(',', ''))
        for element in svg.iter(f'{_SVG}text')
        if element.text.endswith(' parameters')
    ]
    total = sum(layer.parameters for layer in layers)
    assert sum(of_rows) == total
    assert any(f'{total:,} parameters ·' in text for text in times)


@pytest.mark.parametrize(('name', 'options'), [*((name, {}) for name in MODELS), *_FORMS], ids=str)
def test_every_network_is_drawn_whole_and_legibly(name, options):
    size, model = MODELS[name].image_size, create_model(name, **options)
    text = str(network_diagram(name, model=model))
    svg = ElementTree.fromstring(text)
    _assert_legible(svg)
    _assert_stands_by_itself(text, svg)
    _assert_readable_in_both_modes(svg)
    _assert_complete(svg, list_layers(model, size))


@pytest.mark.parametrize('kind', BLOCKS)
def test_every_kind_of_block_is_drawn_and_shown_by_a_notebook(kind):
    diagram = block_diagram(kind)
    text = diagram._repr_svg_()
    svg = ElementTree.fromstring(text)
    _assert_legible(svg)
    _assert_stands_by_itself(text, svg)
    _assert_readable_in_both_modes(svg)
    words = [element.text.replace(_TIMES, 'x') for element in svg.iter(f'{_SVG}text')]
    order, others = _BLOCK_WORDS[kind]
    assert [word for word in words if word in order] == order
    assert others <= set(words)


def test_repetitions_are_folded_and_channels_of_dense_blocks_added():
    def units(name):
        return find_units(trace_layers(create_model(name), MODELS[name].image_size))

    assert [unit.count for unit in units('resnet152') if unit.names] == [1, 2, 1, 7, 1, 35, 1, 2]
    dense = [unit for unit in units('densenet121') if unit.is_dense]
    assert [(unit.count, unit.input[-1], unit.output[-1]) for unit in dense] == [
        (6, 64, 256), (12, 128, 512), (24, 256, 1024), (16, 512, 1024)
    ]  # fmt: skip
    assert fold_names(('stage3_block2', 'stage3_block3', 'stage3_block36')) == 'stage3_block2…36'
    assert fold_names(('stage1_block1',)) == 'stage1_block1'


@pytest.mark.parametrize('name', _FIGURES)
def test_figures_of_the_documentation_are_those_of_the_command(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models.main([name, '--svg'])
    assert capsys.readouterr().out.strip() == f'{name}.svg'
    drawn = (tmp_path / f'{name}.svg').read_text(encoding='utf-8')
    kept = (ROOT / f'docs/figures/{name}.svg').read_text(encoding='utf-8')
    assert drawn == kept, f'flaxcls models {name} --svg=docs/figures/{name}.svg'
    assert f'figures/{name}.svg' in (ROOT / 'docs/models.md').read_text(encoding='utf-8')


def test_the_command_draws_other_options_to_stdout(capsys):
    models.main(['resnet20', '--svg=-', '--config.model.stage_sizes=1,1', '--image_size=48'])
    text = capsys.readouterr().out
    assert ElementTree.fromstring(text).tag == f'{_SVG}svg'
    assert 'stage2_block1' in text
    assert 'stage3' not in text
    assert f'48{_TIMES}48' in text


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--svg', 'resnet20'], 'needs a network before it'),
        (['resnet21', '--svg'], 'did you mean'),
        (['resnet20', '--svg', '--config.seed=1'], 'changes no layer'),
        (['resnet20', '--config.model.name=vgg16'], 'changes no layer'),
        (['--config.model.lrn=paper'], 'needs a network'),
        (['vgg16', '--svg', '--image_size=8'], 'smallest is 32'),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(arguments, says):
    with pytest.raises(UserError, match=says):
        models.main(arguments)


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(UserError, match='stage9'):
        module_diagram(create_model('resnet20'), 'stage9_block1', image_size=32)
    with pytest.raises(UserError, match='did you mean residual'):
        block_diagram('residul')
