"""The page about runs: complete whatever is there, valid, self-contained, and seen in a browser."""

import collections
import html
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from justhtml import JustHTML

import flaxcls
from flaxcls.commands import report as report_command
from flaxcls.config.config_dict import flatten
from flaxcls.config.workdir import CLASSES_FILE, CONFIG_FILE
from flaxcls.errors import UserError
from flaxcls.inference import calibration
from flaxcls.inference.predictions import Predictions, save_predictions
from flaxcls.reporting import figures, report, tables
from flaxcls.reporting.examples import select
from flaxcls.reporting.figures import PANELS
from flaxcls.reporting.runs import load_reported_run
from flaxcls.system import svg
from flaxcls.system.cli import parse_overrides
from flaxcls.training.logging import read_metrics
from flaxcls.training.restore import evaluate_workdir
from tests.helpers.chinese import CHINESE, english_words, has_english_sentence
from tests.helpers.configs import TINY

SECTIONS = ('run', 'curves', 'results', 'confusions', 'calibration', 'mistakes', 'typical',
            'uncertain', 'classes')  # fmt: skip
# Class names: one of every kind that means something to HTML, SVG or matplotlib.
HOSTILE = (
    '<script>alert(1)</script>',
    '"><img src=http://x/y>',
    "a & b ' $x^2$",
    '漢字 ü',
    '{{ 7 }}',
)


@pytest.fixture(scope='module')
def one(finished, tmp_path_factory):
    """A run of which the other cases are copies, as the report writes into its workdir."""
    return _copy(finished.workdir, tmp_path_factory.mktemp('one') / 'run')


@pytest.fixture(scope='module')
def other(finished_other, tmp_path_factory):
    """Another one, of another network, on the same images; calibrated."""
    workdir = _copy(finished_other.workdir, tmp_path_factory.mktemp('other') / 'run')
    predictions = load_reported_run(str(workdir)).predictions
    found = calibration.calibrate(predictions)
    calibration.save_calibration(found, workdir, source='digits')
    return workdir


@pytest.fixture(scope='module')
def hostile(tmp_path_factory):
    """A run whose classes, files and workdir have such names."""
    from PIL import Image

    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for number, name in enumerate(HOSTILE):
        path = folder / name.replace('/', '\N{DIVISION SLASH}')
        path.mkdir()
        for index in range(10):
            pixels = rng.integers(0, 60 + 40 * number, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / f'{index} <b>&amp;.png')
    workdir = tmp_path_factory.mktemp('runs') / '<i>run & "ü"'
    changes = {'data.source': f'folder:{folder}', 'batch_size': 8, 'num_epochs': 1}
    flaxcls.train_and_evaluate(flaxcls.load_config(None, TINY | changes), workdir)
    return workdir


def _copy(workdir, folder, *left_out):
    shutil.copytree(workdir, folder)
    for name in left_out:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


@pytest.fixture(scope='module')
def cases(one, other, hostile, tmp_path_factory):
    """{name: workdirs} of runs in every condition."""
    folder = tmp_path_factory.mktemp('cases')
    unevaluated = _copy(one, folder / 'unevaluated', 'checkpoints', 'record.json')
    lines = (unevaluated / 'metrics.jsonl').read_text().splitlines()
    (unevaluated / 'metrics.jsonl').write_text(lines[0] + '\n')
    gone = _copy(hostile, folder / 'gone')
    config = json.loads((gone / 'config.json').read_text())
    config['data']['source'] = 'folder:/no/such/folder'
    (gone / 'config.json').write_text(json.dumps(config))
    (gone / 'images.json.gz').unlink()  # Which knows where the images are.
    kept = _copy(gone, folder / 'kept')
    save_predictions(load_reported_run(str(hostile)).predictions, kept)
    begun = _copy(unevaluated, folder / 'begun', 'metrics.jsonl')
    return {
        'finished': [one],
        'calibrated': [other],
        'compared': [one, other, unevaluated],
        'hostile': [hostile],
        'begun': [begun],
        'not evaluated': [unevaluated],
        'no checkpoint': [_copy(one, folder / 'no checkpoint', 'checkpoints')],
        'no metrics': [_copy(one, folder / 'no metrics', 'metrics.jsonl', 'record.json')],
        'no data': [gone],
        'no data, predictions kept': [kept],
        'two that cannot be compared': [one, hostile],
    }


CASES = ('finished', 'calibrated', 'compared', 'hostile', 'begun', 'not evaluated', 'no checkpoint',
         'no metrics', 'no data', 'no data, predictions kept',
         'two that cannot be compared')  # fmt: skip


@pytest.fixture(scope='module')
def pages(cases, tmp_path_factory):
    """name of a case, language -> the file with its page, written once."""
    folder, written, known = tmp_path_factory.mktemp('pages'), {}, {}

    def write(name, language='en'):
        if (name, language) not in written:
            written[name, language], known[name] = report.write_report(
                cases[name],
                folder / f'{name}.{language}.html',
                earlier=known.get(name, ()),
                language=language,
            )
        return written[name, language]

    return write


def _sections(name):
    return (*(['comparison'] if name.startswith(('compared', 'two')) else []), *SECTIONS)


def _text(nodes):
    return ' '.join(node.to_text() for node in nodes)


@pytest.mark.parametrize('name', CASES)
def test_every_page_is_valid_complete_and_needs_no_other_file(pages, name):
    text = pages(name).read_text(encoding='utf-8')
    document = JustHTML(text, strict=True, sanitize=False)  # Raises what is not valid HTML.
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert max(collections.Counter(ids).values()) == 1
    referred = re.findall(r'(?:url\(#|href="#|aria-labelledby=")([^")]+)', text)
    assert set(referred) <= set(ids)
    for node in document.query('*'):
        for key in ('src', 'href', 'srcset', 'poster', 'data', 'action', 'formaction'):
            link = node.attrs.get(key, '#')
            assert link.startswith(('#', 'data:')), link
        for link in re.findall(r'url\(([^)]*)', node.attrs.get('style', '')):
            assert link.startswith('#')
    styles = ''.join(node.to_text() for node in document.query('style'))
    assert 'url(' not in styles and '@import' not in styles
    assert not document.query('script')
    assert [node.attrs['id'] for node in document.query('main section')] == list(_sections(name))
    for section in document.query('main section'):
        body = [
            node for node in section.children if getattr(node, 'name', '') not in ('h2', '#text')
        ]
        assert len(_text(body).strip()) > 10, section.attrs['id']
    for image in document.query('img'):
        assert image.attrs['alt']


# What is named, or quoted, in any language: parts of a page by their elements, and single words.
QUOTED = 'code, pre, .path, .name, .matrix, [lang=en]'
NAMES = {
    *('flaxcls', 'python', 'jax', 'jaxlib', 'flax', 'optax', 'digits', 'resnet', 'synthetic'),
    *('Conv', 'Dense', 'Linear', 'Grad', 'metrics', 'jsonl', 'record', 'json', 'logits'),
    *('config', 'data', 'source', 'folder', 'checkpoints', 'top'),
}


def _read(node, left_out):
    """Returns the texts that a reader, or a screen reader, comes across; in tables, a cell each."""
    if getattr(node, 'name', '') == '#text':
        return [node.to_text()]
    if id(node) in left_out:
        return []
    attributes = getattr(node, 'attrs', None) or {}
    spoken = [attributes[key] for key in ('aria-label', 'alt') if key in attributes]
    return spoken + [text for child in node.children or () for text in _read(child, left_out)]


def _data(workdirs):
    """Returns what a page shows of runs as it is, the longest first."""
    names = {name.replace('/', '\N{DIVISION SLASH}') for name in HOSTILE}
    for workdir in workdirs:
        names |= {str(workdir), workdir.name, *_short(workdirs)}
        source = json.loads((workdir / CONFIG_FILE).read_text())['data']['source']
        names |= {source, source.removeprefix('folder:')}
        record = workdir / 'record.json'
        parts = json.loads(record.read_text())['parts'] if record.exists() else []
        names |= {part['device'] for part in parts}
    return sorted(names, key=len, reverse=True)


def _short(workdirs):
    common = os.path.commonpath([workdir.parent for workdir in workdirs])
    return [str(workdir.relative_to(common)) for workdir in workdirs]


@pytest.mark.parametrize(
    'name',
    ['compared', 'begun', 'no data, predictions kept', 'two that cannot be compared'],
)
def test_a_chinese_page_has_no_english_but_names(cases, pages, name):
    english, chinese = (
        JustHTML(pages(name, language).read_text(encoding='utf-8'), strict=True, sanitize=False)
        for language in ('en', 'zh')
    )
    for document, language in ((english, 'en'), (chinese, 'zh')):
        assert [node.attrs['lang'] for node in document.query('html')] == [language]
    quoted = {id(node) for node in chinese.query(QUOTED)}
    texts = _read(chinese.query('body')[0], quoted)
    assert sum(bool(re.search(CHINESE, text)) for text in texts) > 30
    for text in texts:
        for value in _data(cases[name]):
            text = text.replace(value, '')
        assert not has_english_sentence(text)
        assert set(english_words(text)) <= NAMES, text
    # What is shown is the same.
    for query in ('tr', 'td', 'img', 'section', 'dt'):
        assert len(chinese.query(query)) == len(english.query(query)), query
    for query in ('td.n b', '.matrix td', 'pre'):
        assert _text(chinese.query(query)) == _text(english.query(query)), query


@pytest.mark.parametrize('name', ['finished', 'calibrated', 'no checkpoint', 'no metrics'])
def test_the_numbers_are_those_of_the_run(cases, pages, one, name):
    workdir = cases[name][0]
    source = one if name in ('no checkpoint', 'no metrics') else workdir
    values = evaluate_workdir(source)
    document = JustHTML(pages(name).read_text(encoding='utf-8'), sanitize=False)
    shown = _text(document.query('#results')).replace('\N{NO-BREAK SPACE}', '')
    accuracy = _text(document.query('#results td b')).replace('\N{NO-BREAK SPACE}', '')
    assert accuracy == f'{values["val/accuracy"]:.2%}'
    assert f'{values["val/top5_accuracy"]:.2%}' in shown
    assert f'{values["val/loss"]:.4f}' in shown
    assert f'{values["val/count"]}' in shown
    if name != 'no checkpoint':
        rows = [
            [cell.to_text().strip() for cell in row.query('td')]
            for row in document.query('table.matrix tbody tr')
        ]
        matrix = np.array([[int(cell.replace('·', '0')) for cell in row] for row in rows])
        assert matrix.sum() == values['val/count']
        assert matrix.trace() == round(values['val/accuracy'] * values['val/count'])


def test_names_are_shown_as_they_are(pages, hostile):
    text = pages('hostile').read_text(encoding='utf-8')
    document = JustHTML(text, sanitize=False)
    assert '<script' not in text and '<b>' not in _text(document.query('style'))
    rows = [node.to_text().strip() for node in document.query('#classes tbody th')]
    shown = {' '.join(name.split()) for name in rows}
    assert shown == {' '.join(name.replace('/', '\N{DIVISION SLASH}').split()) for name in HOSTILE}
    assert html.escape(str(hostile), quote=False) in text.replace('&#34;', '"')


@pytest.mark.parametrize(
    ('name', 'section', 'says'),
    [
        ('begun', 'curves', 'Nothing has been recorded'),
        ('begun', 'results', 'Nothing has been evaluated yet'),
        ('not evaluated', 'results', 'Nothing has been evaluated yet'),
        ('not evaluated', 'typical', 'has not saved anything yet'),
        ('not evaluated', 'run', 'no record.json'),
        ('no checkpoint', 'results', 'those that training has recorded'),
        ('no checkpoint', 'confusions', 'has not saved anything yet'),
        ('no metrics', 'curves', 'Nothing has been recorded'),
        ('no data', 'run', '/no/such/folder'),
        ('no data', 'classes', '/no/such/folder'),
        ('no data, predictions kept', 'mistakes', '/no/such/folder'),
        ('two that cannot be compared', 'comparison', 'are not the same in the same order'),
    ],
)
def test_what_is_missing_is_reported_where_it_would_be(pages, name, section, says):
    document = JustHTML(pages(name).read_text(encoding='utf-8'), sanitize=False)
    assert says in ' '.join(_text(document.query(f'#{section}')).split())


def test_predictions_that_were_kept_do_for_all_but_the_images(pages):
    with_data, without = (
        JustHTML(pages(name).read_text(encoding='utf-8'), sanitize=False)
        for name in ('hostile', 'no data, predictions kept')
    )
    for section in ('results', 'confusions', 'classes'):
        ours, theirs = (_text(d.query(f'#{section} table')) for d in (with_data, without))
        assert ours == theirs
    assert with_data.query('img') and not without.query('img')


def test_other_classes_than_the_runs_are_reported(cases, tmp_path):
    workdir = _copy(cases['finished'][0], tmp_path / 'run')
    names = json.loads((workdir / CLASSES_FILE).read_text())
    (workdir / CLASSES_FILE).write_text(json.dumps(names[::-1]))
    path, _ = report.write_report([workdir])
    assert path == workdir / 'report.html'
    assert 'are not those that the run in' in path.read_text(encoding='utf-8')


def test_a_comparison_counts_what_only_one_has_right(cases, pages):
    runs = [load_reported_run(str(workdir)) for workdir in cases['compared'][:2]]
    ours, theirs = (run.predictions.correct for run in runs)
    document = JustHTML(pages('compared').read_text(encoding='utf-8'), sanitize=False)
    cells = [c.to_text().strip() for c in document.query('#comparison table')[1].query('tbody td')]
    assert cells[:2] == [str((ours & ~theirs).sum()), str((theirs & ~ours).sum())]
    rows = [node.to_text() for node in document.query('#comparison table.options tbody code')]
    first, second = (run.options for run in runs)
    assert rows == [key for key in first if first[key] != second[key]]


@pytest.mark.parametrize('name', ['finished', 'calibrated', 'hostile', 'no data'])
def test_the_command_makes_the_same_config(cases, name):
    run = load_reported_run(str(cases[name][0]))
    words = shlex.split(tables.repeating_command(run).replace('\\\n', ' '))
    assert words[:3] == ['flaxcls', 'train', '--config=default']
    config = flaxcls.load_config('default', parse_overrides(words[4:], []))
    config.model.num_classes = run.options['model.num_classes']
    assert dict(flatten(config)) == run.options


@pytest.mark.parametrize('name', ['finished', 'hostile'])
def test_pasted_into_a_shell_elsewhere_it_makes_the_run_again(cases, pages, name, tmp_path):
    document = JustHTML(pages(name).read_text(encoding='utf-8'), sanitize=False)
    printed = document.query('#run pre code')[0].to_text()
    workdir = pathlib.Path(cases[name][0])
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
    subprocess.run(
        ['bash', '-c', printed], cwd=tmp_path, env=os.environ | {'PATH': path}, check=True
    )
    again = workdir.with_name(f'{workdir.name}-again')
    first, second = (json.loads((f / CONFIG_FILE).read_text()) for f in (workdir, again))
    assert first == second
    first, second = (read_metrics(f)[-1] for f in (workdir, again))
    assert (first['step'], first['val/count']) == (second['step'], second['val/count'])
    assert first['val/loss'] == pytest.approx(second['val/loss'], rel=1e-3)


def _predictions(labels, logits):
    names = tuple(f'example {index}' for index in range(len(labels)))
    classes = tuple(f'class {index}' for index in range(logits.shape[1]))
    return Predictions(1, labels.astype(np.int32), logits.astype(np.float32), names, classes)


def test_of_many_classes_the_tables_show_those_with_mistakes():
    labels = np.arange(1000).repeat(3)
    logits = 9.0 * np.eye(1000)[labels]
    wrong = np.array([30, 31, 32, 600, 2400])
    logits[wrong] = np.roll(logits[wrong], 1, axis=1)
    predictions = _predictions(labels, logits)
    found = tables.confusions(predictions, predictions.class_names)
    assert (len(found.names), found.left_out) == (20, 980)
    assert {'class 10', 'class 11', 'class 200', 'class 800'} <= set(found.names)
    assert found.pairs[0] == tables.Pair('class 10', 'class 11', 3, 3)
    assert sum(pair.count for pair in found.pairs) == len(wrong)
    table = tables.class_table(predictions, predictions.class_names)
    assert len(table.rows) + table.left_out == 1000
    assert {row.name for row in table.rows} >= {'class 10', 'class 200', 'class 800'}


def test_the_images_are_the_surest_mistakes_one_typical_of_each_class_and_the_least_sure():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    predictions = _predictions(labels, rng.normal(size=(200, 4)) + 2 * np.eye(4)[labels])
    mistakes, typical, uncertain = select(predictions)
    confidence = predictions.probabilities().max(1)
    wrong = ~predictions.correct
    assert wrong[mistakes].all() and not wrong[typical].any()
    assert set(confidence[mistakes]) == set(np.sort(confidence[wrong])[-len(mistakes) :])
    assert sorted(labels[typical]) == [0, 1, 2, 3]
    for index in typical:
        assert confidence[index] == confidence[~wrong & (labels == labels[index])].max()
    assert not set(uncertain) & set(mistakes)
    rest = np.setdiff1d(np.arange(200), mistakes)
    assert set(confidence[uncertain]) == set(np.sort(confidence[rest])[: len(uncertain)])


def test_a_plot_takes_colours_and_font_of_the_page(cases):
    for plot in figures.curves([load_reported_run(str(w)) for w in cases['compared'][:2]]):
        assert 'currentColor' in plot.svg and 'var(--run-0)' in plot.svg
        for colour in (svg.INK, *map(svg.run_colour, range(svg.NUM_COLOURS))):
            assert colour not in plot.svg
        assert 'http' not in plot.svg
    assert {panel.name for panel in PANELS} == {'loss', 'accuracy', 'rate', 'speed'}


def test_watching_writes_the_page_again_until_the_run_is_finished(one, tmp_path, monkeypatch):
    workdir = _copy(one, tmp_path / 'run', 'record.json')
    record = (one / 'record.json').read_text()
    stages = [
        lambda: (workdir / 'record.json').write_text(json.dumps(json.loads(record) | {'step': 22})),
        lambda: None,
        lambda: (workdir / 'record.json').write_text(record),
    ]
    texts = []

    def sleep(seconds):
        assert seconds == 7
        texts.append((workdir / 'report.html').read_text(encoding='utf-8'))
        stages.pop(0)()

    monkeypatch.setattr(report.time, 'sleep', sleep)
    report_command.main([f'--workdir={workdir}', '--watch=7'])
    texts.append((workdir / 'report.html').read_text(encoding='utf-8'))
    assert not stages
    for text in texts[:-1]:
        assert '<meta http-equiv="refresh" content="7">' in text and 'not finished' in text
    assert 'http-equiv' not in texts[-1] and 'not finished' not in texts[-1]
    assert len(set(texts)) == 3


def test_what_is_left_out_is_reported_on_the_terminal_as_well(workdir, capsys):
    shutil.rmtree(workdir / 'checkpoints')
    report_command.main([f'--workdir={workdir}'])
    assert f'Note: in {workdir}, the run in' in capsys.readouterr().out


def test_mistakes_are_one_sentence(workdir, tmp_path):
    for arguments, says in (
        ([f'--workdir={tmp_path}'], 'there is no run in'),
        ([f'--workdir={workdir}', '--watch=0'], 'give seconds above 0'),
        ([f'--workdir={workdir}', f'--out={tmp_path}/no/page.html'], 'there is no folder'),
        ([f'--workdir={workdir}', f'--out={tmp_path}'], 'is a folder; name a file'),
        ([f'--workdir={workdir}', f'--workdir={workdir}/.'], 'are one run; give different'),
        ([f'--workdir={workdir}', '--language=tlh'], "--language: invalid choice: 'tlh'"),
    ):
        with pytest.raises(UserError, match=says):
            report_command.main(arguments)


@pytest.mark.parametrize('name', CASES)
def test_a_browser_shows_it_all_and_asks_for_nothing(browser, pages, name):
    view, complaints, requests = browser.new_page(), [], []
    view.on('console', lambda message: complaints.append(message.text))
    view.on('pageerror', lambda error: complaints.append(str(error)))
    view.on('dialog', lambda dialog: complaints.append(dialog.message))
    view.on('request', lambda request: requests.append(request.url))
    view.goto(pages(name).as_uri())
    assert complaints == []
    assert [url for url in requests if not url.startswith('data:')] == [pages(name).as_uri()]
    assert view.evaluate('[...document.images].every(image => image.naturalWidth > 0)')
    for section in _sections(name):
        assert len(view.locator(f'#{section}').inner_text().strip()) > 20
        assert view.locator(f'nav a[href="#{section}"]').count() == 1
    view.evaluate('document.querySelectorAll("details").forEach(one => one.open = true)')
    for width in (375, 1280):
        view.set_viewport_size({'width': width, 'height': 800})
        for scheme in ('light', 'dark'):
            view.emulate_media(color_scheme=scheme)
            assert view.evaluate('document.documentElement.scrollWidth') <= width
            colour = view.evaluate('getComputedStyle(document.body).backgroundColor')
            dark = max(map(int, re.findall(r'\d+', colour)[:3])) < 128
            assert dark == (scheme == 'dark')
    view.close()
