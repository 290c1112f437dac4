"""The page itself: what the template is given, and how numbers are written in it."""

import datetime
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

import flaxcls
from flaxcls.config.option import as_flag
from flaxcls.errors import UserError
from flaxcls.reporting import examples as examples_lib
from flaxcls.reporting import figures, tables
from flaxcls.reporting.runs import ReportedRun
from flaxcls.system import svg
from flaxcls.system.html import create_environment

NOT_EVALUATED = 'Nothing has been evaluated yet.'


class Part(NamedTuple):
    """What a section says of one run.

    Attributes:
      content: for the template; None: there is nothing yet.
      why: a sentence that says why not.
    """

    content: Any
    why: str = ''


class Chapter(NamedTuple):
    """A run with all that the sections show of it.

    Attributes:
      run: what its workdir holds.
      name: distinguishes it from the others of the page.
      colour: in the plots, as CSS.
      options: of its config, for the table of options.
      command: that makes the run again.
      confusions, reliability, examples, classes: Parts.
    """

    run: ReportedRun
    name: str
    colour: str
    options: Sequence[tables.ChosenOption]
    command: str
    confusions: Part
    reliability: Part
    examples: Part
    classes: Part


def render(runs: Sequence[ReportedRun], *, reload_after: float | None = None) -> str:
    """Returns the page as a document of HTML that needs no other file.

    Args:
      runs: at least one; the others are compared with the first.
      reload_after: seconds until a browser that shows it looks for a newer one; None: never.
    """
    names = _short_names([run.workdir for run in runs])
    chapters = [_chapter(run, names[index], index) for index, run in enumerate(runs)]
    return environment().get_template('report.html').render(
        chapters=chapters,
        several=len(runs) > 1,
        curves=[plot._replace(svg=plot.svg and Markup(plot.svg)) for plot in figures.curves(runs)],
        differences=tables.differing_options(runs),
        comparisons=[tables.compare(runs[0], run) for run in runs[1:]],
        not_evaluated=NOT_EVALUATED,
        reload_after=reload_after,
        made=datetime.datetime.now(datetime.UTC),
        version=flaxcls.__version__,
    )  # fmt: skip


def _chapter(run: ReportedRun, name: str, index: int) -> Chapter:
    predictions, names = run.predictions, run.class_names
    why = sentence(run.why.get('predictions', ''))
    attempt = lambda get: Part(None, why) if predictions is None else Part(get())  # noqa: E731
    return Chapter(
        run=run,
        name=name,
        colour=f'var(--run-{index % svg.NUM_COLOURS})',
        options=tables.list_options(run),
        command=tables.repeating_command(run),
        confusions=attempt(lambda: tables.confusions(predictions, names)),
        reliability=attempt(
            lambda: Markup(figures.reliability_diagram(run, index, run.calibration))
        ),
        examples=_examples(run),
        classes=attempt(lambda: tables.class_table(predictions, names)),
    )


def _examples(run: ReportedRun) -> Part:
    missing = run.why.get('predictions') if run.predictions is None else run.why.get('data')
    if missing:
        return Part(None, sentence(missing))
    try:
        return Part(examples_lib.find_examples(run))
    except UserError as error:
        return Part(None, sentence(str(error)))


def _short_names(workdirs: Sequence[str]) -> list[str]:
    """Returns the workdirs without what all of them begin with."""
    paths = [pathlib.Path(os.path.abspath(workdir)) for workdir in workdirs]
    if len(set(paths)) == 1:
        return [path.name for path in paths]
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def environment() -> jinja2.Environment:
    """Returns the environment of the pages' templates, with the filters below."""
    made = create_environment(pathlib.Path(__file__).parent / 'templates')
    made.filters |= _FILTERS
    return made


def sentence(text: str) -> str:
    """Returns an error's message as a sentence: with a capital letter and a full stop."""
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ('' if text[-1] in '.!?' else '.')


def percent(share: float) -> str:
    """Returns a share in percent, as in 98.61 %, with a no-break space."""
    return f'{share:.2%}'.replace('%', '\N{NO-BREAK SPACE}%')


def probability(share: float) -> str:
    """Returns a probability in percent that is never rounded to certainty, as in > 99.9 %."""
    if share > 0.9995:
        return '>\N{NO-BREAK SPACE}99.9\N{NO-BREAK SPACE}%'
    return f'{share:.1%}'.replace('%', '\N{NO-BREAK SPACE}%')


def p_value(value: float) -> str:
    """Returns a p-value, as in 0.031."""
    return f'{value:.3f}' if value >= 0.001 else '< 0.001'


def option_value(value: Any) -> str:
    """Returns the value of an option as people read it."""
    if value is None:
        return 'None'
    return as_flag(value) or '(empty)'


def duration(seconds: float) -> str:
    """Returns a time as in 1 h 5 min, 3 min 20 s or 42 s; humanize's is too long for a column."""
    seconds = round(seconds)
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f'{hours}\N{NO-BREAK SPACE}h {minutes}\N{NO-BREAK SPACE}min'
    if minutes:
        return f'{minutes}\N{NO-BREAK SPACE}min {rest}\N{NO-BREAK SPACE}s'
    return f'{rest}\N{NO-BREAK SPACE}s'


def utc(text: str) -> str:
    """Returns a time of record.json, which is UTC, as in 2026-11-26 15:26:03 UTC."""
    return f'{datetime.datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC'


_FILTERS: dict[str, Callable[..., str]] = {
    'percent': percent,
    'probability': probability,
    'p_value': p_value,
    'option_value': option_value,
    'duration': duration,
    'number': '{:,}'.format,
    'sentence': sentence,
    'utc': utc,
}
