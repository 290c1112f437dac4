"""What has been measured of a run, as numbers, as JSON and as lines."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from flaxcls.system.text import gib


class Compilation(NamedTuple):
    """What a step took before it could run.

    Attributes:
      lower_seconds: for tracing it and lowering it to StableHLO.
      compile_seconds: for compiling that, or for loading what had been compiled before.
      from_cache: JAX's persistent cache had it; None: no such cache is in use.
    """

    lower_seconds: float
    compile_seconds: float
    from_cache: bool | None


class Rate(NamedTuple):
    """How fast something is.

    Attributes:
      rounds: images per second in each round.
    """

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def middle_half(self) -> tuple[float, float]:
        return _middle_half(self.rounds)


class BenchmarkResults(NamedTuple):
    """What has been measured of a run.

    Attributes:
      about: what was run, on what, with what, and when.
      batch_size: images in a step, over all devices.
      init_seconds: for drawing the weights.
      train_compilation, eval_compilation: of the two steps.
      steps: timed in each round.
      step: the training step, on one batch that lies on the devices.
      loop: the training loop of a run, without evaluations and checkpoints.
      forward: the evaluation step, on one batch that lies on the devices.
      data_wait_fraction: share of the loop's time, the median of its rounds.
      train_flops: for each image; two for each multiply-add, forward and backward.
      eval_flops: likewise, forward, of all its crops.
      peak_flops: bfloat16 FLOPs per second of all devices together; None: not known.
      peak_memory: bytes: of the fullest device, or on CPU of the whole process.
      step_memory: bytes on each device, as the compiler reports for the training step.
    """

    about: dict[str, Any]
    batch_size: int
    init_seconds: float
    train_compilation: Compilation
    eval_compilation: Compilation
    steps: int
    step: Rate
    loop: Rate
    forward: Rate
    data_wait_fraction: float
    train_flops: float
    eval_flops: float
    peak_flops: float | None
    peak_memory: int
    step_memory: int

    @property
    def step_seconds(self) -> float:
        return self.batch_size / self.step.median

    @property
    def loop_to_step(self) -> float:
        """What the loop keeps of the training step's speed."""
        return self.loop.median / self.step.median

    @property
    def loop_to_step_middle_half(self) -> tuple[float, float]:
        """The ends of the middle half of the ratios within a round."""
        ratios = [a / b for a, b in zip(self.loop.rounds, self.step.rounds, strict=True)]
        return _middle_half(ratios)

    @property
    def mfu(self) -> float | None:
        """The training step's share of what the devices can do; None: that is not known."""
        if self.peak_flops is None:
            return None
        return self.train_flops * self.step.median / self.peak_flops

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON has it: images, seconds, bytes and FLOPs."""
        values = self._asdict()
        for name, value in values.items():
            if isinstance(value, Rate):
                low, high = value.middle_half
                values[name] = {'median': value.median, 'low': low, 'high': high}
                values[name]['rounds'] = list(value.rounds)
            elif isinstance(value, Compilation):
                values[name] = value._asdict()
        derived = ('step_seconds', 'loop_to_step', 'loop_to_step_middle_half', 'mfu')
        return values | {name: getattr(self, name) for name in derived}


def _middle_half(values: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def describe_results(found: BenchmarkResults) -> Iterator[str]:
    """Yields lines for a person."""
    yield from _describe_run(found)
    yield f'init            {found.init_seconds:.2f} s to draw the weights'
    yield f'training step   {_describe_compilation(found.train_compilation)}'
    yield f'evaluation step {_describe_compilation(found.eval_compilation)}'
    rounds = len(found.step.rounds)
    yield f'rounds          {rounds} of {found.steps} steps each, alternating'
    yield f'step            {_describe_rate(found.step)}, {found.step_seconds * 1e3:.2f} ms a step'
    low, high = found.loop_to_step_middle_half
    yield (
        f'loop            {_describe_rate(found.loop)}, {found.loop_to_step:.3f} x step '
        f'({low:.3f} to {high:.3f}); {found.data_wait_fraction:.1%} waiting for data'
    )
    yield f'forward         {_describe_rate(found.forward)}'
    yield (
        f'FLOPs           {found.train_flops / 1e9:.3f} G per image in training, '
        f'{found.eval_flops / 1e9:.3f} G forward; '
        f'{found.train_flops * found.step.median / 1e12:.3f} T/s in the step, '
        f'{found.eval_flops * found.forward.median / 1e12:.3f} T/s forward'
    )
    yield f'MFU             {_describe_mfu(found)}'
    where = 'the process, its compiler included' if _on_cpu(found) else 'a device'
    yield (
        f'memory          {gib(found.peak_memory)} at the peak of {where}; '
        f'{gib(found.step_memory)} by the training step as compiled'
    )


def _describe_run(found: BenchmarkResults) -> Iterator[str]:
    about = found.about
    yield (
        f'{about["model"]} in {about["dtype"]}, batch {found.batch_size} at {about["image_size"]} '
        f'pixels, {about["source"]}'
    )
    versions = ', '.join(f'{name} {version}' for name, version in about['versions'].items())
    devices = '1 device' if about['devices'] == 1 else f'{about["devices"]} devices'
    yield f'{devices} ({about["device_kind"]}), {about["host"]}'
    yield f'{versions}, commit {about["commit"] or "unknown"}; {about["date"]}'
    yield from (f'Note: {note}' for note in about['notes'])


def _describe_compilation(compilation: Compilation) -> str:
    cache = {
        True: 'taken from the persistent cache',
        False: 'the persistent cache did not have it',
        None: 'no persistent cache',
    }
    return (
        f'traced and lowered in {compilation.lower_seconds:.2f} s, compiled in '
        f'{compilation.compile_seconds:.2f} s ({cache[compilation.from_cache]})'
    )


def _describe_rate(rate: Rate) -> str:
    low, high = rate.middle_half
    return f'{rate.median:,.1f} images/s ({low:,.1f} to {high:,.1f})'


def _describe_mfu(found: BenchmarkResults) -> str:
    if found.mfu is None:
        return f'not known, since the peak of {found.about["device_kind"]} is not'
    dtype = found.about['dtype']
    other = '' if dtype == 'bfloat16' else f', and this computes in {dtype}'
    return f"{found.mfu:.1%} of the devices' {found.peak_flops / 1e12:,.0f} T/s in bfloat16{other}"


def _on_cpu(found: BenchmarkResults) -> bool:
    return found.about['device_kind'] == 'cpu'
