"""Shows what runs have reached: a table, the curves, and validation images with the answers.

  python -m flaxcls.report --workdir=runs/digits_resnet20 --workdir=runs/digits_alexnet

Writes curves.png and predictions.png into each workdir.
"""

import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from flaxcls.data.pipeline import make_eval_batches
from flaxcls.data.splits import Subset
from flaxcls.errors import CommandParser, UserError, run_command
from flaxcls.evaluate import load_run
from flaxcls.run_setup import Setup, load_stored_config
from flaxcls.steps import make_classify
from flaxcls.train_state import TrainState
from flaxcls.writers import Record, read_metrics

_ROWS, _COLUMNS = 4, 8


def table(workdirs: Sequence[str]) -> str:
    """Returns a table with a line for each run: network, data, epochs, validation accuracy.

    Raises:
      UserError: there is no run in a workdir, or it has not been evaluated yet.
    """
    lines = [
        f'{"run":<32} {"network":<20} {"data":<16} {"epochs":>6} {"val/accuracy":>13} {"best":>8}'
    ]
    for workdir in workdirs:
        config = load_stored_config(workdir)
        evaluations = _evaluations(workdir)
        last = evaluations[-1]
        best = max(record['val/accuracy'] for record in evaluations)
        lines.append(
            f'{workdir:<32} {config.model.name:<20} {config.data.source:<16} {last["epoch"]:>6g} '
            f'{last["val/accuracy"]:>13.2%} {best:>8.2%}'
        )
    return '\n'.join(lines)


def _evaluations(workdir: str) -> list[Record]:
    evaluations = [record for record in read_metrics(workdir) if 'val/accuracy' in record]
    if not evaluations:
        raise UserError(f'the run in {str(workdir)!r} has not been evaluated yet; let it go on.')
    return evaluations


def plot_curves(workdir: str) -> pathlib.Path:
    """Draws loss and accuracy, of training and validation, over the epochs; returns the file."""
    plt = _pyplot()
    records = read_metrics(workdir)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout='constrained')
    for axis, quantity in zip(axes, ('loss', 'accuracy'), strict=True):
        for part, style in (('train', {'alpha': 0.7}), ('val', {'marker': '.'})):
            name = f'{part}/{quantity}'
            points = [(record['epoch'], record[name]) for record in records if name in record]
            axis.plot(*zip(*points, strict=True), label=name, **style)
        axis.set_xlabel('epoch')
        axis.set_ylabel(quantity)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_yscale('log')
    figure.suptitle(f'{load_stored_config(workdir).model.name} in {workdir}')
    return _save(figure, pathlib.Path(workdir) / 'curves.png')


def plot_predictions(workdir: str) -> pathlib.Path:
    """Draws validation images with the answers, wrong ones first; returns the file."""
    plt = _pyplot()
    setup, state = load_run(workdir)
    labels, answers, confidence = _predict(setup, state)
    names = setup.source.class_names
    # Wrong answers from the most confident on, then right ones from the least confident on.
    wrong = answers != labels
    order = np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))[: _ROWS * _COLUMNS]
    images = _load_images(setup, order)
    figure, axes = plt.subplots(_ROWS, _COLUMNS, figsize=(12, 7), layout='constrained')
    for axis in axes.flat:
        axis.axis('off')
    for axis, index, image in zip(axes.flat, order, images, strict=False):
        axis.imshow(image)
        answer, color = f'{names[answers[index]]} ({confidence[index]:.0%})', 'tab:green'
        if wrong[index]:
            answer, color = f'{answer}\nis {names[labels[index]]}', 'tab:red'
        axis.set_title(answer, color=color, fontsize=9)
    figure.suptitle(
        f'{wrong.sum()} of {len(labels)} validation images are wrong (red); the least certain '
        'of the right answers in green'
    )
    return _save(figure, pathlib.Path(workdir) / 'predictions.png')


def _predict(setup: Setup, state: TrainState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns labels [N], answers [N] and their probabilities [N] of all validation images."""
    classify = make_classify(setup.config, setup.model)

    @jax.jit
    def predict(state, images):
        logits = classify(state.evaluated, images)
        return logits.argmax(-1), jax.nn.softmax(logits).max(-1)

    parts = []
    for batch in make_eval_batches(setup.config, setup.source.val)():
        outputs = batch['label'], *predict(state, batch['image'])
        parts.append([np.asarray(output)[batch['mask']] for output in outputs])
    labels, answers, confidence = (np.concatenate(part) for part in zip(*parts, strict=True))
    return labels, answers, confidence


def _load_images(setup: Setup, indices: np.ndarray) -> np.ndarray:
    """Returns these validation images as the network sees them, uint8 [N, S, S, 3]."""
    batches = make_eval_batches(setup.config, Subset(setup.source.val, indices))()
    return np.concatenate([batch['image'][batch['mask']] for batch in batches])


def _pyplot():
    import matplotlib  # noqa: PLC0415 - slow to import, and needed for pictures only

    matplotlib.use('agg')
    from matplotlib import pyplot  # noqa: PLC0415

    return pyplot


def _save(figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)
    return path


def main(argv: Sequence[str]) -> None:
    parser = CommandParser('flaxcls.report', __doc__)
    parser.add_argument('--workdir', action='append', required=True, help='of a run; repeatable')
    workdirs = [os.path.expanduser(workdir) for workdir in parser.parse_args(argv).workdir]
    print(table(workdirs))
    for workdir in workdirs:
        for path in (plot_curves(workdir), plot_predictions(workdir)):
            print(f'wrote {path}')


if __name__ == '__main__':
    run_command(main)
