"""The server as its clients meet it: over HTTP, alone and all at once, meaning well and not."""

import asyncio
import contextlib
import http.client
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent import futures

import jax
import numpy as np
import pytest
from justhtml import JustHTML
from PIL import Image
from starlette.requests import Request

from flaxcls.commands import serve
from flaxcls.errors import RunError, UserError
from flaxcls.inference.classifier import Classifier
from flaxcls.serving import server as server_lib
from flaxcls.serving.app import Server, batch_sizes
from flaxcls.serving.batching import Batcher
from flaxcls.serving.limits import Limits
from flaxcls.serving.page import Page
from flaxcls.system.translation import load_catalogue
from tests.helpers.chinese import CHINESE, english_words
from tests.helpers.environment import with_devices

SMALL = Limits(max_batch=4, max_wait_ms=20, max_bytes=100_000, max_pixels=10_000)
PATIENCE = 30  # In seconds, after which a test has failed instead of waiting on.
HOSTILE = '<img src=http://x/y onerror=alert(1)>'


@contextlib.contextmanager
def _serving(classifier, limits):
    """Yields the port of a server in a thread."""
    with server_lib.bind('127.0.0.1', 0) as listener:
        server = server_lib.make_server(classifier, limits)
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
        port = listener.getsockname()[1]
        thread.start()
        _until(lambda: server.started)  # It imports as it starts, which a test may hinder.
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope='module')
def port(classifier):
    with _serving(classifier, SMALL) as port:
        yield port


def _request(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def _predict(port, data, query='', **headers):
    """Returns the status and the JSON of the response."""
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    status, _, text = _request(port, 'POST', f'/predict{query}', data, headers)
    return status, json.loads(text)


def _counts(port):
    """Returns {name of a metric with its labels: value}."""
    status, _, text = _request(port, 'GET', '/metrics')
    assert status == 200
    lines = [line for line in text.decode().splitlines() if not line.startswith('#')]
    return {name: float(value) for name, value in (line.rsplit(' ', 1) for line in lines)}


def _until(condition):
    """Waits for what happens in another thread or process."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.01)


def _image(seed, kind='PNG', shape=(12, 9, 3)):
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _form(*files):
    parts = [
        b'--limit\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        b'Content-Type: image/png\r\n\r\n' + data + b'\r\n'
        for data in files
    ]
    return b''.join(parts) + b'--limit--\r\n'


FORM = {'Content_Type': 'multipart/form-data; boundary=limit'}


def _png_header(width, height):
    """A PNG of any size, in a few bytes."""
    chunk = lambda name, data: (  # noqa: E731
        struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    )
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    parts = [(b'IHDR', header), (b'IDAT', zlib.compress(b'\0' * 1000)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def _require_predictions(classifier, data, status, response):
    assert status == 200, response
    expected = dict(zip(classifier.class_names, classifier.predict(data)[0], strict=True))
    found = {one['name']: one['probability'] for one in response['predictions']}
    assert len(found) == len(response['predictions'])
    for name, probability in found.items():
        np.testing.assert_allclose(probability, expected[name], rtol=1e-4, atol=1e-6)
    shares = [one['probability'] for one in response['predictions']]
    assert shares == sorted(shares, reverse=True)
    assert min(shares) >= sorted(expected.values())[-len(shares)] - 1e-5


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'WEBP', 'BMP', 'TIFF'])
def test_it_predicts_as_the_classifier_does(classifier, port, kind):
    data = _image(0, kind)
    for body, headers in (
        (data, {}),
        (data, {'Content_Type': f'image/{kind.lower()}'}),
        (data, {'Content_Type': 'application/x-www-form-urlencoded'}),  # As curl says.
        (_form(data), FORM),
        (iter([data[:50], data[50:]]), {}),  # In chunks of unknown number.
    ):
        status, response = _predict(port, body, **headers)
        _require_predictions(classifier, data, status, response)
        assert len(response['predictions']) == 5
        assert (response['model'], response['step']) == ('resnet20', classifier.step)


@pytest.mark.parametrize(('asked', 'returned'), [(1, 1), (3, 3), (10, 10), (99, 10)])
def test_as_many_classes_are_returned_as_were_asked_for(classifier, port, asked, returned):
    status, response = _predict(port, _image(1), f'?top_k={asked}')
    _require_predictions(classifier, _image(1), status, response)
    assert len(response['predictions']) == returned


def test_of_many_requests_at_once_each_has_its_own_response_and_some_share_a_batch(
    classifier, port
):
    before = _counts(port)
    images = [_image(seed, shape=(8 + seed % 5, 8, 3)) for seed in range(120)]
    with futures.ThreadPoolExecutor(16) as pool:
        predicted = list(pool.map(lambda data: _predict(port, data, '?top_k=10'), images))
    for data, (status, response) in zip(images, predicted, strict=True):
        _require_predictions(classifier, data, status, response)
    after = _counts(port)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['flaxcls_requests_total{status="200"}'] == 120
    assert grown['flaxcls_request_seconds_count'] == 120
    assert grown['flaxcls_batch_size_sum'] == 120
    assert grown['flaxcls_batch_size_count'] < 120
    assert grown['flaxcls_batch_size_bucket{le="4.0"}'] == grown['flaxcls_batch_size_count']
    assert after['flaxcls_queue_length'] == after['flaxcls_requests_under_way'] == 0


def test_no_batch_is_of_a_size_that_has_not_been_compiled(classifier, caplog):
    assert [batch_sizes(n) for n in (1, 2, 3, 5, 8)] == [
        [1],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 8],
        [1, 2, 4, 8],
    ]
    server = Server(classifier, SMALL._replace(max_batch=7))
    server.compile_batches()
    side = classifier.side
    images = np.random.default_rng(0).integers(0, 256, (7, side, side, 3), dtype=np.uint8)
    expected = classifier.predict(images)
    with jax.log_compiles():
        for count in range(1, 8):
            np.testing.assert_allclose(
                server.compute(images[:count]), expected[:count], rtol=1e-4, atol=1e-6
            )
        assert not caplog.records
        server.compute(np.zeros((9, side, side, 3), np.uint8))  # Such would be seen.
    assert caplog.records


def _truncated(kind):
    data = _image(2, kind, (64, 64, 3))
    return data[: len(data) // 2]


REFUSED = {
    'text': (b'no image at all', '', {}, 415, 'no readable image'),
    'JSON': (b'{"image": 3}', '', {'Content_Type': 'application/json'}, 415, 'no readable image'),
    'nothing': (b'', '', {}, 400, 'is empty'),
    'truncated JPEG': (_truncated('JPEG'), '', {}, 422, 'truncated'),
    'truncated PNG': (_truncated('PNG'), '', {}, 422, 'truncated'),
    'half a header': (_image(0)[:20], '', {}, 415, 'no readable image'),
    'pixels': (_png_header(101, 100), '', {}, 413, 'more than 10,000 pixels'),
    'very many pixels': (_png_header(50_000, 50_000), '', {}, 413, 'more than 10,000 pixels'),
    'bytes': (bytes(100_001), '', {}, 413, 'more than 100,000 bytes'),
    'very many bytes': (bytes(100_000_000), '', {}, 413, 'more than 100,000 bytes'),
    'bytes of a form': (_form(bytes(100_000)), '', FORM, 413, 'more than 100,000 bytes'),
    'two files': (_form(_image(0), _image(1)), '', FORM, 400, '2 files'),
    'no file': (_form(), '', FORM, 400, '0 files'),
    'text in a form': (_form(b'no image'), '', FORM, 415, 'no readable image'),
    'no form': (b'--other', '', FORM, 400, ''),
    'no boundary': (_form(), '', {'Content_Type': 'multipart/form-data'}, 400, 'boundary'),
    'no classes': (_image(0), '?top_k=0', {}, 400, 'top_k'),
    'no number': (_image(0), '?top_k=many', {}, 400, 'top_k'),
    'unknown option': (_image(0), '?topk=3', {}, 400, "'topk' is unknown"),
    'another path': (_image(0), '/', {}, 404, 'POST an image to /predict'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_served_is_refused_in_a_sentence(classifier, port, name):
    body, query, headers, code, says = REFUSED[name]
    status, response = _predict(port, body, query, **headers)
    assert (status, list(response)) == (code, ['error'])
    assert says in response['error']
    assert response['error'].endswith('.')
    assert '\n' not in response['error']
    _require_predictions(classifier, _image(0), *_predict(port, _image(0)))


def test_a_body_is_refused_by_what_it_announces(port):
    with socket.create_connection(('127.0.0.1', port), timeout=PATIENCE) as client:
        client.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n')
        assert client.recv(1000).startswith(b'HTTP/1.1 413 ')


def test_a_body_without_end_is_refused_when_it_is_too_long(port):
    with socket.create_connection(('127.0.0.1', port), timeout=PATIENCE) as client:
        client.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n')
        for _ in range(11):
            client.sendall(b'2710\r\n' + bytes(10_000) + b'\r\n')
        assert client.recv(1000).startswith(b'HTTP/1.1 413 ')


def test_a_client_that_goes_away_is_counted_and_forgotten(classifier, port):
    before = _counts(port).get('flaxcls_requests_total{status="499"}', 0)
    with socket.create_connection(('127.0.0.1', port), timeout=PATIENCE) as client:
        client.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc')
    _until(lambda: _counts(port).get('flaxcls_requests_total{status="499"}', 0) > before)
    _require_predictions(classifier, _image(0), *_predict(port, _image(0)))


def test_a_form_that_says_nothing_for_long_is_given_up(classifier, monkeypatch):
    monkeypatch.setattr('flaxcls.serving.request_body.READ_SECONDS', 0.1)
    with (
        _serving(classifier, SMALL) as port,
        socket.create_connection(('127.0.0.1', port), timeout=PATIENCE) as client,
    ):
        client.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc')
        assert client.recv(1000).startswith(b'HTTP/1.1 408 ')


def test_who_comes_when_too_many_wait_gets_503(classifier, monkeypatch):
    classify, go_on = classifier.classify, threading.Event()
    limits = SMALL._replace(max_waiting=3)
    with _serving(classifier, limits) as port, futures.ThreadPoolExecutor(3) as pool:

        def slowly(images):
            go_on.wait()
            return classify(images)

        monkeypatch.setattr(classifier, 'classify', slowly)
        predicted = [pool.submit(_predict, port, _image(seed)) for seed in range(3)]
        try:
            _until(lambda: _counts(port)['flaxcls_requests_under_way'] == 3)
            status, headers, text = _request(port, 'POST', '/predict', _image(3))
        finally:
            go_on.set()
        assert status == 503
        assert int(headers['Retry-After']) > 0
        assert json.loads(text)['error'].startswith('no more than 3 may wait')
        monkeypatch.undo()
        for seed, response in enumerate(predicted):
            _require_predictions(classifier, _image(seed), *response.result())
        _require_predictions(classifier, _image(3), *_predict(port, _image(3)))


def test_a_failure_of_ours_is_reported_and_survived(classifier, monkeypatch):
    def fail(images):
        raise RuntimeError('a fault')

    with _serving(classifier, SMALL) as port:
        with monkeypatch.context() as patch:
            patch.setattr(classifier, 'classify', fail)
            status, response = _predict(port, _image(0))
            assert (status, list(response)) == (500, ['error'])
            assert _counts(port)['flaxcls_requests_total{status="500"}'] == 1
        _require_predictions(classifier, _image(0), *_predict(port, _image(0)))


def test_outputs_that_are_not_finite_are_reported_before_anything_is_served(
    classifier, monkeypatch
):
    monkeypatch.setattr(classifier, 'to_probabilities', lambda logits: np.asarray(logits) * np.nan)
    with pytest.raises(RunError, match='not finite; its training has failed'):
        server_lib.make_server(classifier, SMALL)


def test_health_says_what_is_served(classifier, port):
    status, _, text = _request(port, 'GET', '/health')
    about = {'model': 'resnet20', 'step': classifier.step, 'classes': 10}
    assert (status, json.loads(text)) == (200, {'status': 'ready'} | about)


@pytest.mark.parametrize(
    ('method', 'path', 'code'),
    [('GET', '/nothing', 404), ('GET', '/predict', 405), ('POST', '/health', 405)],
)
def test_what_is_not_there_is_reported_in_json(port, method, path, code):
    status, _, text = _request(port, method, path)
    assert status == code
    assert '/predict' in json.loads(text)['error']


def test_rows_that_come_together_are_one_batch_and_none_is_lost_at_the_end():
    sizes = []
    with Batcher(
        lambda rows: rows * 2, max_batch=4, max_wait=60.0, observe=sizes.append
    ) as batcher:
        predicted = [batcher.submit(np.array([value])) for value in range(10)]
        for value, response in enumerate(predicted[:8]):
            assert response.result(PATIENCE) == 2 * value
        assert batcher.waiting in (0, 2)  # Taken by the thread, or not yet.
        predicted[9].cancel()
    assert predicted[8].result(PATIENCE) == 16
    assert sizes == [4, 4, 1]
    assert not batcher.alive


def test_a_failed_batch_is_reported_to_those_in_it_alone():
    def invert(rows):
        if not rows.all():
            raise ZeroDivisionError
        return 1 / rows

    with Batcher(invert, max_batch=2, max_wait=60.0) as batcher:
        predicted = [batcher.submit(np.array(value)) for value in (4, 0, 2, 1)]
    assert [type(response.exception(PATIENCE)) for response in predicted[:2]] == [
        ZeroDivisionError
    ] * 2
    assert [response.result(PATIENCE) for response in predicted[2:]] == [0.5, 1.0]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_all_that_was_accepted_has_a_response(classifier, workdir, number):
    command = [sys.executable, '-m', 'flaxcls', 'serve', f'--workdir={workdir}', '--port=0',
               '--max_batch=8', '--max_wait_ms=2500']  # fmt: skip
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, env=with_devices(1), **pipes) as process:
        line = process.stdout.readline()
        port = int(line.split()[0].rsplit(':', 1)[1])
        with futures.ThreadPoolExecutor(5) as pool:
            predicted = [pool.submit(_predict, port, _image(seed)) for seed in range(5)]
            _until(lambda: _counts(port)['flaxcls_requests_under_way'] == 5)
            process.send_signal(number)
            for seed, response in enumerate(predicted):
                _require_predictions(classifier, _image(seed), *response.result())
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert out == 'Stopped.\n'
    assert err == 'Compiling batches of 1, 2, 4, 8 images ...\n'
    assert 'resnet20 of step 44 with 10 classes: batches of up to 8 images' in line
    with pytest.raises(ConnectionRefusedError):
        _request(port, 'GET', '/health')


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (['--workdir=no/such'], "no run in 'no/such'"),
        (['--checkpoint=7'], '7'),
        (['--port=http'], 'invalid int value'),
        (['--port=70000'], '--port=70000 is not a port'),
        (['--host=no.such.host.invalid'], 'cannot listen at --host=no.such.host.invalid'),
        (['--host=192.0.2.1'], 'cannot listen at --host=192.0.2.1'),
        (['--max_batch=0'], '--max_batch=0 is out of range; give 1 to 4096'),
        (['--max_batch=5000'], '--max_batch=5000 is out of range'),
        (['--max_wait_ms=-1'], '--max_wait_ms=-1.0 is out of range'),
        (['--max_wait_ms=nan'], '--max_wait_ms=nan is out of range'),
        (['--max_wait_ms=inf'], '--max_wait_ms=inf is out of range'),
        (['--max_bytes=0'], '--max_bytes=0 is out of range'),
        (['--max_pixels=1000000000'], 'give 1 to 178956970'),
        (['--max_waiting=0'], '--max_waiting=0 is out of range'),
        (['--max_batches=2'], 'did you mean --max_batch?'),
        (['--language=tlh'], "invalid choice: 'tlh'"),
    ],
    ids=str,
)
def test_a_users_mistake_is_a_sentence(workdir, flags, says):
    with pytest.raises(UserError) as error:
        serve.main([f'--workdir={workdir}', '--port=0', *flags])
    assert says in str(error.value)
    assert '\n' not in str(error.value)


def test_the_socket_is_one_that_asyncio_sends_responses_over_at_once():
    with server_lib.bind('127.0.0.1', 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_port_in_use_is_reported_in_a_sentence(workdir, port):
    with pytest.raises(UserError, match=f'--port={port} .*in use.*choose others'):
        serve.main([f'--workdir={workdir}', f'--port={port}'])


def test_what_is_not_installed_is_named(workdir, monkeypatch):
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    with pytest.raises(UserError, match=r'pip install "flaxcls\[serve\]"'):
        serve.main([f'--workdir={workdir}', '--port=0'])


@pytest.fixture(scope='module')
def hostile(finished):
    """The port of a server whose classes have a name that is HTML."""
    loaded = Classifier.load(finished.workdir)
    loaded.class_names = tuple(HOSTILE + name for name in loaded.class_names)
    with _serving(loaded, SMALL) as port:
        yield port


def test_the_page_is_valid_html(port):
    status, headers, text = _request(port, 'GET', '/')
    assert status == 200
    assert headers['Content-Type'].startswith('text/html')
    JustHTML(text.decode(), strict=True, sanitize=False)
    assert b'http' not in text


def _page(classifier, header, language=None):
    """Returns the headers of the page's response, and the page, for an Accept-Language."""
    headers = [(b'accept-language', header.encode('latin-1'))]
    request = Request({'type': 'http', 'headers': headers})
    response = asyncio.run(Page(classifier, SMALL, language).respond(request))
    return response.headers, response.body.decode()


@pytest.mark.parametrize(
    ('header', 'language'),
    [
        ('', 'en'),
        ('zh-CN,zh;q=0.9,en;q=0.8', 'zh'),
        ('en-US,en;q=0.9,zh;q=0.8', 'en'),
        ('en;q=0.3, ZH-Hant-TW ; q=0.8', 'zh'),
        ('fr, de;q=0.9, zh;q=0.1', 'zh'),
        ('zh;q=0, *', 'en'),
        (';q=, zh;q=x,,*;q=nan,\xff', 'en'),
    ],
)
def test_the_page_is_in_the_language_that_the_browser_prefers(classifier, header, language):
    headers, text = _page(classifier, header)
    assert headers['Vary'] == 'Accept-Language'
    assert headers['Content-Language'] == language
    (html,) = JustHTML(text, strict=True, sanitize=False).query('html')
    assert html.attrs['lang'] == language


@pytest.mark.parametrize(('language', 'header'), [('zh', 'en'), ('en', 'zh')])
def test_a_language_that_was_asked_for_is_that_of_everyone(classifier, language, header):
    headers, text = _page(classifier, header, language)
    assert headers['Content-Language'] == language and 'Vary' not in headers
    assert text == _page(classifier, language)[1]


def test_the_chinese_page_has_no_english_and_its_errors_have(classifier, port):
    status, headers, text = _request(port, 'GET', '/', headers={'Accept-Language': 'zh-CN'})
    assert (status, headers['Content-Language']) == (200, 'zh')
    document = JustHTML(text.decode(), sanitize=False)
    for node in document.query('style, script'):
        node.parent.remove_child(node)
    spoken = [
        node.attrs.get('alt') or node.attrs['aria-label'] for node in document.query('img, input')
    ]
    shown = ' '.join([document.to_text(), *spoken])
    assert len(re.findall(CHINESE, shown)) > 50
    assert set(english_words(shown)) <= {'predict'}
    said = [sentence for sentence in load_catalogue('zh')['server'] if sentence.endswith('.')]
    assert said and not any(sentence in text.decode() for sentence in said)
    status, response = _predict(port, b'no image', **{'Accept-Language': 'zh-CN'})
    assert (status, 'no readable image' in response['error']) == (415, True)


@pytest.mark.parametrize('width', [1200, 360])
def test_a_person_tries_it_in_a_browser(classifier, hostile, browser, width):
    view = browser.new_page(viewport={'width': width, 'height': 740})
    requests, complaints = [], []
    view.on('request', lambda request: requests.append(request.url))
    view.on('console', lambda message: complaints.append(message.text))
    view.on('pageerror', lambda error: complaints.append(str(error)))
    view.on('dialog', lambda dialog: complaints.append(dialog.message))
    view.goto(f'http://127.0.0.1:{hostile}/')
    choose = lambda data: view.set_input_files(  # noqa: E731
        'input', {'name': 'a.png', 'mimeType': 'image/png', 'buffer': data}
    )
    choose(_image(5))
    view.wait_for_selector('li')
    expected = classifier.predict(_image(5))[0]
    names = view.locator('li span:first-child').all_text_contents()
    assert names == [HOSTILE + classifier.class_names[label] for label in np.argsort(-expected)[:5]]
    assert view.evaluate('document.documentElement.scrollWidth') <= width
    assert not complaints
    choose(b'no image')
    view.wait_for_selector('#note.bad:visible')
    assert 'no readable image' in view.inner_text('#note')
    assert view.locator('li:visible').count() == 0
    choose(bytes(SMALL.max_bytes + 1))
    view.wait_for_function('document.querySelector("#note").innerText.includes("larger than")')
    ours = (f'http://127.0.0.1:{hostile}/', 'blob:', 'data:')
    assert all(url.startswith(ours) for url in requests), requests
    view.close()
