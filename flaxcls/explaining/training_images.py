"""What a network sees in training, beside what it sees in evaluation."""

import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.augment.mixup import Mixed
from flaxcls.data.datasets import Split
from flaxcls.data.pipeline import make_eval_batches, make_train_batches
from flaxcls.system.files import naming
from flaxcls.training.setup import Setup

COLUMNS = 8


class Numbered:
    """A few examples of a split, each labelled with its place among them."""

    def __init__(self, split: Split, indices: Sequence[int]):
        self.split, self.indices = split, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[np.ndarray | bytes, int]:
        return self.split[self.indices[place]][0], place

    def name(self, place: int) -> str:
        return self.split.name(self.indices[place])


def augmented_images(setup: Setup, epochs: int) -> tuple[np.ndarray, Mixed, np.ndarray]:
    """Returns evaluation images [N, S, S, 3], training's [E, N, ...] in 0..255, and labels [N].

    The targets of training, [E, N, N], are shares of the N examples.
    """
    split = setup.dataset.train
    rng = np.random.default_rng(setup.seed)
    indices = rng.choice(len(split), min(COLUMNS, len(split)), replace=False).tolist()
    examples, count = Numbered(split, indices), len(indices)
    crop = setup.eval_crop
    evaluated = next(make_eval_batches(examples, crop, batch_size=count)())['image']
    augment_and_mix = _make_augment_and_mix(
        setup.augment, setup.make_mix(count, 'device', repeats=1)
    )
    batches = make_train_batches(
        examples, setup.train_crop, batch_size=count, num_epochs=epochs, seed=setup.seed
    )
    keys = jax.random.split(jax.random.key(setup.seed), epochs)
    augmented = [
        _in_place(
            jax.device_get(augment_and_mix(key, batch['image'], batch['label'])), batch['label']
        )
        for key, batch in zip(keys, batches(0), strict=True)
    ]
    labels = np.array([split[index][1] for index in indices])
    return evaluated, Mixed(*map(np.stack, zip(*augmented, strict=True))), labels


def _make_augment_and_mix(
    augment: Callable[[jax.Array, jax.Array], jax.Array], mix: Callable[..., Mixed]
) -> Callable[[jax.Array, jax.Array, jax.Array], Mixed]:
    @jax.jit
    def augment_and_mix(key: jax.Array, images: jax.Array, labels: jax.Array) -> Mixed:
        augment_keys, mix_keys = jax.random.split(key, (2, len(labels)))
        images = augment(augment_keys, images.astype(jnp.float32))
        # Mixing asks for microbatches, and a named axis over the devices; here both are one.
        one = jax.vmap(mix, axis_name='device')(
            *(x[None, None] for x in (mix_keys, images, labels))
        )
        return jax.tree.map(lambda x: x[0, 0], one)

    return augment_and_mix


def _in_place(mixed: Mixed, places: np.ndarray) -> Mixed:
    order = np.argsort(places)
    return Mixed(*(x[order] for x in mixed))


def draw_training_images(setup: Setup, epochs: int, path: pathlib.Path) -> None:
    """Writes the picture as PNG."""
    import matplotlib  # noqa: PLC0415 - slow to import

    matplotlib.use('agg')
    from matplotlib import pyplot  # noqa: PLC0415

    evaluated, mixed, labels = augmented_images(setup, epochs)
    names = [setup.dataset.class_names[label] for label in labels]
    rows, columns = 1 + epochs, len(labels)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(1.5 * columns, 1.8 * rows), layout='constrained', squeeze=False
    )
    for column in range(columns):
        _show(axes[0, column], evaluated[column], names[column])
        for epoch in range(epochs):
            title = _shares(mixed.targets[epoch, column], names)
            _show(axes[epoch + 1, column], mixed.images[epoch, column], title)
    figure.suptitle(f'{setup.source}: evaluation above, {epochs} epochs of training below')
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _shares(target: np.ndarray, names: Sequence[str]) -> str:
    """Returns the label, or both with their shares."""
    shares = {}
    for place in np.argsort(-target, kind='stable'):
        if target[place] >= 0.005:
            shares[names[place]] = shares.get(names[place], 0) + target[place]
    if len(shares) == 1:
        return next(iter(shares))
    return '\n'.join(f'{share:.0%} {name}' for name, share in shares.items())


def _show(axis, image: np.ndarray, title: str) -> None:
    axis.imshow(np.round(image).astype(np.uint8))
    axis.set_title(title, fontsize=8)
    axis.axis('off')
