"""The proof that an exported network is still itself, measured in a process without flaxcls."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flaxcls.errors import RunError
from flaxcls.exporting import run
from flaxcls.exporting.jax_promise import readable_until
from flaxcls.exporting.samples import Samples
from flaxcls.inference.classifier import Classifier
from flaxcls.system.files import naming
from flaxcls.system.host_info import describe_cores, find_versions
from flaxcls.training.from_config import tta_crops_of
from flaxcls.training.steps import make_classify

_APART = (
    'import runpy, sys; sys.modules["flaxcls"] = None; del sys.argv[0]; '
    'runpy.run_path(sys.argv[0], run_name="__main__")'
)
_LAST_WORDS = 300  # Characters of what a runtime says before it fails.


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What an exported network must keep.

    Attributes:
      agreement: at least this share of the predictions is the same.
      difference: no probability differs by more; None: any may.
    """

    agreement: float
    difference: float | None


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was compared, and what came of it; certificate.json holds these fields.

    Attributes:
      format: of the export, such as onnx.
      model, step: the network, and of which checkpoint.
      temperature: by which logits are divided; tta_crops: as --crops of predict;
        data: the source of the images.
      file, bytes, sha256: of the exported network.
      images: how many were compared, evenly spread over the validation set.
      agreement: share of the predictions that are the same.
      largest_difference: between two probabilities.
      batch_difference: between an image alone and in a batch of 7, of the exported network.
      accuracy_before, accuracy_after: of flaxcls in float32, and of the exported network.
      milliseconds, milliseconds_jax: median time of an image alone, of the exported network and of
        the jitted one, on `host`.
      bounds: which were to be kept.
      versions: of what has run it; versions_of_export: of what has made it.
      date: in UTC.
      readable_until: releases of JAX until then are sure to read it; None: JAX does not run it.
    """

    format: str
    model: str
    step: int
    temperature: float
    tta_crops: str
    data: str
    file: str
    bytes: int
    sha256: str
    images: int
    agreement: float
    largest_difference: float
    batch_difference: float
    accuracy_before: float
    accuracy_after: float
    milliseconds: float
    milliseconds_jax: float
    bounds: Bounds
    host: str
    date: str
    readable_until: str | None
    versions: dict[str, str]
    versions_of_export: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether the bounds are kept; a difference that is not a number keeps none."""
        allowed = math.inf if self.bounds.difference is None else self.bounds.difference
        differences = (self.largest_difference, self.batch_difference)
        return self.agreement >= self.bounds.agreement and all(
            math.isfinite(difference) and difference <= allowed for difference in differences
        )

    def to_json(self) -> str:
        """Returns the fields and `passed` as JSON, which has null for what is not a number."""
        fields = dataclasses.asdict(self) | {'passed': self.passed}
        for name, value in fields.items():
            if isinstance(value, float) and not math.isfinite(value):
                fields[name] = None
        return json.dumps(fields, indent=1, allow_nan=False) + '\n'

    def describe(self) -> str:
        """Returns two lines for a person, and a third of an export that ages."""
        same = round(self.agreement * self.images)
        slower = self.milliseconds / self.milliseconds_jax
        aging = self.readable_until and (
            f'\nwritten by JAX {self.versions_of_export["jax"]}; releases of JAX until '
            f'{self.readable_until} promise to read it, and --format=onnx is for archives'
        )
        return (
            f'{self.format}: {same:,} of {self.images:,} predictions are the same '
            f'({self.agreement:.2%}), probabilities differ by at most '
            f'{self.largest_difference:.2g}; accuracy {self.accuracy_before:.2%} before, '
            f'{self.accuracy_after:.2%} after\n'
            f'{self.bytes / 1e6:.2f} MB; an image alone takes {self.milliseconds:.2f} ms, with '
            f'jitted JAX {self.milliseconds_jax:.2f} ms ({slower:.2f}x); '
            f'sha256 {self.sha256[:12]}...{aging or ""}'
        )


def certify(
    name: str,
    file: pathlib.Path,
    classifier: Classifier,
    samples: Samples,
    bounds: Bounds,
    *,
    tools: Sequence[str] = (),
) -> Certificate:
    """Returns the certificate of an exported network.

    Args:
      name: of the export format, such as onnx.
      file: the network, of one of the kinds that `run` knows.
      classifier: what was exported.
      samples: the images to compare.
      bounds: which the certificate is to keep.
      tools: packages that have made the file.

    Raises:
      RunError: the runtime cannot run the file.
    """
    expected, seconds = _run_here(classifier, samples.images)
    found, report = _run_apart(file, samples.images)
    content = file.read_bytes()
    versions = find_versions()
    ages = run.PACKAGES[file.suffix[1:]] == 'jax'
    return Certificate(
        format=name,
        model=classifier.model_name,
        step=classifier.step,
        temperature=classifier.temperature,
        tta_crops=classifier.images.crop.tta,
        data=samples.source,
        file=file.name,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        images=len(samples.images),
        agreement=float(np.mean(found.argmax(1) == expected.argmax(1))),
        largest_difference=float(np.abs(found - expected).max()),
        batch_difference=report['batch_difference'],
        accuracy_before=float(np.mean(expected.argmax(1) == samples.labels)),
        accuracy_after=float(np.mean(found.argmax(1) == samples.labels)),
        milliseconds=report['milliseconds'],
        milliseconds_jax=1000 * seconds,
        bounds=bounds,
        host=describe_cores(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        readable_until=readable_until(versions['jaxlib']).isoformat() if ages else None,
        versions=report['versions'],
        versions_of_export=versions
        | {tool: importlib.metadata.version(tool.replace('_', '-')) for tool in tools},
    )


def _run_here(classifier: Classifier, images: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the probabilities [N, C] of jitted JAX, and the median seconds of an image alone."""
    crops_of = tta_crops_of(classifier.images.crop)
    classify = make_classify(classifier.model, classifier.normalize, crops_of)
    predict = classifier.compile(
        lambda variables, images: jax.nn.softmax(
            classify(variables, images) / classifier.temperature
        )
    )
    run_one = lambda image: np.asarray(predict(classifier.variables, image))  # noqa: E731
    _, seconds = run.time_single(run_one, images[: run.TIMED_IMAGES])
    return classifier.in_batches(predict, images), seconds


def _run_apart(file: pathlib.Path, images: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the probabilities [N, C] of the exported network, and what `run` reports.

    There flaxcls cannot be imported.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = (pathlib.Path(folder) / name for name in ('images.npy', 'predictions.npy'))
        with naming(given):
            np.save(given, images)
        command = [sys.executable, '-c', _APART, run.__file__, str(file), str(given), str(found)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = ' '.join(done.stderr.split())[-_LAST_WORDS:] or f'exit code {done.returncode}'
            raise RunError(f'{file.name} does not run: {said}')
        return np.load(found), json.loads(done.stdout.splitlines()[-1])
