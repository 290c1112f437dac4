"""Plots of matplotlib as SVG that lies within a page and takes its colours and its font from it."""

import contextlib
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any

INK = '#010203'  # Becomes the colour of the text around.
_RUN = '#f0f0{:02x}'  # Becomes --run-0, --run-1, ... of the page's style.
NUM_COLOURS = 6
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
    with matplotlib.rc_context(_STYLE | {'svg.hashsalt': name}):
        drawn.savefig(file, format='svg', metadata={'Date': None})
    text = file.getvalue()
    text = text[text.index('<svg') :]  # Without XML's declaration.
    for part in (r'<metadata>.*?</metadata>', r'<style.*?</style>', r'<!--.*?-->'):
        text = re.sub(part, '', text, flags=re.DOTALL)
    text = re.sub(r'<defs>\s*</defs>', '', text)
    text = _own_ids(text.replace('xlink:href', 'href'), name)
    text = re.sub(r'<[^>]*>', lambda tag: _shorten(tag[0]), text)
    text = text.replace(INK, 'currentColor')
    for index in range(NUM_COLOURS):
        text = text.replace(run_colour(index), f'var(--run-{index})')
    box = re.search(r'viewBox="[^"]*"', text)[0]
    begin = f'<svg {box} class="plot" role="img" aria-labelledby="{name}-title">'
    begin += f'<title id="{name}-title">{title}</title>'
    return begin + re.sub(r'\n\s*', '\n', text[text.index('>') + 1 :]).strip()


def save(drawn: Any, path: pathlib.Path) -> None:
    """Writes a figure as a file that stands by itself, .svg or .png, on white."""
    import matplotlib  # noqa: PLC0415 - slow to import

    style = {'svg.fonttype': 'path', 'svg.hashsalt': path.stem}
    metadata = {'Date': None} if path.suffix == '.svg' else None
    with matplotlib.rc_context(_STYLE | style):
        drawn.savefig(path, facecolor='white', dpi=200, metadata=metadata)


def _own_ids(text: str, name: str) -> str:
    """Keeps the ids that are referred to, beginning with the figure's name, and drops the rest."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else '', text)
    return re.sub(r'(url\(#|href="#)', rf'\g<1>{name}-', text)


def _shorten(tag: str) -> str:
    """Rounds the coordinates of a tag to hundredths of a point."""
    return re.sub(r'-?\d+\.\d{3,}', lambda m: f'{float(m[0]):.2f}'.rstrip('0').rstrip('.'), tag)
