"""The training loop, and all its input and output."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from flaxcls.config import extensions
from flaxcls.config.config_dict import differences, flatten, to_json
from flaxcls.config.workdir import (
    CLASSES_FILE,
    CONFIG_FILE,
    load_stored_config,
    require_stored_classes,
)
from flaxcls.data.datasets import Dataset
from flaxcls.errors import Stopped
from flaxcls.ops import native
from flaxcls.system.distributed import on_first
from flaxcls.system.files import locked_folder, write_atomically
from flaxcls.system.signals import SignalFlag
from flaxcls.training import logging, parallel
from flaxcls.training.checkpoints import Checkpoints, fingerprint
from flaxcls.training.data_record import make_record, merge_records, read_record, write_record
from flaxcls.training.divergence import require_finite, require_finite_state
from flaxcls.training.evaluation import describe_evaluation, make_evaluate
from flaxcls.training.meter import StepMeter
from flaxcls.training.progress import BriefReporter, Progress, Reporter
from flaxcls.training.resume import require_same_run
from flaxcls.training.run_record import RunRecord, note_on_kernels
from flaxcls.training.setup import Setup, build_setup, resolve
from flaxcls.training.state import TrainState

Callback = Callable[[str, logging.Record], Any]


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    brief: bool = False,
    callback: Callback | None = None,
) -> tuple[TrainState, list[logging.Record]]:
    """Trains to the end of the last epoch, evaluating on the way; resumes a run that has stopped.

    Args:
      config: a full config.
      workdir: gets config.json, class_names.json, metrics.jsonl, record.json and checkpoints/.
      brief: prints less, as suits a notebook: what is run, notes, and a line for each evaluation.
      callback: is called in the first process as callback('record', record) when a record of
        training has been written, as callback('evaluation', record) after an evaluation, and as
        callback('save', {'step': ..., 'epoch': ...}) when the state is being saved. What it raises
        ends the run.

    Returns:
      The final state, and the records of metrics.jsonl.

    Raises:
      UserError: the config does not fit itself, the data, the devices or the run in `workdir`.
      RunError: the loss is not finite, or data cannot be read; the checkpoints stay.
      Stopped: SIGINT, SIGTERM or SIGUSR1 came, to any process, and the state has been saved.
    """
    workdir = pathlib.Path(workdir).expanduser()
    setup = build_setup(config, workdir=workdir)
    config = resolve(config, setup)
    reporter = BriefReporter() if brief else Reporter()
    with _locked(workdir), Checkpoints(workdir) as checkpoints:
        newest = checkpoints.newest_step
        if newest is not None or (workdir / CONFIG_FILE).exists():
            changed = differences(load_stored_config(workdir), config)
            require_same_run(changed, workdir, newest or 0, setup.total_steps)
        if newest is not None:
            require_stored_classes(workdir, setup.dataset.class_names, setup.source)
        # Weights that are to be taken from elsewhere are looked for before anything is written.
        state = setup.init_state() if newest is None else setup.abstract_state()
        on_first(
            lambda: _store(
                to_json(config), config.extensions, setup.dataset, config.data.source, workdir
            )
        )
        reporter.config(to_json(config))
        _print_plan(setup, state, workdir)
        if newest is not None:
            state = checkpoints.restore_newest(like=state)
            print(f'Resuming at step {int(state.step)}.')
            if note := note_on_kernels(workdir):
                print(f'Note: {note}')
        step, total = int(state.step), setup.total_steps
        if step >= total:
            print(f'{workdir} is already finished: step {step} of {total}.')
        else:
            options, on = dict(flatten(config)), _in_first_process(callback)
            state = _train(setup, state, workdir, options, checkpoints, reporter, on)
        history = logging.read_metrics(workdir)
    _report_result(history, state, workdir, reporter)
    return state, history


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the workdir and keeps other runs out of it, as long as this process lives."""
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(locked_folder(workdir, 'run is training')))
        yield


def _store(config: str, labels: str, dataset: Dataset, source: str, workdir: pathlib.Path) -> None:
    extensions.store(labels, workdir)
    record = make_record(dataset, source)
    write_record(merge_records(read_record(workdir), record), workdir)
    write_atomically(workdir / CLASSES_FILE, json.dumps(dataset.class_names, indent=1) + '\n')
    # The last, since it is what makes the folder a run, which has the others.
    write_atomically(workdir / CONFIG_FILE, config)


def _print_plan(setup: Setup, state: TrainState, workdir: pathlib.Path) -> None:
    dataset, rate = setup.dataset, setup.learning_rate
    left_over = len(dataset.train) - setup.steps_per_epoch * setup.batch_size
    remainder = (
        f"; the last {left_over} images of each epoch's new order wait for the next epoch"
        if left_over
        else ''
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    for note in (*dataset.notes, *_schedule_notes(setup)):
        print(f'Note: {note}')
    print(
        f'{setup.model_name}: {parameters:,} parameters, on {_describe_layout(setup.layout)}; '
        f'workdir {workdir}\n'
        f'{setup.source}: {len(dataset.train):,} training and {len(dataset.val):,} validation '
        f'images, {len(dataset.class_names)} classes\n'
        f'{setup.steps_per_epoch} steps per epoch, {setup.total_steps} in all{remainder}\n'
        f'peak learning rate {rate.peak:g}{rate.scaling}',
        flush=True,
    )


def _describe_layout(layout: parallel.Layout) -> str:
    processes, microbatches = jax.process_count(), layout.accumulation_steps
    kernels = f', kernels: {native.status()}' if jax.default_backend() == 'cpu' else ''
    return (
        f'{layout.devices} {jax.devices()[0].device_kind} device(s)'
        + (f' of {processes} processes' if processes > 1 else '')
        + (f', {microbatches} accumulation steps' if microbatches > 1 else '')
        + kernels
    )


def _schedule_notes(setup: Setup) -> list[str]:
    missed = [f'{m:g}' for m in setup.learning_rate.milestones if m >= setup.num_epochs]
    if not missed:
        return []
    return [
        f'config.num_epochs={setup.num_epochs} ends before the milestones {", ".join(missed)} '
        'of the learning rate.'
    ]


def _train(
    setup: Setup,
    state: TrainState,
    workdir: pathlib.Path,
    options: Mapping[str, Any],
    checkpoints: Checkpoints,
    reporter: Reporter,
    callback: Callback,
) -> TrainState:
    """Runs the loop from `state` to the last step."""
    intervals, layout, total_steps = setup.intervals, setup.layout, setup.total_steps
    start_step, eval_every = int(state.step), setup.steps_per_epoch * intervals.eval_every_epochs
    train_step = setup.make_train_step()
    evaluate = make_evaluate(setup.make_eval_step(), setup.make_eval_batches(), layout, setup.top_k)
    batches = parallel.microbatches_to_devices(setup.make_train_batches()(start_step), layout)
    writer = logging.create_metrics_writer(workdir, start_step, setup.trackers)
    consensus = parallel.ProcessConsensus(layout)
    progress = Progress(start_step, total_steps)
    run_record = RunRecord(workdir, options, from_step=start_step, total_steps=total_steps)
    meter = StepMeter(setup.batch_size, setup.top_k)
    states = run_steps(train_step, state, batches, meter)
    numbers = range(start_step + 1, total_steps + 1)
    rate = setup.learning_rate
    try:
        with SignalFlag() as stop:
            for step, state in zip(numbers, states, strict=False):
                progress.step()
                # Looked at once: it may come at any moment below.
                number = stop.signal
                stopping = consensus.any_process(number is not None)
                evaluating = step % eval_every == 0 or step == total_steps
                saving = evaluating or step % intervals.checkpoint_every_steps == 0 or stopping
                # Records end where checkpoints are, so that a resumed run writes the same ones.
                if saving or step % intervals.log_every_steps == 0:
                    record = meter.close() | _where(setup, step)
                    record['train/learning_rate'] = float(rate.schedule(step - 1))
                    require_finite(record, 'train/loss', rate.base, checkpoints)
                    writer.write(record)
                    reporter.metrics(progress, record)
                    callback('record', record)
                val = None
                if evaluating:
                    val = evaluate(state.eval_variables)
                    record = _where(setup, step) | val
                    require_finite(record, 'val/loss', rate.base, checkpoints)
                    writer.write(record)
                    progress.say(f'epoch {record["epoch"]:g}: {describe_evaluation(val)}')
                    callback('evaluation', record)
                if saving:
                    require_finite_state(state, step, rate.base, checkpoints)
                    run_record.update(step, val)
                    writer.flush()
                    checkpoints.save(state, val)
                    callback('save', _where(setup, step))
                if stopping and step < total_steps:
                    checkpoints.wait()
                    raise _stopped(number, step, total_steps)
                if saving:
                    meter.restart()
            checkpoints.wait()  # A signal now would end the process, and the last save with it.
    finally:
        progress.close()
        writer.close()
    return state


def _in_first_process(callback: Callback | None) -> Callback:
    return callback if callback and jax.process_index() == 0 else lambda event, record: None


def run_steps(
    train_step: Callable[..., Any], state: TrainState, batches: Iterator[Any], meter: StepMeter
) -> Iterator[TrainState]:
    """Yields the state after each step, for as long as the caller asks; the next donates it.

    Args:
      train_step: compiled, (state, batch) -> (state, sums).
      state: before the first step, which donates it.
      batches: on the devices; at least as many as the caller asks for states.
      meter: takes the sums, and the time that was waited for a batch.
    """
    while True:
        state, sums = train_step(state, meter.wait_for(batches))
        meter.add(sums)
        yield state


def _stopped(number: int | None, step: int, total_steps: int) -> Stopped:
    """Returns what to raise after signal `number`; None: it has come to another process."""
    name = 'a signal to another process' if number is None else signal.Signals(number).name
    return Stopped(
        f'{name}: stopped and saved at step {step} of {total_steps}; the same command resumes '
        'there.',
        number or signal.SIGTERM,
    )


def _where(setup: Setup, step: int) -> dict[str, float]:
    return {'step': step, 'epoch': step / setup.steps_per_epoch}


def _report_result(
    history: list[logging.Record], state: TrainState, workdir: pathlib.Path, reporter: Reporter
) -> None:
    evaluations = [record for record in history if 'val/accuracy' in record]
    if not evaluations:  # Somebody has removed metrics.jsonl from a finished run.
        return
    best = max(evaluations, key=lambda record: (record['val/accuracy'], record['step']))
    reporter.result(
        f'final: {describe_evaluation(evaluations[-1])}\n'
        f'best:  val/accuracy {best["val/accuracy"]:.2%} at epoch {best["epoch"]:g}\n'
        f'state sha256 {fingerprint(state)}\n'
        f'flaxcls evaluate --workdir={shlex.quote(str(workdir))}  '
        'repeats the evaluation, class by class'
    )
