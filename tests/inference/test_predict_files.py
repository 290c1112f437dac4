"""Predictions for files, from what is named on the command line to what comes out."""

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import types
import weakref

import jax
import numpy as np
import pytest
from PIL import Image

import flaxcls
from flaxcls.commands.predict import main
from flaxcls.data.paths import Found, find_files
from flaxcls.errors import RunError, Stopped, UserError
from flaxcls.inference import predict_files as predict_files_lib
from flaxcls.inference.calibration import CALIBRATION_FILE
from flaxcls.inference.classifier import Classifier
from flaxcls.inference.predict_files import predict_files
from flaxcls.inference.writers import CSV_COLUMNS, Prediction, write_csv, write_json, write_table
from flaxcls.system.threads import ITEMS_AHEAD, map_in_threads
from tests.helpers.unpack import open_dataset

ODD_NAMES = (
    'plain.png',
    'Äpfel, "süß".png',
    '漢字.png',
    'e\u0301.png',  # A letter and its accent, as macOS stores them.
    'two\nlines\x1b[31m.png',
    os.fsdecode(b'latin-\xe9.png'),
    'long/' * 30 + 'one.png',
)


@pytest.fixture(scope='module')
def digits(finished):
    return open_dataset(finished.config).val


@pytest.fixture(scope='module')
def photos(tmp_path_factory, digits):
    """A folder with every validation image, named after its digit."""
    folder = tmp_path_factory.mktemp('photos')
    for index, label in enumerate(digits.labels):
        _save(digits.images[index], folder / f'{index:03d}_{label}.png')
    return folder


@pytest.fixture
def run(workdir, capsys):
    """Returns arguments -> (stdout, stderr), and the sentence at the end where there is one."""

    def run(*arguments):
        failure = None
        try:
            main([f'--workdir={workdir}', *map(str, arguments)])
        except RunError as error:
            failure = str(error)
        out, err = capsys.readouterr()
        return types.SimpleNamespace(out=out, err=err, failure=failure)

    return run


def _save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0]).save(path, **options)


def _likeliest(entry):
    return entry['predictions'][0]['class']


def test_it_is_right_as_often_as_evaluation_and_names_the_digits(workdir, photos, run):
    accuracy = flaxcls.evaluate_workdir(workdir)['val/accuracy']
    assert accuracy > 0.5
    entries = json.loads(run('--json=-', photos).out)
    right = [entry['file'].endswith(f'_{_likeliest(entry)}.png') for entry in entries]
    assert len(right) == 359
    assert np.mean(right) == pytest.approx(accuracy, abs=1e-6)


def test_the_probabilities_are_the_classifiers_whatever_the_batch(classifier, photos, run):
    paths = sorted(map(str, photos.iterdir()))[:70]
    expected = classifier.predict(paths)
    for batch_size in (1, 7, 64):
        entries = json.loads(run('--json=-', '--topk=99', f'--batch_size={batch_size}', *paths).out)
        assert [entry['file'] for entry in entries] == paths
        for entry, row in zip(entries, expected, strict=True):
            shares = {answer['class']: answer['probability'] for answer in entry['predictions']}
            assert list(shares.values()) == sorted(shares.values(), reverse=True)
            ours = [shares[name] for name in classifier.class_names]
            np.testing.assert_allclose(ours, row, rtol=1e-4, atol=1e-6)


def test_topk_tells_the_first_of_all(photos, run):
    file = sorted(photos.iterdir())[0]
    every = json.loads(run('--json=-', '--topk=99', file).out)[0]['predictions']
    assert len(every) == 10
    for flags, count in (([], 5), (['--topk=1'], 1), (['--topk=3'], 3)):
        assert json.loads(run('--json=-', *flags, file).out)[0]['predictions'] == every[:count]


def test_table_json_and_csv_tell_the_same(photos, run, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    as_json, as_csv = tmp_path / 'out.json', tmp_path / 'out.csv'
    flags = ['--topk=2', '00*.png']
    head, *table = run(f'--json={as_json}', f'--csv={as_csv}', *flags).out.splitlines()
    entries = json.loads(as_json.read_text())
    rows = list(csv.DictReader(as_csv.open()))
    assert head.split() == ['file', 'likeliest', 'classes']
    assert (len(entries), len(rows), len(table)) == (10, 20, 10)
    rows = iter(rows)
    for entry, line in zip(entries, table, strict=True):
        cells = []
        for rank, answer in enumerate(entry['predictions'], 1):
            name, share = answer['class'], answer['probability']
            expected = [entry['file'], str(rank), name, str(share), '', '']
            assert list(next(rows).values()) == expected
            cells += [name, f'{share:.2%}']
        assert line.split() == [entry['file'], *cells]
    assert json.loads(run('--json=-', *flags).out) == entries
    assert run('--csv=-', *flags).out == as_csv.read_text()


@pytest.mark.parametrize('place', [0, 4, 9])
def test_what_is_less_probable_is_marked_as_withheld(place, photos, run, monkeypatch):
    monkeypatch.chdir(photos)
    every = json.loads(run('--json=-', '--topk=1', '00*.png').out)
    shares = sorted(entry['predictions'][0]['probability'] for entry in every)
    flags = [f'--min_probability={shares[place]!r}', '--topk=1', '00*.png']
    entries = json.loads(run('--json=-', *flags).out)
    withheld = [entry.pop('withheld', False) for entry in entries]
    assert entries == every  # What the network holds most likely is still said.
    assert withheld == [e['predictions'][0]['probability'] < shares[place] for e in every]
    rows = csv.DictReader(io.StringIO(run('--csv=-', *flags).out))
    assert [row['withheld'] == '1' for row in rows] == withheld
    _, *lines = run(*flags).out.splitlines()
    assert [line.endswith('withheld') for line in lines] == withheld


def _write(write_as, predictions, *arguments):
    stream = io.TextIOWrapper(io.BytesIO(), 'utf-8', errors='surrogateescape', newline='')
    with write_as(stream, *arguments) as write:
        for prediction in predictions:
            write(prediction)
    return stream.buffer.getvalue()


def test_odd_names_come_back_from_json_and_csv():
    predictions = [
        Prediction(file, ((f'class of {file}', 0.75), ('b', 0.25))) for file in ODD_NAMES
    ]
    predictions.append(Prediction('bad\n.png', error='ends, "early"'))
    entries = json.loads(_write(write_json, predictions))
    text = _write(write_csv, predictions).decode(errors='surrogateescape')
    header, *rows = csv.reader(io.StringIO(text, newline=''))
    assert tuple(header) == CSV_COLUMNS
    assert entries.pop() == {'file': 'bad\n.png', 'error': 'ends, "early"'}
    assert rows.pop() == ['bad\n.png', '', '', '', 'ends, "early"', '']
    for file, entry, first, second in zip(ODD_NAMES, entries, rows[::2], rows[1::2], strict=True):
        predicted = [(f'class of {file}', 0.75), ('b', 0.25)]
        assert (entry['file'], first[0], second[0]) == (file, file, file)
        assert [tuple(answer.values()) for answer in entry['predictions']] == predicted
        assert [(row[2], float(row[3])) for row in (first, second)] == predicted


def test_the_table_keeps_its_columns_whatever_the_names():
    predictions = [Prediction(file, (('cat', 0.75), ('dog', 0.25))) for file in ODD_NAMES]
    text = _write(write_table, predictions, ODD_NAMES, ['cat', 'dog', '一二三']).decode()
    head, *lines = text.split('\n')[:-1]
    wide = {'漢': 2, '字': 2, '\u0301': 0}
    begins = []
    for line in lines:
        if 'cat' in line:
            before = line.partition('cat')[0]
            begins.append(sum(wide.get(character, 1) for character in before))
            # A cell is as wide as 一二三.
            assert line.endswith('cat     75.00%  dog     25.00%')
    assert begins == [50] * len(ODD_NAMES)
    assert head.index('likeliest') == 50
    assert len(lines) == len(ODD_NAMES) + 1  # The long path has a line to itself, in full.
    assert ODD_NAMES[-1] in lines
    assert '\x1b' not in text


def test_without_any_prediction_json_is_an_empty_list():
    assert json.loads(_write(write_json, [])) == []


@pytest.fixture
def tree(tmp_path, monkeypatch):
    shown = ['b.png', 'a.png', 'sub/c.png', 'sub/deep/d.txt', 'x[1].png', 'x1.png']
    for name in [*shown, '.hidden.png', '.cache/e.png']:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['b.png', 'a.png'], ['b.png', 'a.png']),
        (['sub'], ['sub/c.png', 'sub/deep/d.txt']),
        (['sub/', 'b.png'], ['sub/c.png', 'sub/deep/d.txt', 'b.png']),
        (['*.png'], ['a.png', 'b.png', 'x1.png', 'x[1].png']),
        (['*/*.png'], ['sub/c.png']),
        (['**/*.png'], ['a.png', 'b.png', 'sub/c.png', 'x1.png', 'x[1].png']),
        (['su*'], ['sub/c.png', 'sub/deep/d.txt']),
        (['sub/**'], ['sub/c.png', 'sub/deep/d.txt']),
        (['x[1].png'], ['x[1].png']),
        (['./x[12].png'], ['./x1.png']),
        (['a.png', '*.png', 'a.png'], ['a.png', 'b.png', 'x1.png', 'x[1].png']),
        (['.hidden.png', '.cache'], ['.hidden.png', '.cache/e.png']),
        (['~/a.png'], ['{home}/a.png']),
    ],
    ids=str,
)
def test_what_arguments_stand_for(tree, monkeypatch, arguments, expected):
    monkeypatch.setenv('HOME', str(tree))
    found = find_files(arguments)
    assert [item.path for item in found] == [path.format(home=tree) for path in expected]
    assert not any(item.problem for item in found)


def test_a_folder_gives_all_but_what_is_hidden(tree):
    paths = [item.path for item in find_files(['.'])]
    names = ['a.png', 'b.png', 'sub/c.png', 'sub/deep/d.txt', 'x1.png', 'x[1].png']
    assert paths == [f'./{name}' for name in names]


def test_paths_from_stdin_are_taken_as_they_are(tree, monkeypatch):
    (tree / os.fsdecode(b'\xe9.png')).touch()
    lines = io.TextIOWrapper(io.BytesIO(b'x[1].png\r\n\n\xe9.png\n*.png\nsub\nlast'))
    monkeypatch.setattr(sys, 'stdin', lines)
    found = find_files(['b.png', '-'])
    names = ['b.png', 'x[1].png', os.fsdecode(b'\xe9.png'), '*.png', 'sub/c.png', 'sub/deep/d.txt']
    assert [item.path for item in found] == [*names, 'last']
    assert [item.path for item in found if item.problem] == ['*.png', 'last']


def test_what_cannot_be_opened_is_found_with_its_problem(tree):
    os.mkfifo(tree / 'sub/pipe')
    (tree / 'sub/broken.png').symlink_to('absent')
    found = find_files(['a.png', 'absent.png', 'empty', 'sub', 'nul\0.png'])
    assert {item.path: item.problem for item in found if item.problem} == {
        'absent.png': 'No such file or directory',
        'empty': 'a folder without any image',
        'sub/broken.png': 'No such file or directory',
        'sub/pipe': 'no regular file',
        'nul\0.png': 'no path has a null byte',
    }
    (tree / 'sub/again').symlink_to(tree)
    with pytest.raises(UserError, match='is a link to a folder that it lies in'):
        find_files(['sub'])


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ([], 'no image is named; give files'),
        (['a.png', '*.jpg'], r"nothing matches '\*.jpg'"),
        (['a.png', '-'], 'reads paths from stdin, one a line, and none came'),
        (['absent.png'], r'nothing to read \(absent.png: No such file or directory\)'),
        (['empty'], r'nothing to read \(empty: a folder without any image\)'),
        (list('12345'), r'3: No such file or directory, and 2 more\)'),
        (['a.png', '--topk=0'], '--topk=0 must be positive'),
        (['a.png', '--batch_size=-1'], '--batch_size=-1 must be positive'),
        (['a.png', '--topk=many'], "invalid int value: 'many'"),
        (['a.png', '--crops=nine'], "invalid choice: 'nine'"),
        (['a.png', '--crops=ten'], 'ten crops would all be the same'),
        (['a.png', '--checkpoint=7'], '--checkpoint=7 is not in .* it has '),
        (['a.png', '--no_such=1'], 'the argument --no_such is unknown'),
        (['a.png', '--json=no/such/a.json'], "there is no folder 'no/such'"),
        (['a.png', '--csv=sub'], "'sub' is a folder"),
        (['a.png', 'b.png', '--json=b.png'], '--json=b.png is among the files to read'),
        (['a.png', '--json=-', '--csv=-'], 'are both -'),
        (['a.png', '--json=o', '--csv=o'], 'are both o'),
    ],
    ids=str,
)
def test_a_users_mistake_is_told_before_anything_is_written(
    tree, workdir, monkeypatch, capsys, arguments, says
):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'\n')))
    before = sorted(tree.rglob('*'))
    with pytest.raises(UserError, match=says):
        main([f'--workdir={workdir}', *arguments])
    assert capsys.readouterr().out == ''
    assert sorted(tree.rglob('*')) == before


@pytest.mark.parametrize(
    ('has_config', 'says'), [(False, 'there is no run in'), (True, 'has not saved anything yet')]
)
def test_a_workdir_without_a_run_or_checkpoint_is_refused(
    tree, workdir, tmp_path, has_config, says
):
    if has_config:
        for name in ('config.json', 'class_names.json'):
            (tmp_path / name).write_text((workdir / name).read_text())
    with pytest.raises(UserError, match=says):
        main([f'--workdir={tmp_path}', 'a.png'])


def test_what_cannot_be_read_is_named_and_the_rest_is_done(workdir, digits, tmp_path, monkeypatch):
    """As a process, since exit codes and stderr are what scripts see."""
    image, other = digits.images[:2]
    mixed = tmp_path / 'mixed'
    _save(image, mixed / 'sub/good.png')
    second = Image.fromarray(other[..., 0])
    _save(image, mixed / 'moving.gif', save_all=True, append_images=[second])
    whole = (mixed / 'sub/good.png').read_bytes()
    (mixed / 'cut.png').write_bytes(whole[: len(whole) // 2])
    (mixed / 'empty.png').touch()
    (mixed / 'note.txt').write_text('no image')
    monkeypatch.chdir(tmp_path)
    command = [
        sys.executable,
        '-m',
        'flaxcls',
        'predict',
        f'--workdir={workdir}',
        'mixed',
        'absent',
    ]
    result = subprocess.run([*command, '--json=-'], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    errors = result.stderr.splitlines()
    assert errors.pop() == 'error: 4 of 6 files could not be read, as said above.'
    bad = ['mixed/cut.png', 'mixed/empty.png', 'mixed/note.txt', 'absent']
    assert [line.partition(': ')[0] for line in errors] == bad
    for line, reason in zip(
        errors, ('truncated', 'the file is empty', 'none of JPEG, PNG', 'No such file'), strict=True
    ):
        assert reason in line
    entries = json.loads(result.stdout)
    assert [f'{entry["file"]}: {entry["error"]}' for entry in entries if 'error' in entry] == errors
    moving, good = (entry for entry in entries if 'predictions' in entry)
    assert (moving['file'], good['file']) == ('mixed/moving.gif', 'mixed/sub/good.png')
    assert moving['predictions'] == good['predictions']  # The first frame.


def test_views_are_chosen_and_the_temperature_is_told(workdir, photos, run):
    file = sorted(photos.iterdir())[3]
    path = workdir / CALIBRATION_FILE
    plain = run('--json=-', file)
    assert plain.err == ''
    path.write_text(json.dumps({'step': Classifier.load(workdir).step, 'temperature': 50.0}))
    for flags in ([], ['--crops=center']):  # The run's own.
        calibrated = run('--json=-', *flags, file)
        said = 'Note: the probabilities are calibrated, with a temperature of 50.\n'
        assert calibrated.err == said
        shares = [answer['probability'] for answer in _answers(calibrated)]
        assert shares[0] < _answers(plain)[0]['probability']
    flipped = run('--json=-', '--topk=99', '--crops=flip', file)
    assert flipped.err == ''  # It was measured without.
    row = Classifier.load(workdir, crops='flip').predict(file)[0]
    shares = [answer['probability'] for answer in _answers(flipped)]
    np.testing.assert_allclose(shares, np.sort(row)[::-1], rtol=1e-5, atol=1e-7)


def _answers(result):
    return json.loads(result.out)[0]['predictions']


def test_files_without_end_are_read_only_as_far_as_they_are_asked_for(classifier, monkeypatch):
    """What makes memory independent of their number: images in it are those ahead, and a batch."""
    asked, prepared = itertools.count(), []

    def preprocess(path):
        image = np.zeros((12, 12, 3), np.uint8)
        prepared.append(weakref.ref(image))
        return image

    monkeypatch.setattr(classifier, 'preprocess', preprocess)
    endless = (Found(f'{index}.png') for index in asked)
    predictions = predict_files(classifier, endless, batch_size=16)
    for done in range(1, 1200):
        assert next(predictions).file == f'{done - 1}.png'
        if done % 100 == 0:
            assert len(prepared) <= done + ITEMS_AHEAD + 16
            assert sum(image() is not None for image in prepared) <= ITEMS_AHEAD + 2 * 16
    predictions.close()
    assert next(asked) <= 1200 + ITEMS_AHEAD + 16


def test_threads_keep_the_order_and_stop_when_nobody_listens():
    begun, closing = [], threading.Event()

    def slow_from_five_on(item):
        begun.append(item)
        if item >= 5:
            closing.wait(10)
        return -item

    results = map_in_threads(slow_from_five_on, itertools.count(), 2)
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    threading.Timer(0.1, closing.set).start()
    results.close()
    assert len(begun) <= 5 + 2  # Only what was under way.
    assert list(map_in_threads(abs, range(-1000, 0), 3)) == list(range(1000, 0, -1))

    def fail(item):
        raise KeyError(item)

    with pytest.raises(KeyError):
        list(map_in_threads(fail, range(1000), 2))


def test_what_was_predicted_before_ctrl_c_is_whole(workdir, photos, monkeypatch, capsys, tmp_path):
    real = predict_files

    def interrupted(*arguments, **options):
        yield from itertools.islice(real(*arguments, **options), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_files_lib, 'predict_files', interrupted)
    as_json, as_csv = tmp_path / 'a.json', tmp_path / 'a.csv'
    arguments = [f'--json={as_json}', f'--csv={as_csv}', '--topk=1', str(photos)]
    with pytest.raises(Stopped, match='after 3 of 359 files') as stopped:
        main([f'--workdir={workdir}', *arguments])
    assert stopped.value.exit_code == 128 + signal.SIGINT
    files = [str(path) for path in sorted(photos.iterdir())[:3]]
    assert [entry['file'] for entry in json.loads(as_json.read_text())] == files
    assert [row['file'] for row in csv.DictReader(as_csv.open())] == files
    out = capsys.readouterr().out
    assert all(file in out for file in files)


def test_predictions_that_are_not_finite_are_refused(workdir, photos):
    classifier = Classifier.load(workdir)
    classifier.variables = jax.tree.map(lambda x: x * np.nan, classifier.variables)
    with pytest.raises(RunError, match='are not finite'):
        list(predict_files(classifier, find_files([str(photos)])))
