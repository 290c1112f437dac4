"""The pages of common mistakes: rendered as they are kept, and right in what can be counted."""

import contextlib
import functools
import io
import pathlib
import re
import shlex

import pytest

from benchmarks import common_mistakes
from flaxcls.__main__ import main
from flaxcls.errors import UserError
from flaxcls.models.registry import MODELS

RESULTS = pathlib.Path('results')
PAGES, MISTAKES = common_mistakes.load(RESULTS)
# Those of commands that need no run, and which test_readme.py does not shorten.
SHOWN = [mistake for mistake in MISTAKES if re.match(r'flaxcls (models|sweep)', mistake.command)]

each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.file)


@functools.cache
def printed(command):
    """Returns what `flaxcls ...` prints; several entries have the same command."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main(shlex.split(command)[1:])
    return output.getvalue()


def claims(mistakes):
    return pytest.mark.parametrize('mistake', mistakes, ids=lambda mistake: mistake.claim)


@each_page
def test_pages_are_rendered_from_the_entries(page):
    written = pathlib.Path('docs', page.file).read_text(encoding='utf-8')
    message = f'renew it: {common_mistakes.COMMAND}'
    assert written == common_mistakes.render(MISTAKES, page), message


def test_the_command_writes_every_page(tmp_path):
    common_mistakes.main([f'--out={tmp_path}'])
    assert {path.name for path in tmp_path.iterdir()} == {page.file for page in PAGES}
    for page in PAGES:
        assert (tmp_path / page.file).read_text() == common_mistakes.render(MISTAKES, page)
    with pytest.raises(UserError, match='is no folder'):
        common_mistakes.main([f'--out={tmp_path}/none'])


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        (None, 'there is no ledger in'),
        ('[[mistakes', 'cannot be read'),
        ('pages = []', "'mistakes'"),
        ('pages = []\n[[mistakes]]\nabout = "VGG"\nfact = "x"', 'missing'),
        ('pages = []\n[[mistakes]]\nfigure = 3.5', 'figure'),
    ],
)
def test_broken_entries_are_reported_in_a_sentence(tmp_path, text, says):
    if text is not None:
        (tmp_path / 'rows.toml').write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        common_mistakes.main([f'--results={tmp_path}', f'--out={tmp_path}'])
    assert '\n' not in str(caught.value)


def test_every_claim_is_made_once_under_the_heading_of_its_network():
    assert len({mistake.claim for mistake in MISTAKES}) == len(MISTAKES)
    for page in PAGES:
        text = common_mistakes.render(MISTAKES, page)
        for mistake in MISTAKES:
            heading = f'### {page.claim.format(mistake.text("claim", page))}\n'
            before, found, _ = text.partition(heading)
            assert found
            assert re.findall(r'^## (.+)$', before, re.MULTILINE)[-1] == mistake.about


@each_page
def test_every_paper_is_linked(page):
    text = common_mistakes.render(MISTAKES, page)
    assert re.search(r'\[arXiv:\d', text)
    assert not re.search(r'(?<!\[)(arXiv:\d|Krizhevsky)', text)


@claims(MISTAKES)
def test_an_entry_has_all_its_texts_in_every_language(mistake):
    for page in PAGES:
        assert all(mistake.text(field, page) for field in ('claim', 'fact', 'source'))
        assert bool(mistake.text('shows', page)) == bool(mistake.command)


@claims(MISTAKES)
def test_parameters_and_gmacs_in_a_fact_are_those_of_its_networks(mistake):
    rows = [MODELS[name] for name in mistake.networks]
    parameters = {f'{row.parameters:,}' for row in rows}
    gmacs = {f'{row.gmacs:.4f}' for row in rows}
    megabytes = {f'{4 * row.parameters / 1e6:.0f}' for row in rows}
    counted = set(re.findall(r'\d+(?:,\d{3}){2,}', mistake.fact))
    multiplied = set(re.findall(r'\d+\.\d{4}', mistake.fact)) if 'GMACs' in mistake.fact else set()
    assert counted <= parameters
    assert multiplied <= gmacs
    assert set(re.findall(r'(\d+) MB', mistake.fact)) <= megabytes
    for row in rows:  # None is named without need.
        assert f'{row.parameters:,}' in counted or f'{row.gmacs:.4f}' in multiplied


@claims(SHOWN)
def test_what_is_said_of_an_output_is_in_it(mistake):
    named = re.findall(r'`([^`]+)`', mistake.shows) + re.findall(r'\d[\d,]*,\d+', mistake.shows)
    for text in named:
        assert text in printed(mistake.command)


def test_initial_weights_are_as_they_are_said_to_be(capsys):
    (mistake,) = [mistake for mistake in MISTAKES if mistake.command.startswith('python -c ')]
    code = shlex.split(mistake.command.replace('\\\n', ''))[2]
    exec(code, {})
    layers = [line.split() for line in capsys.readouterr().out.splitlines()]
    ones = {'conv2', 'conv4', 'conv5', 'fc6', 'fc7'}
    assert {name for name, _, mean in layers if float(mean) == 1} == ones
    assert len(layers) == 8
    for _, deviation, mean in layers:
        assert deviation == '0.01'
        assert mean in mistake.shows


@claims([mistake for mistake in MISTAKES if 'SPEED.md' in mistake.fact])
def test_what_was_measured_is_in_its_section_of_speed(mistake):
    sections = re.split(r'^## ', pathlib.Path('SPEED.md').read_text(), flags=re.MULTILINE)
    for text, anchor in re.findall(r'\[([^]]+)\]\(../SPEED\.md#([\w-]+)\)', mistake.fact):
        heading = re.compile(anchor.replace('-', r'\W+'), re.IGNORECASE)
        (section,) = [section for section in sections if heading.match(section)]
        for figure in re.findall(r'\d+\.\d+', text):
            assert f' {figure} ' in section
