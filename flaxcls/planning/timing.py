"""Timing of a run on the devices here; see `flaxcls benchmark`."""

import contextlib
import datetime
import itertools
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from flaxcls.data.pipeline import Batch
from flaxcls.errors import UserError
from flaxcls.planning import compiled
from flaxcls.planning.estimate import plan_setup
from flaxcls.planning.hardware import open_hardware
from flaxcls.planning.results import BenchmarkResults, Compilation, Rate
from flaxcls.system import host_info
from flaxcls.system.threads import count_cores
from flaxcls.training import parallel
from flaxcls.training.loop import run_steps
from flaxcls.training.meter import StepMeter
from flaxcls.training.setup import Setup, build_setup
from flaxcls.training.state import TrainState

# Short rounds, many of them: what else the machine does then comes to all kinds alike.
_SECONDS_OF_A_ROUND, _SECONDS_OF_A_KIND = 1.0, 20.0
_FEWEST_STEPS, _FEWEST_ROUNDS, _MOST_ROUNDS = 4, 5, 20
_EPOCHS_WITHOUT_END = 10**6


class Program(NamedTuple):
    """A compiled step, and a batch for it that lies on the devices."""

    step: Callable[[TrainState, Any], Any]
    batch: Any
    compilation: Compilation


class Programs(NamedTuple):
    """What is timed of a run.

    Attributes:
      setup: what the run is built from.
      train: compiled training step.
      evaluate: compiled evaluation step.
      make_batches: start_step -> training batches on the host, without end.
    """

    setup: Setup
    train: Program
    evaluate: Program
    make_batches: Callable[[int], Iterator[Batch]]


class Round(NamedTuple):
    """What the steps of a round took.

    Attributes:
      seconds: all together.
      waited: seconds, of these, for data.
    """

    seconds: float
    waited: float = 0.0


def benchmark(
    config: ConfigDict,
    *,
    steps: int | None = None,
    rounds: int | None = None,
    on_round: Callable[[], Any] = lambda: None,
) -> BenchmarkResults:
    """Returns what is measured of the run that a config describes, on the devices here.

    Args:
      config: a full config.
      steps: timed in each round; None: as many as fill a second, but four at least.
      rounds: of each kind; None: 20, or fewer where they take long, but five at least.
      on_round: called after each round of all kinds.

    Raises:
      UserError: the run is impossible, its data is not here, or there are too few steps or rounds.
    """
    _require_enough(steps, rounds)
    setup = build_setup(config)
    began = time.perf_counter()
    state = jax.block_until_ready(setup.init_state())
    init_seconds = time.perf_counter() - began
    programs = compile_programs(setup, state)
    state, seconds = _warm_up(programs, state)
    steps, rounds = choose_rounds(seconds, steps, rounds)
    timed = _time_alternating(programs, state, steps, rounds, on_round)
    images = steps * setup.batch_size
    rates = {
        kind: Rate(tuple(images / round_.seconds for round_ in found))
        for kind, found in timed.items()
    }
    plan = plan_setup(setup, open_hardware(None))
    chip = plan.hardware.chip
    return BenchmarkResults(
        about=_about(setup),
        batch_size=setup.batch_size,
        init_seconds=init_seconds,
        train_compilation=programs.train.compilation,
        eval_compilation=programs.evaluate.compilation,
        steps=steps,
        **rates,
        data_wait_fraction=statistics.median(r.waited / r.seconds for r in timed['loop']),
        train_flops=plan.flops_per_step / setup.batch_size,
        eval_flops=plan.flops_per_evaluated_image,
        peak_flops=chip and chip.flops * setup.layout.devices,
        peak_memory=peak_memory(setup.layout.mesh.local_devices),
        step_memory=compiled.step_resources(programs.train.step, setup).memory.total,
    )


def _require_enough(steps: int | None, rounds: int | None) -> None:
    if steps is not None and steps < 1:
        raise UserError(f'--steps={steps} must be 1 or more.')
    if rounds is not None and rounds < 2:
        raise UserError(f'--rounds={rounds} must be 2 or more, since a spread is reported.')


def compile_programs(setup: Setup, state: TrainState) -> Programs:
    """Returns the steps of a run compiled for a state like this one, and their data."""
    # The loop may ask for more batches than the run has; they follow from seed and step as ever.
    make_batches = setup._replace(num_epochs=_EPOCHS_WITHOUT_END).make_train_batches()
    train_batch = _first(make_batches(0), parallel.microbatches_to_devices, setup)
    eval_batch = _first(setup.make_eval_batches()(), parallel.to_devices, setup)
    return Programs(
        setup,
        compile_step(setup.make_train_step(), state, train_batch),
        compile_step(setup.make_eval_step(), state.eval_variables, eval_batch),
        make_batches,
    )


def _first(batches: Iterator[Batch], place: Callable[..., Iterator[Any]], setup: Setup) -> Any:
    with contextlib.closing(batches):
        return next(place(itertools.islice(batches, 1), setup.layout))


def compile_step(step: Any, state: Any, batch: Any) -> Program:
    """Returns a jitted step compiled for such a state and batch, with what that took."""
    began = time.perf_counter()
    lowered = step.lower(state, batch)
    middle = time.perf_counter()
    events = []
    listen = lambda event, **_: events.append(event.rpartition('/')[-1])  # noqa: E731
    jax.monitoring.register_event_listener(listen)
    try:
        program = lowered.compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    ended = time.perf_counter()
    from_cache = 'cache_hits' in events if 'compile_requests_use_cache' in events else None
    return Program(program, batch, Compilation(middle - began, ended - middle, from_cache))


def _warm_up(programs: Programs, state: TrainState) -> tuple[TrainState, float]:
    """Runs everything once, and returns about how many seconds a training step takes."""
    for time_round in (time_forward, time_loop, time_step):
        state, round_ = time_round(programs, state, 1)
    return state, round_.seconds


def choose_rounds(seconds: float, steps: int | None, rounds: int | None) -> tuple[int, int]:
    """Returns steps of a round, and rounds, as given or as suits a step of so many seconds."""
    steps = steps or max(_FEWEST_STEPS, math.ceil(_SECONDS_OF_A_ROUND / seconds))
    fitting = round(_SECONDS_OF_A_KIND / (steps * seconds))
    return steps, rounds or min(max(fitting, _FEWEST_ROUNDS), _MOST_ROUNDS)


def _time_alternating(
    programs: Programs, state: TrainState, steps: int, rounds: int, on_round: Callable[[], Any]
) -> dict[str, list[Round]]:
    """Returns the rounds of each kind, which alternate, so that what else slows them is shared."""
    kinds = {'step': time_step, 'loop': time_loop, 'forward': time_forward}
    timed = {kind: [] for kind in kinds}
    for number in range(rounds):
        # There and back, so that none always comes after the same one.
        for kind in list(kinds)[:: (-1) ** number]:
            state, round_ = kinds[kind](programs, state, steps)
            timed[kind].append(round_)
        on_round()
    return timed


def time_step(programs: Programs, state: TrainState, steps: int) -> tuple[TrainState, Round]:
    """Times the training step on one batch; returns the state after it, donating the old one."""
    program = programs.train
    return _time_calls(lambda state: program.step(state, program.batch), state, steps)


def time_forward(programs: Programs, state: TrainState, steps: int) -> tuple[TrainState, Round]:
    """Times the evaluation step on one batch; returns the state as it was."""
    program = programs.evaluate
    call = lambda state: (state, program.step(state.eval_variables, program.batch))  # noqa: E731
    return _time_calls(call, state, steps)


def _time_calls(
    call: Callable[[TrainState], tuple[TrainState, Any]], state: TrainState, steps: int
) -> tuple[TrainState, Round]:
    for count in (untimed_steps(steps), steps):  # The last counts.
        began, results = time.perf_counter(), []
        for _ in range(count):
            state, sums = call(state)
            results.append(sums)
            parallel.throttle_dispatch(results)
        jax.block_until_ready((state, results))
    return state, Round(time.perf_counter() - began)


def time_loop(programs: Programs, state: TrainState, steps: int) -> tuple[TrainState, Round]:
    """Times the loop of a run; returns the state after it, donating the old one.

    It begins with the batch of the state's step, and a record ends it.
    """
    setup, every = programs.setup, programs.setup.intervals.log_every_steps
    meter, times = StepMeter(setup.batch_size, setup.top_k), []
    # Closed, or what is read ahead would slow the round that comes next.
    with contextlib.closing(programs.make_batches(int(state.step))) as batches:
        on_devices = parallel.microbatches_to_devices(batches, setup.layout)
        states = run_steps(programs.train.step, state, on_devices, meter)
        for state in itertools.islice(states, untimed_steps(steps)):  # noqa: B007 - the last
            pass
        meter.close()
        for number, state in enumerate(itertools.islice(states, steps), 1):  # noqa: B007
            if number % every == 0 or number == steps:
                times.append(_time_of(meter.close()))
    return state, Round(*map(sum, zip(*times, strict=True)))


def _time_of(record: dict[str, float]) -> Round:
    seconds = record['train/count'] / record['train/images_per_second']
    return Round(seconds, seconds * record['train/data_wait_fraction'])


def untimed_steps(steps: int) -> int:
    """Returns how many steps a round makes before those that count, while its buffers fill."""
    return max(2, steps // 4)


def peak_memory(devices: Iterable[Any]) -> int:
    """Returns bytes: of the fullest device, or where none reports, of this process."""
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [found['peak_bytes_in_use'] for found in stats if 'peak_bytes_in_use' in found]
    if peaks:
        return max(peaks)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == 'darwin' else resident * 1024


def _about(setup: Setup) -> dict[str, Any]:
    return {
        'model': setup.model_name,
        'dtype': setup.dtype,
        'image_size': setup.train_crop.size,
        'source': setup.source,
        'notes': list(setup.dataset.notes),
        'devices': setup.layout.devices,
        'device_kind': jax.devices()[0].device_kind,
        'cores': count_cores(),
        'host': host_info.describe_cores(),
        'versions': host_info.find_versions(),
        'commit': host_info.find_commit(),
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }
