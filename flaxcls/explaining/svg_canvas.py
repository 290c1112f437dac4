"""Shapes and texts of a picture in SVG that stands by itself, in light and in dark mode."""

import re
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

SANS = (
    "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'Noto Sans', 'PingFang SC', "
    "'Hiragino Sans GB', 'Microsoft YaHei', 'Noto Sans CJK SC', 'Source Han Sans SC', sans-serif"
)
MONO = (
    "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'PingFang SC', "
    "'Microsoft YaHei', 'Noto Sans Mono CJK SC', monospace"
)
# Class -> (what it colours, in light mode, in dark mode). Strokes and fills of one kind of layer
# have the same hue, and texts on them a contrast of at least 4.5 in both modes.
_COLOURS = {
    'page': (('fill', '#ffffff', '#12161b'),),
    'panel': (('fill', '#f4f6f9', '#1a2027'),),
    'frame': (('fill', '#ffffff', '#12161b'), ('stroke', '#c3ccd7', '#3d4955')),
    'image': (('fill', '#ffffff', '#12161b'), ('stroke', '#7b8794', '#8493a3')),
    'join': (('fill', '#ffffff', '#12161b'), ('stroke', '#5d6a78', '#93a1b0')),
    'conv': (('fill', '#dce9fa', '#1d3a5f'), ('stroke', '#5b8cc8', '#6b9fdd')),
    'pool': (('fill', '#dcf1e3', '#1c4130'), ('stroke', '#56a077', '#6cba8b')),
    'dense': (('fill', '#fbe3d8', '#563026'), ('stroke', '#cf7d58', '#e0926f')),
    'other': (('fill', '#eceff3', '#2a323b'), ('stroke', '#97a3b0', '#74818f')),
    'norm': (('fill', '#ebe6f7', '#322b4b'), ('stroke', '#9384c4', '#a394d8')),
    'act': (('fill', '#fdf4d3', '#453d1a'), ('stroke', '#bfa443', '#cdb458')),
    'drop': (('fill', '#ffffff', '#12161b'), ('stroke', '#97a3b0', '#74818f')),
    'line': (('stroke', '#5d6a78', '#93a1b0'),),
    'head': (('fill', '#5d6a78', '#93a1b0'),),
    'ink': (('fill', '#1b242e', '#e6ebf0'),),
    'quiet': (('fill', '#55616e', '#a3afbb'),),
}
# Widths of DejaVu Sans, which is wider than the other fonts, in units of the font's size.
_WIDTHS = {**dict.fromkeys('mMW%@…', 1.0), **dict.fromkeys('w\N{MULTIPLICATION SIGN}GOQD', 0.84)}
_WIDTHS |= {**dict.fromkeys('ijl', 0.28), **dict.fromkeys("tfrI.,:;'|·()[]/- ", 0.4)}


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Returns at most how wide a text of the sans-serif font is, px."""
    return size * sum(_WIDTHS.get(c, 0.65) for c in text) * (1.12 if bold else 1)


def mono_width(text: str, size: float) -> float:
    """Returns how wide a text of the fixed-width font is, px."""
    return 0.61 * size * len(text)


class Canvas:
    """Collects elements; coordinates are px from the upper left corner."""

    def __init__(self):
        self._elements: list[str] = []
        self._classes: set[str] = {'page', 'ink', 'quiet'}

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, radius: float = 4
    ) -> None:
        self._classes.add(kind)
        box = f'x="{_px(x)}" y="{_px(y)}" width="{_px(width)}" height="{_px(height)}"'
        self._elements.append(f'<rect class="{kind}" {box} rx="{radius}"/>')

    def circle(self, x: float, y: float, radius: float, kind: str) -> None:
        self._classes.add(kind)
        place = f'cx="{_px(x)}" cy="{_px(y)}" r="{_px(radius)}"'
        self._elements.append(f'<circle class="{kind}" {place}/>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        kind: str = 'ink',
        anchor: str = 'start',
        bold: bool = False,
        mono: bool = False,
        upwards: bool = False,
    ) -> None:
        """Writes a line of text, whose middle is at the height y; upwards: rotated to the left."""
        style = f' text-anchor="{anchor}"' if anchor != 'start' else ''
        style += ' font-weight="600"' if bold else ''
        classes = f'{kind} mono' if mono else kind
        # The baseline is a third of the size below the middle of digits and capitals.
        shift = 0.35 * size
        if upwards:
            style += f' transform="rotate(-90 {_px(x)} {_px(y)})"'
        place = f'x="{_px(x)}" y="{_px(y + shift)}"'
        self._elements.append(
            f'<text class="{classes}" {place} font-size="{_px(size)}"{style}>{escape(text)}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], *, arrow: bool = False) -> None:
        """Draws a line of horizontal and vertical parts with round corners, and its arrowhead."""
        self._classes |= {'line', 'head'} if arrow else {'line'}
        (x, y), *_ = points
        path = [f'M{_px(x)} {_px(y)}']
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            radius = min(6, _distance(before, corner) / 2, _distance(corner, after) / 2)
            start, end = _towards(corner, before, radius), _towards(corner, after, radius)
            path.append(f'L{_pair(start)}Q{_pair(corner)} {_pair(end)}')
        path.append(f'L{_pair(points[-1])}')
        self._elements.append(f'<path class="line" d="{"".join(path)}"/>')
        if arrow:
            self._arrowhead(points[-2], points[-1])

    def _arrowhead(self, before: tuple[float, float], tip: tuple[float, float]) -> None:
        (x, y), length, half = tip, 6, 3.2
        dx, dy = (a - b for a, b in zip(tip, _towards(tip, before, 1), strict=True))
        left = x - length * dx - half * dy, y - length * dy + half * dx
        right = x - length * dx + half * dy, y - length * dy - half * dx
        self._elements.append(
            f'<path class="head" d="M{_pair(tip)}L{_pair(left)}L{_pair(right)}Z"/>'
        )

    def open(self, about: str, **data: object) -> None:
        """Begins a group of elements, with what a pointer that rests on it is shown."""
        texts = ''.join(f' data-{key}={quoteattr(str(text))}' for key, text in data.items())
        self._elements.append(f'<g{texts}><title>{escape(about)}</title>')

    def close(self) -> None:
        self._elements.append('</g>')

    def svg(self, width: float, height: float, name: str, title: str, description: str) -> str:
        """Returns the picture.

        Args:
          width, height: px.
          name: begins the ids, with a hyphen in place of what is no letter, digit or underscore.
          title: what the picture shows, in a few words.
          description: what one sees there, in sentences.
        """
        width, height = _px(width), _px(height)
        name = re.sub(r'\W', '-', name)
        return '\n'.join([
            f'<svg xmlns="http://www.w3.org/2000/svg" class="flaxcls-diagram" width="{width}" '
            f'height="{height}" viewBox="0 0 {width} {height}" role="img" '
            f'aria-labelledby="{name}-title {name}-desc">',
            f'<title id="{name}-title">{escape(title)}</title>',
            f'<desc id="{name}-desc">{escape(description)}</desc>',
            f'<style>{self._style()}</style>',
            f'<rect class="page" width="{width}" height="{height}"/>',
            *self._elements,
            '</svg>\n',
        ])  # fmt: skip

    def _style(self) -> str:
        # Below the picture's own class, since a page of HTML applies it to all that is there.
        root = '.flaxcls-diagram'
        used = {kind: rules for kind, rules in _COLOURS.items() if kind in self._classes}
        light, dark = (
            '\n'.join(
                f'{root} .{kind}{{{";".join(f"{rule[0]}:{rule[mode]}" for rule in rules)}}}'
                for kind, rules in used.items()
            )
            for mode in (1, 2)
        )
        return (
            f'\n{root}{{font-family:{SANS}}}\n{root} .mono{{font-family:{MONO}}}\n'
            f'{root} .line{{fill:none;stroke-width:1.4}}\n'
            f'{root} .drop,{root} .image{{stroke-dasharray:3 2}}\n'
            f'{light}\n@media (prefers-color-scheme:dark){{\n{dark}\n}}\n'
        )


def _px(number: float) -> str:
    return f'{number:.1f}'.removesuffix('.0')


def _pair(point: tuple[float, float]) -> str:
    return f'{_px(point[0])} {_px(point[1])}'


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _towards(a: tuple[float, float], b: tuple[float, float], length: float) -> tuple[float, float]:
    """Returns the point that far from a on the way to b."""
    share = length / (_distance(a, b) or 1)
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
