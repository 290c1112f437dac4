"""Validation images that show most about a network, with the heat of Grad-CAM over them."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from flaxcls.explaining.attribution import grad_cam
from flaxcls.explaining.plots import overlay
from flaxcls.inference.predictions import Predictions
from flaxcls.reporting.runs import ReportedRun
from flaxcls.system.translation import ENGLISH, Translation

_AT_MOST = 12  # Examples of a kind.
# Smaller images are shown pixel by pixel; those over the second side are reduced to it, as JPEG.
_PIXELATED, _REDUCED = 96, 192


class Panel(NamedTuple):
    """An image as it stands in the page.

    Attributes:
      uri: a data URI with the image itself.
      caption: what is seen.
      pixelated: whether its pixels are to be seen as squares.
    """

    uri: str
    caption: str
    pixelated: bool


class Example(NamedTuple):
    """A validation image with its prediction.

    Attributes:
      name: of the file or the record.
      label: name of its class.
      prediction: name of the predicted class.
      probability: of the predicted class, after calibration.
      panels: the image, and the image with heat.
    """

    name: str
    label: str
    prediction: str
    probability: float
    panels: Sequence[Panel]


class Examples(NamedTuple):
    """Three kinds of examples, of which each may be empty."""

    mistakes: list[Example]
    typical: list[Example]
    uncertain: list[Example]


def select(predictions: Predictions, temperature: float = 1.0) -> tuple[np.ndarray, ...]:
    """Returns which examples to show, by index: confident mistakes, typical ones, uncertain ones.

    Typical are the most confident right predictions, of each class one. Uncertain are the least
    probable predictions, right or wrong, that are not confident mistakes already.
    """
    confidence = predictions.probabilities(temperature).max(1)
    correct, predicted = predictions.correct, predictions.predicted
    falling = np.argsort(-confidence, kind='stable')
    mistakes = falling[~correct[falling]][:_AT_MOST]
    right = falling[correct[falling]]
    _, first = np.unique(predicted[right], return_index=True)
    if len(first) > _AT_MOST:  # Those of the classes that the network is most confident of.
        first = np.sort(first)[:_AT_MOST]
    rising = falling[::-1]
    uncertain = rising[~np.isin(rising, mistakes)][:_AT_MOST]
    return mistakes, right[first], uncertain


def find_examples(run: ReportedRun, translate: Translation = ENGLISH) -> Examples:
    """Returns the examples of a run that has predictions, a classifier and its data."""
    temperature = run.calibration['temperature'] if run.calibration else 1.0
    probabilities = run.predictions.probabilities(temperature).max(1)
    return Examples(
        *(
            _describe(run, chosen, probabilities, translate)
            for chosen in select(run.predictions, temperature)
        )
    )


def _describe(
    run: ReportedRun, chosen: np.ndarray, probabilities: np.ndarray, translate: Translation
) -> list[Example]:
    if not len(chosen):
        return []
    predictions, names = run.predictions, run.class_names
    val = run.setup.dataset.val
    images = np.stack([run.classifier.preprocess(val[index][0]) for index in chosen])
    labels, predicted = predictions.labels[chosen], predictions.predicted[chosen]
    heats = {'prediction': grad_cam(run.classifier, images, predicted)}
    if (labels != predicted).any():
        heats['label'] = grad_cam(run.classifier, images, labels)
    found = []
    for place, index in enumerate(chosen):
        label, prediction = names[labels[place]], names[predicted[place]]
        panels = [_panel(images[place], translate('image'))]
        shown = [('prediction', prediction), ('label', label)][: 1 + (label != prediction)]
        for kind, class_name in shown:
            heated = overlay(images[place], heats[kind][place])
            panels.append(_panel(heated, translate('for {class_name}', class_name=class_name)))
        name, probability = predictions.names[index], float(probabilities[index])
        found.append(Example(name, label, prediction, probability, panels))
    return found


def _panel(image: np.ndarray, caption: str) -> Panel:
    picture, file = Image.fromarray(image), io.BytesIO()
    if max(picture.size) > _REDUCED:
        picture.thumbnail((_REDUCED, _REDUCED), Image.Resampling.LANCZOS)
        picture.save(file, 'JPEG', quality=88)
        kind = 'jpeg'
    else:
        picture.save(file, 'PNG', optimize=True)
        kind = 'png'
    data = base64.b64encode(file.getvalue()).decode('ascii')
    return Panel(f'data:image/{kind};base64,{data}', caption, max(image.shape[:2]) <= _PIXELATED)
