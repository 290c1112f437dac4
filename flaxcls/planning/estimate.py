"""What a run would be and what it would cost, with nothing computed."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from flaxcls.augment.tta import make_tta_crops
from flaxcls.data.datasets import Dataset
from flaxcls.data.known_sizes import dataset_of_published_size
from flaxcls.errors import RunError, UserError
from flaxcls.models.summary import Cost, count_cost
from flaxcls.planning.compiled import StepResources, compile_train_step, step_resources
from flaxcls.planning.hardware import LEAST_EFFORT, Chip, Hardware, is_tpu, open_hardware
from flaxcls.system.text import clock, gib
from flaxcls.training.dataset import open_configured_dataset
from flaxcls.training.from_config import split_spec
from flaxcls.training.setup import Setup, build_setup

# A training step is a forward pass, and the gradients of its inputs and of its weights.
_PASSES = 3


class Plan(NamedTuple):
    """What a run would be, with nothing computed.

    Attributes:
      setup: everything that follows from the config.
      hardware: the devices it is for.
      cost: of an image of training's size, forward.
      eval_cost: of an image of evaluation's size, forward.
      resources: of a step on each device; None: not compiled.
    """

    setup: Setup
    hardware: Hardware
    cost: Cost
    eval_cost: Cost
    resources: StepResources | None = None

    @property
    def flops_per_step(self) -> float:
        """Of all devices: two for each multiply-add, forward and backward."""
        return 2 * _PASSES * self.cost.macs * self.setup.batch_size

    @property
    def flops_per_evaluated_image(self) -> float:
        """Of all its TTA crops."""
        crop = self.setup.eval_crop
        images = jax.ShapeDtypeStruct((1, crop.side, crop.side, 3), jnp.uint8)
        crops = jax.eval_shape(make_tta_crops(crop.tta, crop.size), images)
        return 2 * len(crops) * self.eval_cost.macs

    @property
    def flops(self) -> float:
        """Of the whole run, its evaluations included."""
        setup = self.setup
        evaluations = -(-setup.num_epochs // setup.intervals.eval_every_epochs)
        evaluated = evaluations * len(setup.dataset.val)
        training = self.flops_per_step * setup.total_steps
        return training + self.flops_per_evaluated_image * evaluated

    @property
    def least_seconds_per_step(self) -> dict[str, float]:
        """{what limits: seconds}, at the chip's full rate; empty for an unknown chip."""
        chip, resources = self.hardware.chip, self.resources
        if chip is None or resources is None:
            return {}
        # FLOPs as counted here: the compiler leaves out what it gives to a library.
        limits = {'FLOPs': self.flops_per_step / self.setup.layout.devices / chip.flops}
        if resources.traffic is not None:
            limits['memory traffic'] = resources.traffic / chip.bandwidth
        return limits


def create_plan(
    config: ConfigDict, hardware: str | None = None, *, dataset: Dataset | None = None
) -> Plan:
    """Returns the plan without what the compiled step needs, which `compile_plan` adds.

    Args:
      config: a full config.
      hardware: as for `open_hardware`.
      dataset: its data set, if it has been opened; None: of well-known sets that are not prepared,
        the published size is taken.

    Raises:
      UserError: the run is impossible, or the hardware is unknown.
    """
    opened = open_hardware(hardware)
    dataset = dataset or open_or_published(config)
    setup = build_setup(config, dataset=dataset, devices=opened.devices)
    _refuse_idle_milestones(setup)
    return plan_setup(setup, opened)


def open_or_published(config: ConfigDict) -> Dataset:
    """Returns the data set of a config, or where it is not prepared, one of its published size.

    Raises:
      UserError: it is neither there nor well known.
    """
    data = config.data
    published = dataset_of_published_size(data.source, split_spec(config), data.data_dir)
    return published or open_configured_dataset(config)


def plan_setup(setup: Setup, hardware: Hardware) -> Plan:
    """Returns the plan of a run that is set up for the devices of `hardware`."""
    sizes = [setup.train_crop.size, setup.eval_crop.size]
    costs = {size: count_cost(setup.model, size) for size in set(sizes)}
    return Plan(setup, hardware, *(costs[size] for size in sizes))


def compile_plan(plan: Plan, *, effort: float = LEAST_EFFORT) -> Plan:
    """Returns the plan with what the compiled training step needs.

    Args:
      plan: from `create_plan`.
      effort: of a TPU's compiler, from -1 to 0, that of a run. At -1 it takes a fifth of the time;
        of ResNet-50's step, 64 images on each v5e, its estimate is then 9 % higher
        for memory in float32, the same in bfloat16, and a quarter to 40 % less traffic.

    Raises:
      RunError: it does not fit into the memory of the target.
    """
    on_tpu = is_tpu(plan.hardware.name)
    options = {'exec_time_optimization_effort': effort} if on_tpu else None
    try:
        compiled = compile_train_step(plan.setup, options)
    except Exception as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        used = next((line for line in str(error).splitlines() if 'Used' in line), str(error))
        raise RunError(
            f'a step of config.batch_size={plan.setup.batch_size} does not fit on '
            f'{plan.hardware.name} ({used.strip()}); choose a smaller one, more devices, '
            f'config.model.dtype=bfloat16 or config.model.remat=norm{_with_more_effort(options)}.'
        ) from None
    return plan._replace(resources=step_resources(compiled, plan.setup))


def _with_more_effort(options: dict[str, float] | None) -> str:
    less = options and options['exec_time_optimization_effort'] < 0
    return ', or try --effort=0, which may find room' if less else ''


def _refuse_idle_milestones(setup: Setup) -> None:
    milestones = setup.learning_rate.milestones
    late = [m for m in milestones if m >= setup.num_epochs]
    if late:
        raise UserError(
            f'config.schedule.milestones={milestones} last until epoch {late[-1]:g}, '
            f'and config.num_epochs={setup.num_epochs} ends before; move them or train longer.'
        )


def describe_plan(plan: Plan) -> Iterator[str]:
    """Yields lines for a person: steps, learning rates, parameters, FLOPs."""
    setup, dataset = plan.setup, plan.setup.dataset
    yield (
        f'{setup.source}: {len(dataset.train):,} training and {len(dataset.val):,} validation '
        f'images, {len(dataset.class_names)} classes'
    )
    yield from (f'Note: {note}' for note in dataset.notes)
    per_epoch, total, rate = setup.steps_per_epoch, setup.total_steps, setup.learning_rate
    yield f'steps           {per_epoch:,} per epoch, {total:,} in all; {_last_batch(setup)}'
    yield f'learning rate   peak {rate.peak:g}{rate.scaling}; {_turning_points(setup)}'
    yield f'parameters      {plan.cost.parameters:,}'
    yield (
        f'FLOPs           {2 * plan.cost.macs / 1e9:.3f} G per image forward, {_PASSES} times that '
        f'in training; {plan.flops:.3g} for the run'
    )


def _last_batch(setup: Setup) -> str:
    left = len(setup.dataset.train) - setup.steps_per_epoch * setup.batch_size
    last = len(setup.dataset.val) % setup.batch_size
    train = f'{left} images of each epoch wait for the next' if left else 'no image is left over'
    padded = f'the last evaluation batch has {last} images and is filled up, masked' if last else ''
    return '; '.join(filter(None, [train, padded]))


def _turning_points(setup: Setup) -> str:
    rate, total = setup.learning_rate, setup.total_steps
    warmup = round(rate.warmup_epochs * setup.steps_per_epoch)
    milestones = [round(epoch * setup.steps_per_epoch) for epoch in rate.milestones]
    steps = sorted({0, warmup, total // 2, *milestones, total - 1})
    return ', '.join(f'{float(rate.schedule(step)):.4g} at step {step:,}' for step in steps)


def describe_resources(plan: Plan) -> Iterator[str]:
    """Yields lines for a person: memory, traffic, collectives, time, the largest batch."""
    setup, found = plan.setup, plan.resources
    devices, batch = setup.layout.devices, setup.batch_size
    memory = found.memory
    yield f'devices         {devices} of {plan.hardware.name}, {batch // devices} images each'
    yield (
        f'memory          {gib(memory.total)} a device: weights {gib(memory.weights)}, optimizer '
        f'{gib(memory.optimizer)}, batch {gib(memory.batch)}, activations and gradients '
        f'{gib(memory.temporary)}'
    )
    if plan.hardware.chip:
        yield from _describe_fit(plan, plan.hardware.chip)
    if found.traffic is not None:
        yield f'traffic         {found.traffic * devices / batch / 1e6:.0f} MB of memory per image'
    sent = ', '.join(
        f'{number} {kind} ({size / 1e6:.2f} MB)'
        for kind, (number, size) in found.collectives.items()
    )
    yield f'between devices {sent or "nothing"}'
    limits = plan.least_seconds_per_step
    if limits:
        yield from _describe_time(plan, limits)


def _describe_fit(plan: Plan, chip: Chip) -> Iterator[str]:
    memory, devices = plan.resources.memory, plan.setup.layout.devices
    local = plan.setup.batch_size // devices
    # What does not grow with the batch; gradients are as large as the weights.
    fixed = 2 * memory.weights + memory.optimizer + memory.program
    each = max(memory.total - fixed, memory.batch) / local
    largest = int((chip.memory - fixed) / each) * devices
    fits = 'fits in' if memory.total <= chip.memory else 'does not fit in'
    largest = f'; by proportion, a batch of about {largest:,} would'
    # What is too small to fill the chip says nothing about how it scales.
    known = largest if memory.total > chip.memory / 20 else ''
    yield f'                {fits} {gib(chip.memory)}{known}'


def _describe_time(plan: Plan, limits: dict[str, float]) -> Iterator[str]:
    setup = plan.setup
    limit, seconds = max(limits.items(), key=lambda item: item[1])
    rate = setup.batch_size / seconds
    whole = clock(seconds * setup.total_steps)
    parts = ', '.join(f'{name} {value * 1e3:.1f} ms' for name, value in limits.items())
    yield (
        f'time            at least {seconds * 1e3:.1f} ms a step ({parts}): at most {rate:,.0f} '
        f'images/s, {whole} for all steps'
    )
    yield (
        f'                a roofline, limited by {limit}: what the chip could do at its full rate, '
        'not a forecast'
    )
    if plan.resources.traffic is None:
        yield '                its compiler does not count memory traffic, which may take longer'
