"""Runs a classifier in a .tflite file; needs numpy and ai-edge-litert, and no other package.

    python run_tflite.py model.tflite images.npy probabilities.npy

images.npy holds images uint8 [N, S, S, 3], RGB, as large as the network takes them; into
probabilities.npy go float32 [N, C], one row for each image, in the order of the classes. A line of
JSON says how long one image takes.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version

import numpy as np


def load(path, threads=1):
    """Returns the interpreter of a .tflite file, which computes with so many threads."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - this file needs no other

    return Interpreter(model_path=path, num_threads=threads)


def classify(interpreter, images):
    """Returns float32 probabilities [N, C] of images uint8 [N, S, S, 3], all at once."""
    place = interpreter.get_input_details()[0]
    if tuple(place['shape']) != images.shape:
        interpreter.resize_tensor_input(place['index'], images.shape, strict=True)
        place = interpreter.get_input_details()[0]
    interpreter.allocate_tensors()
    interpreter.set_tensor(place['index'], images)
    interpreter.invoke()
    outputs = interpreter.get_signature_runner().get_output_details()
    return interpreter.get_tensor(outputs['probabilities']['index'])


def classify_in_batches(interpreter, images, size):
    """Returns the probabilities [N, C], computed for `size` images at a time."""
    firsts = range(0, len(images), size)
    return np.concatenate([classify(interpreter, images[i : i + size]) for i in firsts])


def measure(interpreter, image, repeats):
    """Returns the median time of one image [S, S, 3] alone, milliseconds, after a first run."""
    classify(interpreter, image[None])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        classify(interpreter, image[None])
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def read_images(path, interpreter):
    """Returns the images; ends the program if they are none that the network takes."""
    images = np.load(path)
    side = int(interpreter.get_input_details()[0]['shape'][1])
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or not len(images):
        sys.exit(
            f'error: {path} holds {images.dtype} {list(images.shape)}; the network takes uint8 '
            f'[N, {side}, {side}, 3].'
        )
    return images


def main():
    """Reads the command line, and does what it asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', help='a .tflite file')
    parser.add_argument('images', help='.npy, uint8 [N, S, S, 3]')
    parser.add_argument('probabilities', help='.npy to write, float32 [N, C]')
    parser.add_argument('--batch-size', type=int, default=32, help='images at once (32)')
    parser.add_argument('--threads', type=int, default=1, help='threads of the CPU (1)')
    parser.add_argument('--repeats', type=int, default=20, help='how often one is timed (20)')
    args = parser.parse_args()
    if min(args.batch_size, args.threads, args.repeats) < 1:
        parser.error('--batch-size, --threads and --repeats are at least 1')
    try:
        interpreter = load(args.model, args.threads)
        images = read_images(args.images, interpreter)
        np.save(args.probabilities, classify_in_batches(interpreter, images, args.batch_size))
    except ImportError as error:
        sys.exit(f'error: {error.name} is missing; pip install ai-edge-litert numpy')
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    summary = {
        'images': len(images),
        'batch_size': args.batch_size,
        'milliseconds_per_image': measure(interpreter, images[0], args.repeats),
        'threads': args.threads,
        'python': platform.python_version(),
        'numpy': np.__version__,
        'ai-edge-litert': version('ai-edge-litert'),
        'machine': platform.machine(),
    }
    print(json.dumps(summary))


if __name__ == '__main__':
    main()
