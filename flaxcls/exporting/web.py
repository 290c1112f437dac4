"""A page that classifies pictures in the browser: a folder for any static server.

Its addresses are relative and it asks for nothing outside the folder. ONNX Runtime Web computes;
its files come from the npm registry, once, and are kept in the user's cache.
"""

import base64
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import flaxcls
from flaxcls.errors import RunError, UserError
from flaxcls.system.files import user_cache_path, write_atomically
from flaxcls.system.html import create_environment
from flaxcls.system.translation import DEFAULT, list_languages, load_translation

RUNTIME = 'onnxruntime-web-1.30.0.tgz'
# As `npm view onnxruntime-web@1.30.0 dist.integrity` says.
INTEGRITY = (
    'sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZ'
    'ClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
)
# The build for WebAssembly alone, whose loader has the glue code of the .wasm in it; as .js, since
# some servers do not know .mjs for a script.
RUNTIME_FILES = {
    'package/dist/ort.wasm.bundle.min.mjs': 'onnxruntime/ort.js',
    'package/dist/ort-wasm-simd-threaded.wasm': 'onnxruntime/ort.wasm',
}
_PAGE = pathlib.Path(__file__).parent / 'page'
# What is left in the folder of a page, besides the model.
PAGE_FILES = {path.name for path in _PAGE.iterdir()} | {
    'onnxruntime',
    'manifest.json',
    'about.json',
}
_LICENCE = 'onnxruntime-LICENSE.txt'  # The package itself has none.
_ABOUT = {'title': str, 'class_names': (list, tuple), 'side': int, 'shorter_side': int}
_OPTIONAL = {'facts': str}
_SECONDS = 60  # Without a byte from the registry.


def write_page(
    folder: str | os.PathLike,
    model_file: str | os.PathLike,
    about: Mapping[str, Any],
    *,
    onnxruntime_web: str | os.PathLike | None = None,
    language: str | None = None,
) -> pathlib.Path:
    """Writes a folder that any static server makes a page of; returns its index.html.

    Args:
      folder: is created; may hold an earlier page, which is replaced.
      model_file: ONNX. Input `images` uint8 [N, S, S, 3], RGB; outputs `probabilities` float32
        [N, C] and, where there is one, `maps` [N, h, w, C], class-activation maps. Without, the
        page covers places of the picture instead.
      about: 'title', such as the network's name; 'class_names', C strings; 'side', S; and
        'shorter_side', to which a picture's is resized before the middle S x S is cut, as
        `crops.resize_and_center_crop` does. Optionally 'facts', a sentence for the page's foot;
        a Message is translated.
      onnxruntime_web: the package of the npm registry as a file; None: from the user's cache, or
        else from the registry.
      language: one of `list_languages()`; None: what the browser prefers.

    Raises:
      UserError: what is wrong with an argument.
      RunError: the package could not be fetched.
    """
    folder, model_file = pathlib.Path(folder).expanduser(), pathlib.Path(model_file).expanduser()
    _check_about(about)
    if not model_file.is_file():
        raise UserError(f'there is no model {str(model_file)!r}; export it to ONNX first.')
    _require_folder(folder)
    runtime = read_runtime(onnxruntime_web)
    (folder / 'onnxruntime').mkdir(parents=True, exist_ok=True)
    for path in _PAGE.iterdir():
        shutil.copyfile(path, folder / path.name)
    write_atomically(folder / 'index.html', _render_index(language, about.get('facts', '')))
    (folder / _LICENCE).replace(folder / 'onnxruntime' / 'LICENSE.txt')
    for name, content in runtime.items():
        write_atomically(folder / name, content)
    if model_file.resolve() != (folder / 'model.onnx').resolve():
        shutil.copyfile(model_file, folder / 'model.onnx')
    _write_json(folder / 'manifest.json', _manifest(about['title']))
    # Last, since it makes the folder a page.
    _write_json(
        folder / 'about.json',
        {
            **about,
            'facts': about.get('facts', ''),
            'version': flaxcls.__version__,
            'model_file': _describe(folder, 'model.onnx'),
            'runtime_file': _describe(folder, 'onnxruntime/ort.wasm'),
        },
    )
    return folder / 'index.html'


def _check_about(about: Mapping[str, Any]) -> None:
    for key, kind in _ABOUT.items():
        if not isinstance(about.get(key), kind):
            raise UserError(f'the page needs about[{key!r}]; it is {about.get(key)!r}.')
    unknown = set(about) - set(_ABOUT) - set(_OPTIONAL)
    if unknown:
        raise UserError(f'about has {min(unknown)!r}; the page shows {", ".join(_ABOUT)}, facts.')
    if not 0 < about['side'] <= about['shorter_side']:
        raise UserError(
            f'a square of {about["side"]} pixels cannot be cut from a picture whose shorter side '
            f'has {about["shorter_side"]}; give 0 < side <= shorter_side.'
        )


def _render_index(language: str | None, facts: str) -> str:
    """Returns index.html, with the texts of every language that the page may be shown in."""
    texts = {}
    for each in [language] if language else list_languages():
        if each != DEFAULT:
            translate = load_translation(each, 'web')
            texts[each] = {**translate.texts, facts: translate(facts)}
    environment = create_environment(_PAGE, load_translation(language or DEFAULT, 'web'))
    return environment.get_template('index.html').render(
        languages={'fixed': language, 'texts': texts}
    )


def _require_folder(folder: pathlib.Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f'{str(folder)!r} is a file; name a folder for the page.')
    if folder.is_dir() and any(folder.iterdir()) and not (folder / 'about.json').is_file():
        raise UserError(f'{str(folder)!r} has other files; name a new folder for the page.')


def _describe(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns where a large file is, with its version, and how large, for a bar of progress."""
    with (folder / name).open('rb') as file:
        version = hashlib.file_digest(file, 'sha256').hexdigest()[:16]
    return {'address': f'{name}?v={version}', 'bytes': (folder / name).stat().st_size}


def _manifest(title: str) -> dict[str, Any]:
    """Returns what a phone wants to know to put the page on its home screen."""
    return {
        'name': title,
        'short_name': title,
        'start_url': './',
        'scope': './',
        'display': 'standalone',
        'icons': [{'src': 'icon.png', 'sizes': '512x512', 'type': 'image/png'}],
    }


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + '\n')


def read_runtime(given: str | os.PathLike | None) -> dict[str, bytes]:
    """Returns {name in the page's folder: content} of the files of ONNX Runtime Web."""
    package = _read_given(pathlib.Path(given).expanduser()) if given else _cached_or_fetched()
    return _unpack(package)


@functools.lru_cache(maxsize=1)  # A second page of a process need not take these seconds again.
def _unpack(package: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(package), mode='r:gz') as archive:
        return {name: archive.extractfile(member).read() for member, name in RUNTIME_FILES.items()}


def _read_given(path: pathlib.Path) -> bytes:
    try:
        package = path.read_bytes()
    except OSError as error:
        raise UserError(
            f'--onnxruntime_web={str(path)!r} cannot be read ({error.strerror}); name {RUNTIME} of '
            'the npm registry.'
        ) from None
    if _integrity(package) != INTEGRITY:
        raise UserError(
            f'--onnxruntime_web={str(path)!r} is not {RUNTIME} as the npm registry has it; fetch '
            f'that with: npm pack {_package_name()}'
        )
    return package


def _cached_or_fetched() -> bytes:
    path = user_cache_path('npm', RUNTIME + INTEGRITY)
    try:
        package = path.read_bytes()
        if _integrity(package) == INTEGRITY:
            return package
    except OSError:
        pass
    package = _fetch()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, package)
    except OSError:  # The cache only saves time.
        pass
    return package


def _fetch() -> bytes:
    address = f'{_registry().rstrip("/")}/onnxruntime-web/-/{RUNTIME}'
    print(f'fetching {address} (33 MB, once)', flush=True)
    remedy = (
        f'fetch it elsewhere, with: npm pack {_package_name()}, and give it as '
        f'--onnxruntime_web={RUNTIME}'
    )
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as response:
            package = response.read()
    except (OSError, ValueError) as error:  # ValueError: the registry's address is none.
        reason = getattr(error, 'reason', None) or error
        raise RunError(f'{address} could not be fetched ({reason}); {remedy}.') from None
    if _integrity(package) != INTEGRITY:
        raise RunError(f'{address} is not the package that was tested; {remedy}.')
    return package


def _registry() -> str:
    """Returns the address of the npm registry, as npm itself takes it from its settings."""
    for name in ('NPM_CONFIG_REGISTRY', 'npm_config_registry'):
        if os.environ.get(name):
            return os.environ[name]
    if npm := shutil.which('npm'):
        asked = subprocess.run([npm, 'config', 'get', 'registry'], capture_output=True, text=True)
        if asked.stdout.startswith('http'):
            return asked.stdout.strip()
    return 'https://registry.npmjs.org'


def _package_name() -> str:
    return 'onnxruntime-web@' + RUNTIME.removeprefix('onnxruntime-web-').removesuffix('.tgz')


def _integrity(package: bytes) -> str:
    return 'sha512-' + base64.b64encode(hashlib.sha512(package).digest()).decode()
