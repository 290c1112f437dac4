"""The page itself: what the template is given, and how numbers are written in it."""

import datetime
import functools
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
from flaxcls.system.translation import DEFAULT, ENGLISH, Translation, load_translation


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


def render(
    runs: Sequence[ReportedRun], *, reload_after: float | None = None, language: str = DEFAULT
) -> str:
    """Returns the page as a document of HTML that needs no other file.

    Args:
      runs: at least one; the others are compared with the first.
      reload_after: seconds until a browser that shows it looks for a newer one; None: never.
      language: one of `list_languages()`.
    """
    translate = load_translation(language, 'report')
    names = _short_names([run.workdir for run in runs])
    chapters = [_chapter(run, names[index], index, translate) for index, run in enumerate(runs)]
    curves = figures.curves(runs, translate)
    return environment(translate).get_template('report.html').render(
        chapters=chapters,
        several=len(runs) > 1,
        curves=[plot._replace(svg=plot.svg and Markup(plot.svg)) for plot in curves],
        differences=tables.differing_options(runs),
        comparisons=[tables.compare(runs[0], run) for run in runs[1:]],
        reload_after=reload_after,
        made=datetime.datetime.now(datetime.UTC),
        version=flaxcls.__version__,
    )  # fmt: skip


def _chapter(run: ReportedRun, name: str, index: int, translate: Translation) -> Chapter:
    predictions, names = run.predictions, run.class_names
    why = reported(run.why.get('predictions', ''), translate)
    attempt = lambda get: Part(None, why) if predictions is None else Part(get())  # noqa: E731
    return Chapter(
        run=run,
        name=name,
        colour=f'var(--run-{index % svg.NUM_COLOURS})',
        options=tables.list_options(run),
        command=tables.repeating_command(run),
        confusions=attempt(lambda: tables.confusions(predictions, names)),
        reliability=attempt(
            lambda: Markup(figures.reliability_diagram(run, index, run.calibration, translate))
        ),
        examples=_examples(run, translate),
        classes=attempt(lambda: tables.class_table(predictions, names)),
    )


def _examples(run: ReportedRun, translate: Translation) -> Part:
    missing = run.why.get('predictions') if run.predictions is None else run.why.get('data')
    if missing:
        return Part(None, reported(missing, translate))
    try:
        return Part(examples_lib.find_examples(run, translate))
    except UserError as error:
        return Part(None, reported(error.args[0], translate))


def _short_names(workdirs: Sequence[str]) -> list[str]:
    """Returns the workdirs without what all of them begin with."""
    paths = [pathlib.Path(os.path.abspath(workdir)) for workdir in workdirs]
    if len(set(paths)) == 1:
        return [path.name for path in paths]
    common = os.path.commonpath([path.parent for path in paths])
    return [str(path.relative_to(common)) for path in paths]


def environment(translate: Translation = ENGLISH) -> jinja2.Environment:
    """Returns the environment of the pages' templates, with the filters below."""
    made = create_environment(pathlib.Path(__file__).parent / 'templates', translate)
    made.filters |= _FILTERS | {
        'option_value': functools.partial(option_value, translate=translate),
        'reported': functools.partial(reported, translate=translate),
    }
    return made


def reported(text: str, translate: Translation) -> str:
    """Returns a message of another part of flaxcls as a sentence in the language of the page.

    What has no translation is marked as English, for those who have the page read to them.
    """
    if translate.language == DEFAULT:
        return sentence(text)
    if translate.knows(text):
        return translate(text)
    return Markup('<span lang="en">{}</span>').format(sentence(text))


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


def option_value(value: Any, translate: Translation) -> str:
    """Returns the value of an option as people read it."""
    if value is None:
        return 'None'
    return as_flag(value) or translate('(empty)')


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
    'duration': duration,
    'number': '{:,}'.format,
    'utc': utc,
}
