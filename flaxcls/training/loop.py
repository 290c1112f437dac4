"""What ends a run whose loss or weights are not finite any more."""

import contextlib
import json
import math
import os
import pathlib
import shlex
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcls.config import defaults, options
from flaxcls.errors import RunError, Stopped, UserError
from flaxcls.system import files
from flaxcls.system.distributed import on_first
from flaxcls.system.files import locked_folder
from flaxcls.system.signals import SignalFlag
from flaxcls.training import logging, parallel, schedules
from flaxcls.training.checkpoints import Checkpoints, fingerprint
from flaxcls.training.evaluation import describe_evaluation, make_evaluate
from flaxcls.training.meter import StepMeter
from flaxcls.training.restore import require_stored_classes
from flaxcls.training.run_record import RunRecord
from flaxcls.training.setup import Setup, build_setup
from flaxcls.training.state import TrainState
from flaxcls.training.workdir import CLASSES_FILE, CONFIG_FILE, load_stored_config


def train_and_evaluate(
    config: ConfigDict, workdir: str | os.PathLike, *, brief: bool = False
) -> tuple[TrainState, list[logging.Record]]:
    """Trains to the end of the last epoch, evaluating on the way; goes on where a run stopped.

    Args:
      config: a full config.
      workdir: gets config.json, class_names.json, metrics.jsonl, record.json and checkpoints/.
      brief: tells less, as suits a notebook: what is run, notes, and a line for each evaluation.

    Returns:
      The final state, and the records of metrics.jsonl.

    Raises:
      UserError: the config does not fit itself, the data, the devices or the run in `workdir`.
      RunError: the loss is not finite, or data cannot be read; the checkpoints stay.
      Stopped: SIGINT, SIGTERM or SIGUSR1 came, to any process, and the state has been saved.
    """
    workdir = pathlib.Path(workdir).expanduser()
    setup = build_setup(config)
    with _locked(workdir):
        checkpoints = Checkpoints(workdir)
        try:
            state = _start_or_resume(setup, workdir, checkpoints, brief)
            step, total = int(state.step), setup.total_steps
            if step >= total:
                print(f'{workdir} is already finished: step {step} of {total}.')
            else:
                state = _train(setup, state, workdir, checkpoints, brief)
        finally:
            checkpoints.close()
        history = logging.read_metrics(workdir)
    _print_result(history, state, workdir, brief)
    return state, history


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the workdir and keeps other runs out of it, as long as this process lives."""
    with contextlib.ExitStack() as stack:
        on_first(lambda: stack.enter_context(locked_folder(workdir, 'run is training')))
        yield


def _start_or_resume(
    setup: Setup, workdir: pathlib.Path, checkpoints: Checkpoints, brief: bool
) -> TrainState:
    """Prints and stores what is to be run, and returns the state it starts from."""
    newest = checkpoints.newest_step
    if newest is not None:
        _require_same_run(setup, workdir, newest)
    state = setup.init_state(take_weights=newest is None)
    on_first(lambda: _store(setup, workdir))
    _print_plan(setup, state, workdir, brief)
    if newest is None:
        return state
    state = checkpoints.restore_newest(like=state)
    print(f'Resuming at step {int(state.step)}.')
    return state


def _store(setup: Setup, workdir: pathlib.Path) -> None:
    files.write_atomically(workdir / CONFIG_FILE, options.to_json(setup.config))
    names = json.dumps(setup.dataset.class_names, indent=1)
    files.write_atomically(workdir / CLASSES_FILE, names + '\n')


def _require_same_run(setup: Setup, workdir: pathlib.Path, newest: int) -> None:
    """Refuses to continue another experiment's run; a longer one is allowed, with a warning."""
    changed = options.differences(load_stored_config(workdir), setup.config)
    for key, (old, new) in changed.items():
        if key == 'num_epochs' and setup.total_steps < newest:
            raise UserError(
                f'config.num_epochs={new} ends at step {setup.total_steps}, and the run in '
                f'{str(workdir)!r} has made {newest} already; choose another --workdir.'
            )
        if key == 'num_epochs':
            print(
                f'Warning: num_epochs was {old} and is {new}; the learning rate follows the '
                'new schedule.'
            )
        elif key not in defaults.OBSERVING_OPTIONS:
            raise UserError(
                f'config.{key} is {new!r}, but the run in {str(workdir)!r} has {old!r}; choose '
                'another --workdir, or leave --config out to go on with that run.'
            )
    require_stored_classes(setup, workdir)


def _print_plan(setup: Setup, state: TrainState, workdir: pathlib.Path, brief: bool) -> None:
    config, source = setup.config, setup.dataset
    left_over = len(source.train) - setup.steps_per_epoch * config.batch_size
    remainder = (
        f"; the last {left_over} images of each epoch's new order wait for the next epoch"
        if left_over
        else ''
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    peak = schedules.peak_learning_rate(config)
    base = config.optimizer.base_batch_size
    scaling = (
        f' = {config.optimizer.learning_rate:g} x {config.batch_size} / {base}' if base else ''
    )
    if not brief:
        print(options.to_json(config), end='')
    for note in (*source.notes, *_schedule_notes(config)):
        print(f'Note: {note}')
    print(
        f'{config.model.name}: {parameters:,} parameters, on {_describe(setup.layout)}; '
        f'workdir {workdir}\n'
        f'{config.data.source}: {len(source.train):,} training and {len(source.val):,} validation '
        f'images, {len(source.class_names)} classes\n'
        f'{setup.steps_per_epoch} steps per epoch, {setup.total_steps} in all{remainder}\n'
        f'peak learning rate {peak:g}{scaling}',
        flush=True,
    )


def _describe(layout: parallel.Layout) -> str:
    processes, parts = jax.process_count(), layout.accumulation_steps
    return (
        f'{layout.devices} {jax.devices()[0].device_kind} device(s)'
        + (f' of {processes} processes' if processes > 1 else '')
        + (f', {parts} accumulation steps' if parts > 1 else '')
    )


def _schedule_notes(config: ConfigDict) -> list[str]:
    missed = [f'{m:g}' for m in config.schedule.milestones if m >= config.num_epochs]
    if not missed:
        return []
    return [
        f'config.num_epochs={config.num_epochs} ends before the milestones {", ".join(missed)} '
        'of the learning rate.'
    ]


def _train(
    setup: Setup, state: TrainState, workdir: pathlib.Path, checkpoints: Checkpoints, brief: bool
) -> TrainState:
    """Runs the loop from `state` to the last step."""
    config, layout = setup.config, setup.layout
    start_step, eval_every = int(state.step), setup.steps_per_epoch * config.eval_every_epochs
    train_step, evaluate = setup.make_train_step(), make_evaluate(setup)
    batches = parallel.microbatches_to_devices(setup.make_train_batches()(start_step), layout)
    writer = logging.create_metrics_writer(workdir, start_step, tensorboard=config.tensorboard)
    consensus = parallel.ProcessConsensus(layout)
    progress = logging.Progress(start_step, setup.total_steps)
    run_record = RunRecord(workdir, config, from_step=start_step, total_steps=setup.total_steps)
    meter = StepMeter(config)
    states = run_steps(train_step, state, batches, meter)
    numbers = range(start_step + 1, setup.total_steps + 1)
    try:
        with SignalFlag() as stop:
            for step, state in zip(numbers, states, strict=False):
                progress.step()
                # Looked at once: it may come at any moment below.
                number = stop.signal
                stopping = consensus.any_process(number is not None)
                evaluating = step % eval_every == 0 or step == setup.total_steps
                saving = evaluating or step % config.checkpoint_every_steps == 0 or stopping
                # Records end where checkpoints are, so that a resumed run writes the same ones.
                if saving or step % config.log_every_steps == 0:
                    record = meter.close() | _where(setup, step)
                    record['train/learning_rate'] = float(setup.schedule(step - 1))
                    require_finite(record, 'train/loss', config, checkpoints)
                    writer.write(record)
                    if not brief:
                        progress.show(record)
                val = None
                if evaluating:
                    val = evaluate(state)
                    record = _where(setup, step) | val
                    require_finite(record, 'val/loss', config, checkpoints)
                    writer.write(record)
                    progress.say(f'epoch {record["epoch"]:g}: {describe_evaluation(val)}')
                if saving:
                    require_finite_state(state, step, config, checkpoints)
                    run_record.update(step, val)
                    checkpoints.save(state, val)
                if stopping and step < setup.total_steps:
                    checkpoints.wait()
                    raise _stopped(number, step, setup.total_steps)
                if saving:
                    meter.restart()
            checkpoints.wait()  # A signal now would end the process, and the last save with it.
    finally:
        progress.close()
        writer.close()
    return state


def run_steps(
    train_step: Callable[..., Any], state: TrainState, batches: Iterator[Any], meter: StepMeter
) -> Iterator[TrainState]:
    """Yields the state after each step, for as long as the caller asks; the next gives it up.

    Args:
      train_step: compiled, (state, batch) -> (state, sums).
      state: before the first step, which gives it up.
      batches: on the devices; at least as many as the caller asks for states.
      window: takes the sums, and the time that was waited for a batch.
    """
    while True:
        state, sums = train_step(state, meter.wait_for(batches))
        meter.add(sums)
        yield state


def _stopped(number: int | None, step: int, total_steps: int) -> Stopped:
    """Returns what to raise after signal `number`; None: it has come to another process."""
    name = 'a signal to another process' if number is None else signal.Signals(number).name
    return Stopped(
        f'{name}: stopped and saved at step {step} of {total_steps}; the same command goes on from '
        'there.',
        number or signal.SIGTERM,
    )


def _where(setup: Setup, step: int) -> dict[str, float]:
    return {'step': step, 'epoch': step / setup.steps_per_epoch}


def _print_result(history, state: TrainState, workdir: pathlib.Path, brief: bool) -> None:
    evaluations = [record for record in history if 'val/accuracy' in record]
    if not evaluations:  # Somebody has removed metrics.jsonl from a finished run.
        return
    if brief:  # The line of the last evaluation stands above.
        return
    best = max(evaluations, key=lambda record: (record['val/accuracy'], record['step']))
    print(
        f'final: {describe_evaluation(evaluations[-1])}\n'
        f'best:  val/accuracy {best["val/accuracy"]:.2%} at epoch {best["epoch"]:g}\n'
        f'state sha256 {fingerprint(state)}\n'
        f'python -m flaxcls.main --mode=evaluate --workdir={shlex.quote(str(workdir))}  '
        'repeats the final line',
        flush=True,
    )


def require_finite(record, name: str, config: ConfigDict, checkpoints: Checkpoints) -> None:
    """Raises RunError unless the metric `name` of a record is finite; the checkpoints stay."""
    if not math.isfinite(record[name]):
        raise RunError(
            f'{name} is {record[name]} at step {record["step"]}; '
            f'{_after_divergence(config, checkpoints)}'
        )


def require_finite_state(state, step: int, config: ConfigDict, checkpoints: Checkpoints) -> None:
    """Raises RunError unless all weights of the state are finite; the checkpoints stay."""
    if not _all_finite(state.params):
        raise RunError(
            f'a weight is not finite at step {step}; {_after_divergence(config, checkpoints)}'
        )


@jax.jit
def _all_finite(tree) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _after_divergence(config: ConfigDict, checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    saved = checkpoints.newest_step
    kept = 'nothing has been saved' if saved is None else f'the checkpoint of step {saved} stays'
    return (
        f'{kept}. Try a lower config.optimizer.learning_rate than '
        f'{config.optimizer.learning_rate:g}, or a longer config.schedule.warmup_epochs.'
    )
