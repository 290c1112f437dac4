"""Plots of matplotlib as SVG that lies within a page and takes its colours and its font from it."""

import contextlib
import io
import pathlib
import re
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from flaxcls.system.files import naming

INK = '#010203'  # Becomes the colour of the text around.
_RUN = '#f0f0{:02x}'  # Becomes --run-0, --run-1, ... of the page's style.
NUM_COLOURS = 6
_NO_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
_REFERENCE = re.compile(r'(?:^|url\()#([^)]+)')
_STYLE = {
    'svg.fonttype': 'none',
    'font.size': 8.5,
    'text.color': INK,
    'text.parse_math': False,
    'axes.edgecolor': INK,
    'axes.labelcolor': INK,
    'axes.linewidth': 0.6,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'axes.facecolor': 'none',
    'axes.grid': True,
    'grid.color': INK,
    'grid.alpha': 0.12,
    'grid.linewidth': 0.6,
    'xtick.color': INK,
    'ytick.color': INK,
    'xtick.major.width': 0.6,
    'ytick.major.width': 0.6,
    'xtick.major.size': 3,
    'ytick.major.size': 3,
    'ytick.minor.size': 0,
    'lines.solid_capstyle': 'round',
}


def run_colour(index: int) -> str:
    """Returns the colour to draw the run of that index in."""
    return _RUN.format(index % NUM_COLOURS)


@contextlib.contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """Yields an empty matplotlib Figure, of a size in inches, in the style of the page."""
    import matplotlib  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    with matplotlib.rc_context(_STYLE):
        yield Figure((width, height), layout='constrained', facecolor='none')


def render(drawn: Any, name: str, title: str) -> str:
    """Returns a figure as an <svg> element for a page of HTML.

    Args:
      drawn: a matplotlib Figure.
      name: of letters, digits and hyphens, unlike those of other figures of the page; it begins
        every id.
      title: what the picture shows, in a sentence without markup.
    """
    import matplotlib  # noqa: PLC0415 - slow to import

    file = io.StringIO()
    with matplotlib.rc_context(_STYLE | {'svg.hashsalt': name}), warnings.catch_warnings():
        # The browser has fonts for the text, whatever matplotlib's lack.
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')
        drawn.savefig(file, format='svg', metadata=_NO_METADATA)
    # matplotlib has no option for any of the following.
    svg = ElementTree.fromstring(file.getvalue())
    for parent in svg.iter():
        parent.tag = _without_namespace(parent.tag)
        parent.attrib = {_without_namespace(key): text for key, text in parent.items()}
        for child in list(parent):  # The page has a style of its own.
            if child.tag.endswith('}defs') and child.find('{*}style') is not None:
                parent.remove(child)
    _own_ids(svg, name)
    for element in svg.iter():
        element.attrib = {key: _shorten(text) for key, text in element.items()}
        element.text, element.tail = map(_without_line_breaks, (element.text, element.tail))
    heading = ElementTree.Element('title', {'id': f'{name}-title'})
    heading.text = title
    svg.insert(0, heading)
    about = {'class': 'plot', 'role': 'img', 'aria-labelledby': f'{name}-title'}
    svg.attrib = {'viewBox': svg.get('viewBox')} | about
    text = ElementTree.tostring(svg, encoding='unicode').replace(INK, 'currentColor')
    for index in range(NUM_COLOURS):
        text = text.replace(run_colour(index), f'var(--run-{index})')
    return text


def save(drawn: Any, path: pathlib.Path) -> None:
    """Writes a figure as a file that stands by itself, .svg or .png, on white."""
    import matplotlib  # noqa: PLC0415 - slow to import

    style = {'svg.fonttype': 'path', 'svg.hashsalt': path.stem}
    metadata = {'Date': None} if path.suffix == '.svg' else None
    with matplotlib.rc_context(_STYLE | style), naming(path):
        drawn.savefig(path, facecolor='white', dpi=200, metadata=metadata)


def _own_ids(svg: ElementTree.Element, name: str) -> None:
    """Keeps the ids that are referred to, beginning with the figure's name, and drops the rest."""
    used = {
        reference[1]
        for element in svg.iter()
        for text in element.attrib.values()
        for reference in _REFERENCE.finditer(text)
    }
    for element in svg.iter():
        own = element.attrib.pop('id', None)
        element.attrib = {
            key: _REFERENCE.sub(lambda found: found[0].replace('#', f'#{name}-'), text)
            for key, text in element.items()
        }
        if own in used:
            element.set('id', f'{name}-{own}')


def _shorten(text: str) -> str:
    """Rounds the coordinates in an attribute to hundredths of a point."""
    round_ = lambda number: f'{float(number[0]):.2f}'.rstrip('0').rstrip('.')  # noqa: E731
    return re.sub(r'-?\d+\.\d{3,}', round_, ' '.join(text.split()))


def _without_namespace(name: str) -> str:
    return name.rpartition('}')[2]


def _without_line_breaks(text: str | None) -> str | None:
    return text if text and text.strip() else None
