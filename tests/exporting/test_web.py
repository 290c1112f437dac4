"""The page that classifies in the browser, seen in one: predictions, maps, offline, errors."""

import base64
import contextlib
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
from justhtml import JustHTML
from PIL import Image

from flaxcls.data.crops import resize_and_center_crop
from flaxcls.errors import RunError, UserError
from flaxcls.exporting import web
from flaxcls.exporting.export import export
from flaxcls.system.translation import Message, list_languages, load_catalogue
from flaxcls.training.restore import open_run
from tests.helpers.chinese import CHINESE, english_words
from tests.helpers.converters import need_converter
from tests.helpers.environment import INSECURE_HOST

SIDE, SHORTER = 16, 20
COLOURS = {'<b>red</b>': (230, 40, 30), 'green "ü"': (40, 220, 30), 'blue': (30, 40, 235)}
ABOUT = {'title': 'Colours & more', 'class_names': list(COLOURS), 'side': SIDE,
         'shorter_side': SHORTER, 'facts': 'Accuracy 100%'}  # fmt: skip
SHARPNESS = 8.0


def _write_model(path, *, maps):
    """A network whose logits are the mean red, green and blue in 0..1, times SHARPNESS."""
    from onnx import TensorProto, checker, helper, save

    nodes = [
        helper.make_node('Cast', ['images'], ['float'], to=TensorProto.FLOAT),
        helper.make_node('Mul', ['float', 'scale'], ['scaled']),
        helper.make_node('ReduceMean', ['scaled', 'axes'], ['logits'], keepdims=0),
        helper.make_node('Softmax', ['logits'], ['probabilities'], axis=-1),
    ]
    outputs = [helper.make_tensor_value_info('probabilities', TensorProto.FLOAT, ['N', 3])]
    if maps:
        nodes += [
            helper.make_node('Transpose', ['scaled'], ['channels'], perm=[0, 3, 1, 2]),
            helper.make_node(
                'AveragePool', ['channels'], ['pooled'], kernel_shape=[4, 4], strides=[4, 4]
            ),
            helper.make_node('Transpose', ['pooled'], ['maps'], perm=[0, 2, 3, 1]),
        ]
        outputs.append(helper.make_tensor_value_info('maps', TensorProto.FLOAT, ['N', 4, 4, 3]))
    images = helper.make_tensor_value_info('images', TensorProto.UINT8, ['N', SIDE, SIDE, 3])
    constants = [
        helper.make_tensor('scale', TensorProto.FLOAT, [], [SHARPNESS / 255]),
        helper.make_tensor('axes', TensorProto.INT64, [2], [1, 2]),
    ]
    graph = helper.make_graph(nodes, 'colours', [images], outputs, constants)
    # The IR version of ONNX 1.16, which is older than the runtime.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    checker.check_model(model)
    save(model, path)


def _expected(image):
    """Probabilities of that network for what evaluation would show it."""
    logits = SHARPNESS / 255 * resize_and_center_crop(image, SIDE, SIDE / SHORTER).mean((0, 1))
    return np.exp(logits) / np.exp(logits).sum()


@pytest.fixture(scope='module')
def runtime():
    """The npm package is fetched once and kept; without it nothing of the page can be seen."""
    try:
        return web.read_runtime(None)
    except RunError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def pages(runtime, tmp_path_factory):
    """name -> the folder of a page: with maps or without, or one whose model is broken."""
    root = tmp_path_factory.mktemp('pages')
    for name in ('maps', 'no maps'):
        _write_model(root / 'model.onnx', maps=name == 'maps')
        web.write_page(root / name, root / 'model.onnx', ABOUT)
    (root / 'broken.onnx').write_bytes(b'no model')
    web.write_page(root / 'broken', root / 'broken.onnx', ABOUT)
    _write_model(root / 'model.onnx', maps=True)
    names = {'class_names': ['one', 'two']}
    web.write_page(root / 'other names', root / 'model.onnx', ABOUT | names)
    return root


@contextlib.contextmanager
def _served(folder):
    """A plain static server; yields its port, and what stops it."""
    process = subprocess.Popen(
        [sys.executable, '-u', '-m', 'http.server', '--bind=127.0.0.1', '0'],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def stop():
        process.kill()
        process.wait()

    try:
        yield int(re.search(r'port (\d+)', process.stdout.readline())[1]), stop
    finally:
        stop()
        process.stdout.close()


@pytest.fixture(scope='module')
def port(pages):
    with _served(pages) as (port, _):
        yield port


@pytest.fixture
def open_page(browser):
    """Returns (address, options of the context) -> the page; fails for complaints or strangers."""
    opened = []

    def open_address(address, **options):
        context = browser.new_context(**options)
        view = context.new_page()
        view.set_default_timeout(20_000)
        view.complaints, requests = [], []
        view.on('console', lambda message: view.complaints.append(message.text))
        view.on('pageerror', lambda error: view.complaints.append(str(error)))
        # Of the context: those of the service worker as well.
        context.on('request', lambda request: requests.append(request.url))
        opened.append((view, requests, address))
        view.goto(address)
        return view

    yield open_address
    for view, requests, address in opened:
        own = re.match(r'http://[^/]+/', address)[0]
        assert requests and all(url.startswith((own, 'blob:' + own)) for url in requests)
        assert view.complaints == []
        view.context.close()


def _encoded(image, form='PNG', **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def _file(data, name='picture.png', kind='image/png'):
    return {'name': name, 'mimeType': kind, 'buffer': data}


def _two_halves(upper, lower, height=60, width=90):
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2], image[height // 2 :] = COLOURS[upper], COLOURS[lower]
    return image


PICTURE = _two_halves('<b>red</b>', 'blue')
PICTURE[:35] = COLOURS['<b>red</b>']


def _predictions(view):
    """{class: probability} as the page shows them, in their order."""
    view.wait_for_selector('#heat-controls:not([hidden])')
    rows = view.locator('#predictions button').all()
    return {
        row.locator('.name').inner_text(): float(row.locator('.share').inner_text().rstrip('%'))
        for row in rows
    }


def _require_prediction(view, image=PICTURE):
    shown, expected = _predictions(view), dict(zip(COLOURS, _expected(image), strict=True))
    assert list(shown) == sorted(expected, key=expected.get, reverse=True)
    for name, probability in expected.items():
        assert shown[name] == pytest.approx(100 * probability, abs=0.25)
        bar = view.locator('#predictions button', has_text=name).locator('.bar')
        share = bar.evaluate(
            'bar => parseFloat(getComputedStyle(bar, "::before").width) / bar.clientWidth'
        )
        assert share == pytest.approx(probability, abs=0.01)


def _heat(view):
    """Opacity [256, 256] of the map, 0 to 255."""
    return np.array(
        view.evaluate(
            """() => {
                const copy = new OffscreenCanvas(heat.width, heat.height);
                const context = copy.getContext('2d', { willReadFrequently: true });
                context.drawImage(heat, 0, 0);
                const { data } = context.getImageData(0, 0, copy.width, copy.height);
                return Array.from(data.filter((value, index) => index % 4 === 3));
            }"""
        )
    ).reshape(256, 256)


@pytest.mark.parametrize('name', ['maps', 'no maps'])
def test_a_chosen_file_gives_the_networks_prediction_and_a_map_for_each_class(
    open_page, port, name
):
    view = open_page(f'http://127.0.0.1:{port}/{name}/')
    view.set_input_files('#file', _file(_encoded(PICTURE)))
    _require_prediction(view)
    assert view.title() == view.locator('h1').inner_text() == ABOUT['title']
    assert ABOUT['facts'] in view.locator('footer').inner_text()
    method = 'class-activation' if name == 'maps' else 'occlusion'
    upper = slice(0, 90), slice(166, 256)  # Away from the border between the colours.
    for label, (warm, cold) in {'<b>red</b>': upper, 'blue': upper[::-1]}.items():
        view.locator('#predictions button', has_text=label).click()
        pressed = view.locator('#predictions button[aria-pressed=true] .name')
        assert pressed.all_inner_texts() == [label]
        legend = view.locator('#heat-legend').inner_text()
        assert method in legend and label in legend
        heat = _heat(view)
        assert heat.max() > 250 and heat[warm].mean() > 4 * heat[cold].mean()
    opacity = 'getComputedStyle(heat).opacity'
    view.locator('#strength').focus()
    view.keyboard.press('Home')
    assert view.evaluate(opacity) == '0'
    view.keyboard.press('End')
    assert view.evaluate(opacity) == '1'


def test_the_mark_lies_over_what_the_network_sees(open_page, port):
    view = open_page(f'http://127.0.0.1:{port}/maps/')
    for height, width in ((60, 90), (200, 50), (16, 16)):
        view.set_input_files('#file', _file(_encoded(np.zeros((height, width, 3), np.uint8))))
        _predictions(view)
        frame, crop = (view.locator(one).bounding_box() for one in ('#frame', '#crop'))
        assert frame['width'] / frame['height'] == pytest.approx(width / height, rel=0.03)
        side = min(frame['width'], frame['height']) * SIDE / SHORTER
        for length, place in (('width', 'x'), ('height', 'y')):
            assert crop[length] == pytest.approx(side, rel=0.03)
            middle = frame[place] + frame[length] / 2
            assert crop[place] + crop[length] / 2 == pytest.approx(middle, abs=0.03 * side)


def _transfer(view, data, event, kind='image/png'):
    """Drops or pastes a file, or the text if `data` is one."""
    view.evaluate(
        """([data, event, kind]) => {
            const transfer = new DataTransfer();
            if (typeof data === 'string') transfer.setData('text/plain', data);
            else transfer.items.add(new File([new Uint8Array(data)], 'picture', { type: kind }));
            const options = { bubbles: true, cancelable: true };
            const made = event === 'paste'
                ? new ClipboardEvent(event, { ...options, clipboardData: transfer })
                : new DragEvent(event, { ...options, dataTransfer: transfer });
            if (document.body.dispatchEvent(made)) throw new Error('the browser would open it');
        }""",
        [data if isinstance(data, str) else list(data), event, kind],
    )


@pytest.mark.parametrize('way', ['drop', 'paste', 'camera', 'keyboard'])
def test_all_ways_in_lead_to_the_prediction(open_page, port, way):
    view = open_page(f'http://127.0.0.1:{port}/maps/', has_touch=True, is_mobile=True)
    # Playwright begins to catch choosers at some moment after it is first asked to.
    view.on('filechooser', lambda chooser: None)
    view.get_by_text('Ready for a picture').wait_for()
    data = _encoded(PICTURE)
    if way == 'camera':
        assert view.locator('#camera').get_attribute('capture') == 'environment'
        with view.expect_file_chooser() as chooser:
            view.get_by_text('Take a photo', exact=True).tap()
        chooser.value.set_files(_file(data))
    elif way == 'keyboard':
        view.keyboard.press('Tab')
        assert view.evaluate('document.activeElement.id') == 'file'
        with view.expect_file_chooser() as chooser:
            view.keyboard.press('Enter')
        chooser.value.set_files(_file(data))
    else:
        _transfer(view, data, way)
    _require_prediction(view)


def test_the_camera_is_offered_only_where_one_is_held_in_the_hand(open_page, port):
    view = open_page(f'http://127.0.0.1:{port}/maps/')
    assert view.get_by_text('Choose a picture', exact=True).is_visible()
    assert not view.get_by_text('Take a photo', exact=True).is_visible()


def test_a_second_picture_takes_the_place_of_one_that_is_still_explained(open_page, port):
    view = open_page(f'http://127.0.0.1:{port}/no maps/')
    view.set_input_files('#file', _file(_encoded(PICTURE[::-1])))
    view.set_input_files('#file', _file(_encoded(PICTURE)))
    _require_prediction(view)
    assert 'occlusion' in view.locator('#heat-legend').inner_text()
    assert view.locator('#progress').is_hidden()


def test_what_cannot_be_shown_is_one_sentence(open_page, port):
    view = open_page(f'http://127.0.0.1:{port}/maps/')
    error = view.locator('#error')
    view.set_input_files('#file', _file(b'only words', 'notes.txt', 'text/plain'))
    error.get_by_text('notes.txt is not an image that this browser can read').wait_for()
    assert view.locator('#status').inner_text() == ''
    view.set_input_files('#file', _file(_encoded(PICTURE)[:60], 'half.png'))
    error.get_by_text('half.png is not an image that').wait_for()
    _transfer(view, 'http://example.com/cat.jpg', 'drop')
    error.get_by_text('There is no picture in this').wait_for()
    view.set_input_files('#file', _file(_encoded(PICTURE)))
    _require_prediction(view)
    assert error.inner_text() == ''


@pytest.mark.parametrize(
    ('name', 'says'),
    [
        ('broken', 'The model cannot be loaded ('),
        ('other names', '3 classes, and about.json names 2'),
    ],
)
def test_a_model_that_does_not_work_is_one_sentence(open_page, port, name, says):
    view = open_page(f'http://127.0.0.1:{port}/{name}/')
    view.set_input_files('#file', _file(_encoded(PICTURE)))
    view.locator('#error').get_by_text(says).wait_for()
    assert view.locator('#progress').is_hidden()
    view.complaints.clear()  # The runtime says it as well.


def test_a_missing_model_is_one_sentence(open_page, pages, tmp_path):
    folder = shutil.copytree(pages / 'maps', tmp_path / 'page')
    (folder / 'model.onnx').unlink()
    with _served(folder) as (port, _):
        view = open_page(f'http://127.0.0.1:{port}/')
        view.locator('#error').get_by_text('model.onnx?v=').wait_for()
        assert 'cannot be loaded' in view.locator('#error').inner_text()
        assert '404' in view.complaints.pop()


def test_after_loading_it_needs_no_server(open_page, pages):
    with _served(pages / 'maps') as (port, stop):
        view = open_page(f'http://127.0.0.1:{port}/')
        view.get_by_text('works without a network').wait_for()
        stop()
        for address in ('', 'index.html', '?from=home'):
            view.goto(f'http://127.0.0.1:{port}/{address}')
            view.set_input_files('#file', _file(_encoded(PICTURE)))
            _require_prediction(view)
            assert view.locator('h1').inner_text() == ABOUT['title']
        # What Chromium says of each file that it did not get from the server.
        assert all('ERR_CONNECTION_REFUSED' in text for text in view.complaints)
        view.complaints.clear()


def test_a_new_version_is_seen_at_once(open_page, pages, tmp_path):
    folder = shutil.copytree(pages / 'no maps', tmp_path / 'page')
    with _served(folder) as (port, _):
        view = open_page(f'http://127.0.0.1:{port}/')
        view.get_by_text('works without a network').wait_for()
        newer = ABOUT | {'title': 'Newer', 'class_names': ['one', 'two', 'three']}
        web.write_page(folder, pages / 'maps' / 'model.onnx', newer)
        view.reload()
        view.set_input_files('#file', _file(_encoded(PICTURE)))
        assert next(iter(_predictions(view))) == 'one'
        assert 'class-activation' in view.locator('#heat-legend').inner_text()
        assert view.title() == 'Newer'
        kept = view.evaluate(
            'caches.open("flaxcls").then(one => one.keys()).then(all => all.map(key => key.url))'
        )
        assert sum('model.onnx' in url for url in kept) == 1


def test_without_https_it_works_and_keeps_nothing(open_page, port):
    view = open_page(f'http://{INSECURE_HOST}:{port}/maps/')
    assert not view.evaluate('isSecureContext')
    view.set_input_files('#file', _file(_encoded(PICTURE)))
    _require_prediction(view)
    assert view.locator('#offline').inner_text() == ''


# What is shown as it is, in any language.
NAMES = {
    *('red', 'green', 'blue', 'Colours', 'more'),
    *('flaxcls', 'Runtime', 'Web', 'notes', 'txt'),
}


def _require_chinese(view):
    shown = view.title() + view.locator('body').inner_text().replace(ABOUT['facts'], '')
    assert view.evaluate('document.documentElement.lang') == 'zh'
    assert len(re.findall(CHINESE, shown)) > 40
    assert set(english_words(shown)) <= NAMES
    named = view.locator('[aria-label]').evaluate_all('all => all.map((one) => one.ariaLabel)')
    assert named and not english_words(re.sub('|'.join(NAMES), '', ' '.join(named)))


@pytest.mark.parametrize('name', ['maps', 'no maps'])
def test_a_chinese_browser_shows_it_in_chinese(open_page, port, name):
    view = open_page(f'http://127.0.0.1:{port}/{name}/', locale='zh-CN', has_touch=True)
    _require_chinese(view)
    view.set_input_files('#file', _file(_encoded(PICTURE)))
    _require_prediction(view)
    _require_chinese(view)
    view.set_input_files('#file', _file(b'only words', 'notes.txt', 'text/plain'))
    view.locator('#error').get_by_text('notes.txt').wait_for()
    _require_chinese(view)
    _transfer(view, 'http://example.com/cat.jpg', 'drop')
    _require_chinese(view)


@pytest.mark.parametrize(('locale', 'language'), [('en-GB', 'en'), ('fr-FR', 'en'), ('zh', 'zh')])
def test_it_is_in_the_language_of_the_browser_or_english(open_page, port, locale, language):
    view = open_page(f'http://127.0.0.1:{port}/maps/', locale=locale)
    text = 'Ready for a picture.'
    view.get_by_text(load_catalogue('zh')['web'][text] if language == 'zh' else text).wait_for()
    assert view.evaluate('document.documentElement.lang') == language


@pytest.mark.parametrize(('language', 'locale'), [('zh', 'en-US'), ('en', 'zh-CN')])
def test_a_language_that_was_asked_for_is_that_of_everyone(
    open_page, runtime, pages, tmp_path, language, locale
):
    web.write_page(tmp_path / 'page', pages / 'maps' / 'model.onnx', ABOUT, language=language)
    with _served(tmp_path / 'page') as (port, _):
        view = open_page(f'http://127.0.0.1:{port}/', locale=locale)
        view.set_input_files('#file', _file(_encoded(PICTURE)))
        _require_prediction(view)
        assert view.evaluate('document.documentElement.lang') == language
        shown = view.locator('main').inner_text()
        assert bool(re.search(CHINESE, shown)) == (language == 'zh')
        if language == 'zh':
            _require_chinese(view)


def test_opened_as_a_file_it_says_so_in_the_readers_language(browser, pages):
    context = browser.new_context(locale='zh-CN')
    view = context.new_page()
    view.goto((pages / 'maps' / 'index.html').as_uri())
    view.get_by_text('python -m http.server').wait_for(timeout=20_000)
    assert re.search(CHINESE, view.locator('#not-started').inner_text())
    context.close()


def test_opened_as_a_file_it_says_what_it_needs(browser, pages):
    view = browser.new_page()
    view.goto((pages / 'maps' / 'index.html').as_uri())
    view.get_by_text('python -m http.server').wait_for(timeout=20_000)
    assert not view.get_by_text('Ready for a picture').is_visible()
    view.close()


@pytest.mark.parametrize('width', [320, 375, 768, 1280])
def test_it_fits_every_screen_light_and_dark(open_page, port, width):
    view = open_page(
        f'http://127.0.0.1:{port}/maps/', viewport={'width': width, 'height': 700}, has_touch=True
    )
    fits = 'document.documentElement.scrollWidth <= innerWidth'
    view.get_by_text('Ready for a picture').wait_for()
    assert view.evaluate(fits)
    view.set_input_files('#file', _file(_encoded(PICTURE)))
    _predictions(view)
    for scheme in ('light', 'dark'):
        view.emulate_media(color_scheme=scheme)
        assert view.evaluate(fits)
        colour = view.evaluate('getComputedStyle(document.body).backgroundColor')
        assert (max(map(int, re.findall(r'\d+', colour)[:3])) < 128) == (scheme == 'dark')


def test_everything_that_is_used_has_a_name(open_page, port):
    """As a screen reader finds them."""
    view = open_page(f'http://127.0.0.1:{port}/maps/', has_touch=True)
    view.set_input_files('#file', _file(_encoded(PICTURE)))
    best = next(iter(_predictions(view)))
    for role, name in (
        ('button', 'Choose a picture'),
        ('button', 'Take a photo'),
        ('slider', 'Heat map'),
        ('button', best),
        ('img', f'The picture, most likely {best}'),
    ):
        assert view.get_by_role(role, name=name).count() == 1, name
    assert f'Most likely {best}' in view.get_by_role('status').inner_text()


# Pictures and sizes: how much the shorter side changes, from a sixth to three times.
CASES = [('china', 64, 73), ('china', 224, 256), ('flower', 97, 97), ('flower', 299, 342),
         ('tiny', 32, 37), ('line', 8, 9), ('line', 16, 20), ('grey', 24, 24)]  # fmt: skip


def _picture(name):
    if name in ('china', 'flower'):
        from sklearn.datasets import load_sample_image

        return load_sample_image(f'{name}.jpg')
    shape = {'tiny': (11, 13, 3), 'line': (9, 700, 3), 'grey': (50, 40, 1)}[name]
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def prepared(open_page, pages):
    """Returns (bytes of a file, side, shorter side) -> what the page makes of it."""
    with _served(pages) as (port, _):
        view = open_page(f'http://127.0.0.1:{port}/maps/')

        def prepare(data, side, shorter):
            pixels = view.evaluate(
                """async ([data, side, shorter]) => {
                    const { decode, prepare } = await import('./preprocess.js');
                    const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
                    const pixels = prepare(await decode(new Blob([bytes])), side, shorter);
                    return btoa(Array.from(pixels, (one) => String.fromCharCode(one)).join(''));
                }""",
                [base64.b64encode(data).decode(), side, shorter],
            )
            pixels = np.frombuffer(base64.b64decode(pixels), np.uint8)
            return pixels.reshape(side, side, 3).astype(np.int64)

        yield prepare


def test_pictures_are_prepared_as_in_evaluation(prepared):
    for name, side, shorter in CASES:
        image = _picture(name)
        found = prepared(_encoded(image.squeeze()), side, shorter)
        expected = resize_and_center_crop(image, side, side / shorter)
        assert abs(found - expected).max() <= 1, name


def test_photographs_are_upright_and_transparency_is_white(prepared):
    image = _picture('flower')
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = _encoded(image, 'JPEG', quality=95, exif=exif)
        # Of at most twice the wanted size, which evaluation decodes fully.
        difference = abs(prepared(data, 224, 256) - resize_and_center_crop(data, 224, 224 / 256))
        assert difference.max() <= 2
    shape = (40, 30, 4)
    clear = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    clear[:20, :, 3] = 0
    data = _encoded(clear)
    found = prepared(data, 30, 30)
    assert abs(found - resize_and_center_crop(data, 30, 1.0)).max() <= 2
    assert (found[:13] == 255).all()


def test_a_large_photograph_is_prepared_as_in_evaluation(prepared):
    large = np.asarray(Image.fromarray(_picture('china')).resize((2600, 1800), 3))
    data = _encoded(large, 'JPEG', quality=95)
    # Evaluation decodes it smaller than it is.
    difference = abs(prepared(data, 224, 256) - resize_and_center_crop(data, 224, 224 / 256))
    assert difference.mean() < 0.5 and difference.max() <= 12


# What needs no browser.


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / 'some.onnx'
    path.write_bytes(b'a model')
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small file in the place of the npm package, and a cache of its own."""
    path = tmp_path / 'package.tgz'
    with tarfile.open(path, 'w:gz') as archive:
        for name in web.RUNTIME_FILES:
            content = f'content of {name}'.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(web, 'INTEGRITY', f'sha512-{digest}')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return path


@pytest.fixture
def registry(package, tmp_path, monkeypatch):
    """A registry on this machine; returns how often the package was fetched from it."""
    fetched, original = [], urllib.request.urlopen
    place = tmp_path / 'registry' / 'onnxruntime-web' / '-'
    place.mkdir(parents=True)
    shutil.copy(package, place / web.RUNTIME)

    def count(address, **options):
        fetched.append(address)
        return original(address, **options)

    monkeypatch.setattr(urllib.request, 'urlopen', count)
    monkeypatch.setenv('NPM_CONFIG_REGISTRY', (tmp_path / 'registry').as_uri() + '/')
    return fetched


def test_the_folder_has_all_that_its_files_name(package, model_file, tmp_path):
    folder = tmp_path / 'page'
    index = web.write_page(folder, model_file, ABOUT, onnxruntime_web=package)
    assert index == folder / 'index.html'
    about = json.loads((folder / 'about.json').read_text(encoding='utf-8'))
    for key, path in (('model_file', folder / 'model.onnx'), ('runtime_file', None)):
        name, version = about[key]['address'].split('?v=')
        data = (path or folder / name).read_bytes()
        assert about[key]['bytes'] == len(data)
        assert hashlib.sha256(data).hexdigest().startswith(version) and len(version) > 8
    assert {key: about[key] for key in ABOUT} == ABOUT
    named = set(re.findall(r'(?:src|href)="([^"]+)"', index.read_text()))
    for script in folder.glob('*.js'):
        named |= set(re.findall(r"from '([^']+)'", script.read_text()))
    kept = re.search(r'FILES = \[(.*?)\]', (folder / 'sw.js').read_text(), re.DOTALL)[1]
    kept = set(re.findall(r"'([^']+)'", kept))
    for name in named | kept:
        assert (folder / name).exists() and '//' not in name and not name.startswith('/')
    # All but what is kept elsewhere, or only read.
    left = {'index.html', 'sw.js', 'model.onnx', 'onnxruntime/ort.wasm', 'onnxruntime/LICENSE.txt'}
    files = {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}
    assert files == left | (kept - {'./'})
    icon = json.loads((folder / 'manifest.json').read_text())['icons'][0]
    assert 'x'.join(map(str, Image.open(folder / icon['src']).size)) == icon['sizes']


@pytest.mark.parametrize('language', [None, *list_languages()])
def test_it_has_the_texts_of_the_languages_it_may_be_in(package, model_file, tmp_path, language):
    facts = Message('The checkpoint of step {step}.', step='</script>')
    about = ABOUT | {'facts': facts}
    options = {'onnxruntime_web': package, 'language': language}
    index = web.write_page(tmp_path / 'page', model_file, about, **options)
    document = JustHTML(index.read_text(encoding='utf-8'), strict=True, sanitize=False)
    (block,) = document.query('#languages')
    texts = json.loads(block.to_text())
    shown = [language] if language else list_languages()
    assert texts['fixed'] == language
    assert set(texts['texts']) == set(shown) - {'en'}
    for each in texts['texts'].values():
        assert '</script>' in each[facts] != facts
    (html,) = document.query('html')
    assert html.attrs['lang'] == (language or 'en')


def test_a_page_can_be_written_again(package, model_file, tmp_path):
    folder = tmp_path / 'page'
    web.write_page(folder, model_file, ABOUT, onnxruntime_web=package)
    before = json.loads((folder / 'about.json').read_text(encoding='utf-8'))
    web.write_page(folder, folder / 'model.onnx', ABOUT, onnxruntime_web=package)
    assert json.loads((folder / 'about.json').read_text(encoding='utf-8')) == before
    model_file.write_bytes(b'another')
    web.write_page(folder, model_file, ABOUT, onnxruntime_web=package)
    after = json.loads((folder / 'about.json').read_text(encoding='utf-8'))
    assert after['model_file'] != before['model_file']
    assert after['runtime_file'] == before['runtime_file']


def test_the_package_is_fetched_once(registry, model_file, tmp_path):
    for name in ('one', 'two'):
        web.write_page(tmp_path / name, model_file, ABOUT)
    assert len(registry) == 1
    [kept] = (path for path in (tmp_path / 'cache').rglob('*') if path.is_file())
    kept.write_bytes(kept.read_bytes()[:-1])  # Damage is not a reason to fail.
    web.write_page(tmp_path / 'three', model_file, ABOUT)
    assert len(registry) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(registry, model_file, tmp_path):
    (tmp_path / 'cache').write_text('in the way')
    web.write_page(tmp_path / 'page', model_file, ABOUT)
    assert (tmp_path / 'page' / 'onnxruntime' / 'ort.js').read_text().startswith('content of')


def test_without_the_registry_there_is_a_remedy(registry, model_file, tmp_path, monkeypatch):
    remedy = 'npm pack onnxruntime-web@1.30.0, and give it as --onnxruntime_web='
    [kept] = (tmp_path / 'registry').rglob('*.tgz')
    kept.write_bytes(b'another package')
    with pytest.raises(RunError, match='not the package that was tested; .*' + remedy):
        web.write_page(tmp_path / 'page', model_file, ABOUT)
    for address in ((tmp_path / 'none').as_uri(), 'http://127.0.0.1:9/', 'no address'):
        monkeypatch.setenv('NPM_CONFIG_REGISTRY', address)
        with pytest.raises(RunError, match='could not be fetched .*' + remedy):
            web.write_page(tmp_path / 'page', model_file, ABOUT)
    assert not (tmp_path / 'page').exists()


def test_the_registry_is_the_one_npm_is_set_to(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError('no network')

    def asked():
        with pytest.raises(RunError) as caught:
            web.read_runtime(None)
        return str(caught.value).partition('/onnxruntime-web/')[0]

    monkeypatch.setattr(urllib.request, 'urlopen', fail)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for name in ('NPM_CONFIG_REGISTRY', 'npm_config_registry'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert asked() == 'https://registry.npmjs.org'
    npm = tmp_path / 'npm'
    npm.write_text('#!/bin/sh\n[ "$*" = "config get registry" ] && echo https://mirror.test/npm/\n')
    npm.chmod(0o755)
    assert asked() == 'https://mirror.test/npm'
    monkeypatch.setenv('npm_config_registry', 'https://other.test')
    assert asked() == 'https://other.test'


def test_mistakes_are_one_sentence(package, model_file, tmp_path):
    (tmp_path / 'wrong.tgz').write_bytes(b'wrong')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.tex').touch()
    write = lambda folder='page', model=model_file, about=ABOUT, given=package: web.write_page(  # noqa: E731
        tmp_path / folder, model, about, onnxruntime_web=given
    )
    without = {key: value for key, value in ABOUT.items() if key != 'side'}
    for arguments, says in (
        ({'model': tmp_path / 'none.onnx'}, 'there is no model'),
        ({'folder': 'full'}, 'has other files; name a new folder'),
        ({'folder': 'wrong.tgz'}, 'is a file; name a folder'),
        ({'about': without}, r"needs about\['side'\]; it is None"),
        ({'about': ABOUT | {'fact': ''}}, "about has 'fact'"),
        ({'about': ABOUT | {'side': 21}}, 'a square of 21 pixels cannot be cut'),
        ({'given': tmp_path / 'none.tgz'}, r'none.tgz.* cannot be read \(No such file'),
        ({'given': tmp_path / 'wrong.tgz'}, 'is not onnxruntime-web-1.30.0.tgz'),
    ):
        with pytest.raises(UserError, match=says):
            write(**arguments)
    assert not (tmp_path / 'page').exists()


def test_an_exported_run_reads_digits_as_the_classifier_does(
    runtime, open_page, finished, classifier, tmp_path
):
    pytest.importorskip('onnxruntime')
    need_converter('jax2onnx')
    export(finished.workdir, 'web', tmp_path / 'page', images=50)
    # As large as the network takes them, since a browser's way to resize is another one.
    digits = open_run(finished.workdir).dataset.val.images[:5]
    images = [classifier.preprocess(image) for image in digits]
    probabilities = classifier.predict(np.stack(images))
    with _served(tmp_path / 'page') as (port, _):
        view = open_page(f'http://127.0.0.1:{port}/')
        for image, expected in zip(images, probabilities, strict=True):
            view.set_input_files('#file', _file(_encoded(image[..., 0])))
            view.wait_for_function(
                'text => document.querySelector("#predictions .share")?.innerText === text',
                arg=f'{100 * expected.max():.1f}%',
            )
            first = view.locator('#predictions button .name').first
            assert first.inner_text() == str(expected.argmax())
