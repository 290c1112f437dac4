"""Images per second of input pipelines, side by side in one run: flaxcls, torchvision and tf.data.

  python -m benchmarks.input_pipeline                # decode + random resized crop to 224
  python -m benchmarks.input_pipeline --rounds=1 --seconds=2
  python -m benchmarks.input_pipeline --augmentations    # flaxcls's own, on the device at hand

Each pipeline reads the same generated JPEGs from a folder, decodes them and cuts random resized
crops into uint8 batches, in a process of its own that may use one core, or two. The rounds
alternate between the pipelines, and the best of each counts. `make bench-input` sets up the
environment with PyTorch and TensorFlow; a pipeline without its library is left out, with a word.
"""

import argparse
import importlib.util
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SIZE, BATCH_SIZE, MIN_AREA = 224, 32, 0.08
SETS = {'500x375': (375, 500, 128), '1600x1200': (1200, 1600, 64)}  # Height, width, images.
CORES = (1, 2)


def write_photographs(folder: pathlib.Path, height: int, width: int, count: int) -> None:
    """Writes JPEGs of quality 90 with structure at every scale, as photographs have, in 2 classes.

    The amplitude falls with the frequency, and a little noise stands for the sensor's.
    """
    for index in range(count):
        rng = np.random.default_rng((height, index))
        image = np.zeros((height, width, 3))
        for octave in range(1, 9):
            rows, columns = 2 + height * 2**octave // width, 2 + 2**octave
            coarse = rng.normal(size=(rows, columns, 3)) * 0.55**octave
            channels = [
                np.asarray(
                    Image.fromarray(coarse[..., c].astype(np.float32)).resize((width, height))
                )
                for c in range(3)
            ]
            image += np.stack(channels, -1)
        image = (image - image.min()) / np.ptp(image) * 255 + rng.normal(size=image.shape) * 3
        path = folder / str(index % 2) / f'{index}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def flaxcls_batches(folder: str, cores: int) -> Iterator[np.ndarray]:
    from flaxcls.data.crops import TrainCrop
    from flaxcls.data.datasets import SplitSpec
    from flaxcls.data.folder import open_folder
    from flaxcls.data.pipeline import make_train_batches

    batches = make_train_batches(
        open_folder(folder, SplitSpec(val_fraction=0.1)).train,
        TrainCrop(SIZE, 'random_resized'),
        batch_size=BATCH_SIZE,
        num_epochs=10**6,
        seed=0,
        num_threads=cores,
    )
    return (batch['image'] for batch in batches(0))


def torchvision_batches(folder: str, cores: int, loader: Callable, transforms: list) -> Iterator:
    """The recipe of torchvision's references: ImageFolder, RandomResizedCrop, worker processes."""
    import torch
    from torchvision import datasets
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    crop = v2.RandomResizedCrop(SIZE, scale=(MIN_AREA, 1.0), antialias=True)
    dataset = datasets.ImageFolder(folder, v2.Compose([crop, *transforms]), loader=loader)
    while True:
        yield from torch.utils.data.DataLoader(
            dataset, BATCH_SIZE, shuffle=True, num_workers=cores, drop_last=True
        )


def torchvision_pil_batches(folder: str, cores: int) -> Iterator:
    from torchvision import datasets
    from torchvision.transforms import v2

    return torchvision_batches(folder, cores, datasets.folder.pil_loader, [v2.PILToTensor()])


def torchvision_io_batches(folder: str, cores: int) -> Iterator:
    from torchvision import io

    load = lambda path: io.decode_image(path, mode=io.ImageReadMode.RGB)  # noqa: E731
    return torchvision_batches(folder, cores, load, [])


def tf_data_batches(folder: str, cores: int) -> Iterator:
    """TensorFlow's recipe for ImageNet: only the crop is decoded, then resized."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)

    def load(path):
        data = tf.io.read_file(path)
        box, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([1, 0, 4]),
            area_range=(MIN_AREA, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([box[0], box[1], size[0], size[1]])
        image = tf.image.resize(tf.io.decode_and_crop_jpeg(data, window, channels=3), [SIZE, SIZE])
        return tf.cast(image, tf.uint8)

    files = sorted(map(str, pathlib.Path(folder).glob('*/*.jpg')))
    dataset = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(len(files))
    dataset = dataset.map(load, num_parallel_calls=cores).batch(BATCH_SIZE).prefetch(4)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    return iter(dataset.with_options(options))


# Name -> (batches, the library that it needs).
PIPELINES = {
    'flaxcls': (flaxcls_batches, 'flaxcls'),
    'torchvision, Pillow': (torchvision_pil_batches, 'torchvision'),
    'torchvision, its own decoder': (torchvision_io_batches, 'torchvision'),
    'tf.data': (tf_data_batches, 'tensorflow'),
}


def measure(name: str, folder: str, cores: int, seconds: float) -> float:
    """Returns images per second of a pipeline that may run on the first `cores` cores."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < cores:
        raise SystemExit(f'this machine lends {len(available)} cores, and {cores} are needed.')
    os.sched_setaffinity(0, available[:cores])
    batches = PIPELINES[name][0](folder, cores)
    for _ in range(8):  # Workers start, buffers fill.
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += BATCH_SIZE
    return count / (time.perf_counter() - start)


def _measure_in_process(name: str, folder: str, cores: int, seconds: float) -> float:
    """A process of its own: thread pools and affinities of one do not touch the next."""
    call = f'print(measure({name!r}, {folder!r}, {cores}, {seconds}))'
    command = [sys.executable, '-c', f'from benchmarks.input_pipeline import measure; {call}']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f'{name} failed:\n{result.stderr[-2000:]}')
    return float(result.stdout.split()[-1])


def compare(rounds: int, seconds: float) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    names = [n for n, (_, library) in PIPELINES.items() if importlib.util.find_spec(library)]
    for name in PIPELINES.keys() - names:
        yield f'{name}: left out, {PIPELINES[name][1]} is not installed.'
    yield '| JPEGs | cores | ' + ' | '.join(names) + ' |'
    yield '| --- | ---: |' + ' ---: |' * len(names)
    with tempfile.TemporaryDirectory() as root:
        for images, (height, width, count) in SETS.items():
            write_photographs(pathlib.Path(root, images), height, width, count)
        for images, cores in itertools.product(SETS, CORES):
            best = dict.fromkeys(names, 0.0)
            for _, name in itertools.product(range(rounds), names):
                speed = _measure_in_process(name, os.path.join(root, images), cores, seconds)
                best[name] = max(best[name], speed)
            cells = [f'{best[n]:.0f} ({best["flaxcls"] / best[n]:.2f}x)' for n in names]
            yield f'| {images} | {cores} | ' + ' | '.join(cells) + ' |'


# What augments -> the options.
AUGMENTATIONS = {
    'pad and crop, flip': {'crop': 'pad', 'flip': True},
    'random resized crop': {'crop': 'random_resized', 'crop_on': 'device'},
    'colour jitter': {'color_jitter': (0.4, 0.4, 0.4, 0.1)},
    'RandAugment, 2 layers': {'policy': 'randaugment'},
    'TrivialAugment': {'policy': 'trivialaugment'},
    'random erasing': {'erase': 0.5},
}


def measure_augmentations(seconds: float) -> Iterator[str]:
    """Yields the lines of a Markdown table: images/s of each augmentation, jitted, batch 64."""
    import jax

    from flaxcls.augment.transforms import make_augment

    sizes = (32, 224)
    yield f'| on {jax.devices()[0].device_kind} | ' + ' | '.join(f'{s} x {s}' for s in sizes) + ' |'
    yield '| --- |' + ' ---: |' * len(sizes)
    for name, options in AUGMENTATIONS.items():
        cells = []
        for size in sizes:
            augment = jax.jit(make_augment((0.5, 0.5, 0.5), **options))
            keys = jax.random.split(jax.random.key(0), 64)
            images = jax.random.uniform(jax.random.key(1), (64, size, size, 3), maxval=255)
            augment(keys, images).block_until_ready()
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                augment(keys, images).block_until_ready()
                count += len(images)
            cells.append(f'{count / (time.perf_counter() - start):,.0f}')
        yield f'| {name} | ' + ' | '.join(cells) + ' |'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=3, help='the best of so many counts')
    parser.add_argument('--seconds', type=float, default=5.0, help='of each measurement')
    parser.add_argument('--augmentations', action='store_true', help='measure these instead')
    arguments = parser.parse_args()
    if arguments.augmentations:
        lines = measure_augmentations(arguments.seconds)
    else:
        print('images/s, and in brackets how many times as fast flaxcls is')
        lines = compare(arguments.rounds, arguments.seconds)
    for line in lines:
        print(line, flush=True)


if __name__ == '__main__':
    main()
