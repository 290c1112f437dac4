"""The plots of the page: curves over the epochs, and how probabilities meet with frequencies."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxcls.inference.scores import reliability
from flaxcls.reporting.runs import ReportedRun
from flaxcls.system import svg as svg_lib
from flaxcls.system.translation import ENGLISH, Message, Translation

_FEW = 40  # Points that are marked one by one.


class Plot(NamedTuple):
    """A plot with what is written above it.

    Attributes:
      title: a few words.
      svg: the element; None: there is nothing to draw yet.
    """

    title: str
    svg: str | None


class Panel(NamedTuple):
    """A quantity over the epochs.

    Attributes:
      name: for ids.
      title: for people.
      training: key in metrics.jsonl, drawn thin.
      validation: likewise, drawn strong; None: the quantity belongs to training alone.
      height: of the plot, in inches.
    """

    name: str
    title: str
    training: str
    validation: str | None
    height: float = 2.4


PANELS = (
    Panel('loss', Message('Loss'), 'train/loss', 'val/loss'),
    Panel('accuracy', Message('Accuracy'), 'train/accuracy', 'val/accuracy'),
    Panel('rate', Message('Learning rate'), 'train/learning_rate', None, 1.8),
    Panel('speed', Message('Images per second'), 'train/images_per_second', None, 1.8),
)


def curves(runs: Sequence[ReportedRun], translate: Translation = ENGLISH) -> list[Plot]:
    """Returns a plot of each of PANELS, with all runs in it."""
    return [Plot(translate(panel.title), _draw_panel(panel, runs, translate)) for panel in PANELS]


def _draw_panel(panel: Panel, runs: Sequence[ReportedRun], translate: Translation) -> str | None:
    lines = [
        (svg_lib.run_colour(index), key == panel.training, points)
        for key in (panel.training, panel.validation)
        for index, run in enumerate(runs)
        if len(points := _points(run, key))
    ]
    if not lines:
        return None
    with svg_lib.figure(4.2, panel.height) as figure:
        axis = figure.subplots()
        for colour, training, points in lines:
            style = {'linewidth': 0.9, 'alpha': 0.55} if training else {'linewidth': 1.6}
            if panel.validation is None:
                style = {'linewidth': 1.3}
            if len(points) <= (1 if training else _FEW):
                style |= {'marker': 'o', 'markersize': 2.6}
            axis.plot(*points.T, color=colour, **style)
        axis.set_xlabel(translate('epoch'))
        axis.set_xlim(0, max(points[-1, 0] for _, _, points in lines) * 1.02)
        axis.xaxis.get_major_locator().set_params(integer=True)
        _scale(panel, axis, np.concatenate([points[:, 1] for _, _, points in lines]))
        title = translate('{curve} over the epochs.', curve=panel.title)
        return svg_lib.render(figure, f'curve-{panel.name}', title)


def _points(run: ReportedRun, key: str | None) -> np.ndarray:
    """Returns (epoch, value) of a quantity, float64 [N, 2]."""
    return np.array([[record['epoch'], record[key]] for record in run.history if key in record])


def _scale(panel: Panel, axis: Any, values: np.ndarray) -> None:
    from matplotlib import ticker  # noqa: PLC0415 - slow to import

    if panel.name == 'loss' and values.min() > 0:
        axis.set_yscale('log')
        few = values.max() < 30 * values.min()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    elif panel.name == 'accuracy':
        _scale_accuracy(axis, values)
    elif panel.name == 'speed':
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))


def _scale_accuracy(axis: Any, accuracies: np.ndarray) -> None:
    """Spaces accuracies by the logarithm of the error, which separates 98 % from 99 %."""
    errors = 1 - accuracies
    wrong = errors[errors > 1e-9]
    least, most = (wrong.min(), wrong.max()) if len(wrong) else (0.01, 0.1)
    none = least / 2.5  # Where no error at all is drawn.

    def to_axis(accuracy: np.ndarray) -> np.ndarray:
        return -np.log(np.clip(1 - accuracy, none, 1))

    axis.set_yscale('function', functions=(to_axis, lambda height: 1 - np.exp(-height)))
    low, high = most * 1.15, (least / 1.3 if len(wrong) == len(errors) else none)
    ticks = [e for e in (b * 10.0**-n for n in range(7) for b in (5, 2, 1)) if high < e < low]
    if len(ticks) > 6:
        ticks = [e for e in ticks if f'{e:e}'[0] == '1']
    if len(wrong) < len(errors):
        ticks = [*(e for e in ticks if e > 1.3 * none), 0]
    axis.set_ylim(1 - min(low, 1), 1 - high)
    # Ticks below the axis' end are not drawn, and rounding could put the last one there.
    places = [1 - max(e, high) for e in ticks]
    axis.set_yticks(places, _percents([1 - e for e in ticks]))
    axis.minorticks_off()


def reliability_diagram(
    run: ReportedRun,
    index: int,
    calibration: Mapping[str, Any] | None,
    translate: Translation = ENGLISH,
) -> str:
    """Returns a plot of accuracy over confidence, with the share of images at each confidence.

    Args:
      run: with predictions.
      index: of the run in the page.
      calibration: its temperature is drawn as well; None: there is none.
      translate: what is written in the plot.
    """
    predictions, colour = run.predictions, svg_lib.run_colour(index)
    temperatures = [1.0] + ([calibration['temperature']] if calibration else [])
    quarters = 0, 0.25, 0.5, 0.75, 1
    with svg_lib.figure(4.2, 3.6) as figure:
        axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        axis.plot([0, 1], [0, 1], color=svg_lib.INK, alpha=0.5, linewidth=0.8, dashes=(4, 3))
        for temperature in temperatures:
            bins = reliability(predictions.labels, predictions.probabilities(temperature))
            filled = bins.count > 0
            confidence, accuracy = bins.confidence[filled], bins.accuracy[filled]
            # Few images say little, and their points are small.
            sizes = 8 + 70 * bins.count[filled] / bins.count.sum()
            last = temperature == temperatures[-1]
            axis.vlines(confidence, confidence, accuracy, colour, alpha=0.5 if last else 0.25)
            axis.scatter(
                *(confidence, accuracy, sizes),
                facecolors=colour if last else 'none',
                edgecolors=colour,
                linewidths=0.8,
                clip_on=False,
                zorder=3,
            )
        share, width = bins.count / bins.count.sum(), bins.edges[1]
        below.bar(bins.edges[:-1], share, width, align='edge', color=colour, alpha=0.7)
        axis.set(ylabel=translate('accuracy'), xlim=(0, 1), ylim=(0, 1.02))
        below.set(ylabel=translate('images'), ylim=(0, 1))
        below.set_xlabel(translate('probability of the prediction'))
        for each, ticks in ((axis, quarters), (below, (0, 0.5, 1))):
            each.set_yticks(ticks, _percents(ticks))
        axis.set_xticks(quarters, _percents(quarters))
        title = translate('Accuracy over the probability of the prediction.')
        return svg_lib.render(figure, f'reliability-{index}', title)


def _percents(shares: Sequence[float]) -> list[str]:
    return [f'{100 * share:.6g} %' for share in shares]
