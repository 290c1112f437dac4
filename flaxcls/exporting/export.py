"""Exports a run: the file, what lies beside it, and its certificate."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from flaxcls.config.workdir import CLASSES_FILE
from flaxcls.errors import RunError, UserError
from flaxcls.exporting import run
from flaxcls.exporting.certificate import Bounds, Certificate, certify
from flaxcls.exporting.converters import require_converter
from flaxcls.exporting.formats import FORMATS, Request, find_format
from flaxcls.exporting.samples import take_samples
from flaxcls.exporting.web import PAGE_FILES
from flaxcls.inference.classifier import Classifier
from flaxcls.system.files import write_atomically
from flaxcls.training.restore import open_run, require_own_network

CERTIFICATE_FILE = 'certificate.json'


# What an export may leave in a folder, besides the files of a page.
EXPORT_FILES = {form.file for form in FORMATS.values()} | {
    CERTIFICATE_FILE,
    CLASSES_FILE,
    'preprocessing.json',
    'run.py',
}


_STEPS = (
    "EXIF's orientation is applied; 16 bits become 8, the upper ones; transparency becomes white; "
    'grey is repeated; the shorter side becomes shorter_side pixels and the other one as many as '
    'fit, rounded half to even, by bilinear interpolation with antialiasing; the middle side x '
    'side is cut, from (length - side) // 2 on'
)


def export(
    workdir: str | os.PathLike,
    form: str,
    out: str | os.PathLike,
    *,
    checkpoint: str = 'newest',
    crops: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    images: int = 500,
    calibration_images: int = 200,
    min_agreement: float | None = None,
    max_difference: float | None = None,
    onnxruntime_web: str | None = None,
    language: str | None = None,
) -> Certificate:
    """Writes a run's network to a folder, with its certificate, which is returned.

    Args:
      workdir: path of the directory that the run was trained in.
      form: a row of FORMATS.
      out: the folder. An earlier export there is replaced whole; other files are refused.
      checkpoint, crops: see `Classifier.load`.
      overrides: of the run's config, to find its data.
      images: how many of the validation set are compared.
      calibration_images: how many of the training set int8 is calibrated on.
      min_agreement: share of equal predictions that the certificate has to keep; None: the
        format's.
      max_difference: of a probability, likewise.
      onnxruntime_web: its npm package as a file, for the format web; None: it is fetched, once.
      language: of the page, for the format web alone; None: what the browser prefers.

    Raises:
      UserError: there is no such run, its data is not there, or the format's packages are not.
      RunError: the exported network does not keep the bounds, see above; or the format's converter
        cannot be fetched.
    """
    _require_positive(images=images, calibration_images=calibration_images)
    wanted = find_format(form)
    if language and form != 'web':
        raise UserError(
            f'--language={language} is for the page of --format=web, and --format={form} has none; '
            'leave it out.'
        )
    bounds = _bounds(wanted.bounds, min_agreement, max_difference)
    out = _require_folder(out)
    rejected = _require_folder(out.with_name(f'{out.name}.rejected'))
    require_own_network(workdir, overrides or {}, 'an export')
    if wanted.converter:  # Before data is read, which may take minutes.
        require_converter(wanted.converter)
    loaded = Classifier.load(workdir, checkpoint=checkpoint, crops=crops)
    classifier = loaded.in_float32()
    setup = open_run(workdir, overrides=overrides, training_too=wanted.calibrates)
    samples = take_samples(classifier, setup.dataset.val, images, setup.source)
    for note in _notes(loaded, classifier, images, len(samples.images)):
        print(f'Note: {note}')
    training_images = None
    if wanted.calibrates:
        training_images = take_samples(classifier, setup.dataset.train, calibration_images).images
    request = Request(classifier, _about(classifier), training_images, onnxruntime_web, language)
    with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as folder:
        new = pathlib.Path(folder) / out.name
        new.mkdir()
        print(f'Writing {classifier.model_name} as {form} ...', flush=True)
        wanted.write(request, new / wanted.file)
        for name, value in request.about.items():
            write_atomically(new / f'{name}.json', json.dumps(value, indent=1) + '\n')
        shutil.copy(run.__file__, new)
        print(f'Comparing {len(samples.images):,} images ...', flush=True)
        certificate = certify(
            form,
            new / wanted.file,
            classifier,
            samples,
            bounds,
            tools=wanted.tools,
        )
        write_atomically(new / CERTIFICATE_FILE, certificate.to_json())
        if not certificate.passed:
            _put(new, rejected)
            raise RunError(_rejection(certificate, rejected))
        _put(new, out)
    return certificate


def _require_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UserError(f'--{name}={count} must be positive.')


def _bounds(bounds: Bounds, min_agreement: float | None, max_difference: float | None) -> Bounds:
    """Returns a format's bounds with those that were given."""
    if max_difference is not None:
        if not 0 <= max_difference < math.inf:
            raise UserError(f'--max_difference={max_difference} must be 0 or more.')
        bounds = dataclasses.replace(bounds, difference=max_difference)
    if min_agreement is not None:
        if not 0 <= min_agreement <= 1:
            raise UserError(f'--min_agreement={min_agreement} must be within 0 and 1.')
        bounds = dataclasses.replace(bounds, agreement=min_agreement)
    return bounds


def _require_folder(path: str | os.PathLike) -> pathlib.Path:
    """Returns the folder to write, whose own folder exists; what is in it is an export's alone."""
    if not os.fspath(path):
        raise UserError('--out= is empty; name a folder.')
    given, path = path, pathlib.Path(path).expanduser().absolute()
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f'--out={given} is a file, or lies below one; name a folder.')
    strangers = _strangers(path)
    if strangers:
        raise UserError(
            f'--out={given}: {path.name} has files that are not part of an export, such as '
            f'{strangers[0]}; name a new folder.'
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out={given} cannot be made ({error.strerror}); name another.') from None
    return path


def _strangers(folder: pathlib.Path) -> list[str]:
    """Returns the files of a folder that no export has written."""
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(files - {*EXPORT_FILES, *PAGE_FILES} if _is_export(folder) else files)


def _is_export(folder: pathlib.Path) -> bool:
    try:
        certificate = json.loads((folder / CERTIFICATE_FILE).read_text(encoding='utf-8'))
        return 'versions_of_export' in certificate
    except (OSError, ValueError, TypeError):
        return False


def _put(new: pathlib.Path, out: pathlib.Path) -> None:
    """Replaces an earlier folder, whole or not at all."""
    if out.exists():
        out.rename(new.parent / 'earlier')  # Goes with the temporary folder.
    new.rename(out)


def _notes(loaded: Classifier, classifier: Classifier, asked: int, found: int) -> Iterator[str]:
    if found < asked:
        yield f'the validation set has {found:,} images, and all of them are compared.'
    dtype = jnp.dtype(loaded.model.dtype)
    if dtype != classifier.model.dtype:
        yield f'the run computes in {dtype}, its export and what it is compared with in float32.'


def _about(classifier: Classifier) -> dict[str, Any]:
    """Returns what the files class_names.json and preprocessing.json hold."""
    crop = classifier.images.crop
    return {
        'class_names': list(classifier.class_names),
        'preprocessing': {
            'side': classifier.side,
            'shorter_side': max(classifier.side, crop.shorter_side),
            'tta_crops': crop.tta,
            'steps': _STEPS,
        },
    }


def _rejection(certificate: Certificate, folder: pathlib.Path) -> str:
    bounds = certificate.bounds
    allowed = '' if bounds.difference is None else f' and differences up to {bounds.difference:g}'
    return (
        f'{certificate.describe().splitlines()[0]}: less than --min_agreement={bounds.agreement:g}'
        f'{allowed} allow; it is kept in {folder}.'
    )
