"""What a config describes, part by part, for tests that vary one option and look at one part."""

import numpy as np

from flaxcls.augment import mixup, transforms
from flaxcls.config.config_dict import flatten
from flaxcls.data import pipeline
from flaxcls.inference.classifier import Classifier
from flaxcls.models.patterns import parse_patterns
from flaxcls.models.registry import MODELS
from flaxcls.training import (
    dataset,
    from_config,
    learning_rate,
    optimizers,
    parallel,
    run_record,
    schedules,
    steps,
)
from flaxcls.training.checkpoint_files import read_run_state
from flaxcls.training.from_config import tta_crops_of
from flaxcls.training.losses import LOSSES
from flaxcls.training.restore import open_run

MIXING = ('mixup', 'cutmix', 'repeats')


def with_image_size(config):
    """Returns the config with its image size filled in."""
    config = config.copy_and_resolve_references().unlock()
    config.data.image_size = config.data.image_size or MODELS[config.model.name].image_size
    return config.lock()


def make_train_batches(config, split, **processes):
    return pipeline.make_train_batches(
        split,
        from_config.train_crop(with_image_size(config)),
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        seed=config.seed,
        repeats=config.augment.repeats,
        microbatches=config.parallel.accumulation_steps,
        num_threads=config.data.num_threads,
        **processes,
    )


def make_eval_batches(config, split, **processes):
    return pipeline.make_eval_batches(
        split,
        from_config.eval_images(with_image_size(config)).crop,
        batch_size=config.batch_size,
        num_threads=config.data.num_threads,
        **processes,
    )


def open_dataset(config):
    return dataset.open_configured_dataset(config)


def load_dataset(config, *, for_training=True):
    return dataset.read_dataset(with_image_size(config), for_training=for_training)


def make_augment(config):
    options = {name: config.augment[name] for name in config.augment if name not in MIXING}
    return transforms.make_augment(config.data.mean, **options)


def make_mix(config, axis_name):
    options = {name: config.augment[name] for name in MIXING}
    return mixup.make_mix(config.model.num_classes, axis_name, **options)


def make_normalize(config):
    return transforms.make_normalize(config.data.mean, config.data.std)


def make_classify(config, model):
    images = from_config.eval_images(config)
    return steps.make_classify(model, make_normalize(config), tta_crops_of(images.crop))


def make_schedule(config, steps_per_epoch):
    return learning_rate.make_learning_rate(
        config.optimizer.learning_rate,
        config.optimizer.base_batch_size,
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        schedule=config.schedule,
    ).schedule


def peak_learning_rate(config):
    options = config.optimizer
    return schedules.peak_learning_rate(
        options.learning_rate, config.batch_size, options.base_batch_size
    )


def make_optimizer(config, schedule, params):
    return optimizers.make_optimizer(params, schedule, **from_config.optimizer_options(config))


def param_groups(config, params):
    rules = optimizers.parse_rules(config.optimizer.rules)
    return optimizers.param_groups(params, rules, decay_all=config.optimizer.decay_all)


def create_layout(config, devices):
    layout = parallel.create_layout(
        devices,
        mode=config.parallel.mode,
        accumulation_steps=config.parallel.accumulation_steps,
    )
    parallel.require_equal_shares(layout, config.batch_size)
    return layout


def make_train_step(config, model, optimizer):
    """Returns the step of one device for a resolved config, whose model may be a changed one."""
    return steps.make_train_step(
        model,
        optimizer,
        augment=make_augment(config),
        mix=make_mix(config, parallel.AXIS),
        normalize=make_normalize(config),
        loss=LOSSES[config.loss],
        seed=config.seed,
        top_k=min(config.top_k, config.model.num_classes),
        label_smoothing=config.label_smoothing,
        frozen=parse_patterns(config.freeze),
        ema_decay=config.ema.decay,
        remat=config.model.remat,
    )


def make_eval_step(config, model):
    top_k = min(config.top_k, config.model.num_classes)
    return steps.make_eval_step(make_classify(config, model), top_k=top_k)


def experiment_options(config):
    return run_record.experiment_options(dict(flatten(config)))


def load_state(workdir, *, checkpoint='newest'):
    """Returns the whole state of a run."""
    setup = open_run(workdir)
    return read_run_state(workdir, checkpoint, setup.abstract_state())[1]


def stack(batches, name):
    """Returns one field of evaluation batches, without the rows that fill them up."""
    return np.concatenate([batch[name][batch['mask']] for batch in batches])


def classifier_of(config, variables, class_names, **options):
    config = with_image_size(config)
    network, images = from_config.create_network(config), from_config.eval_images(config)
    return Classifier(config.model.name, network, variables, class_names, images, **options)
