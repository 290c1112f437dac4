"""Runs an exported network without flaxcls, and shows how: it needs numpy and one runtime.

  python run.py model.onnx images.npy probabilities.npy

images.npy is uint8 [N, S, S, 3], RGB in 0 to 255, resized as preprocessing.json says;
probabilities.npy becomes float32 [N, C], the classes in the order of class_names.json. The runtime
is onnxruntime for .onnx, ai-edge-litert for .tflite, and jax for .stablehlo. Prints one line of
JSON: the median time of one image alone, and versions.
"""

import importlib.metadata
import json
import statistics
import sys
import time

import numpy as np

# ruff: noqa: PLC0415 - each format has its own runtime, and needs no other

BATCH_SIZE = 7
TIMED_IMAGES = 30


def load(path):
    """Returns images uint8 [N, S, S, 3] -> probabilities float32 [N, C], for any N."""
    suffix = path.rpartition('.')[-1]
    return {'onnx': load_onnx, 'tflite': load_tflite, 'stablehlo': load_stablehlo}[suffix](path)


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: session.run(['probabilities'], {'images': images})[0]


def load_tflite(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    (given,) = interpreter.get_input_details()
    answer = interpreter.get_signature_runner().get_output_details()['probabilities']

    def run(images):
        if tuple(interpreter.get_input_details()[0]['shape']) != images.shape:
            interpreter.resize_tensor_input(given['index'], images.shape, strict=True)
            interpreter.allocate_tensors()
        interpreter.set_tensor(given['index'], images)
        interpreter.invoke()
        return interpreter.get_tensor(answer['index'])

    interpreter.allocate_tensors()
    return run


def load_stablehlo(path):
    import jax

    with open(path, 'rb') as file:
        function = jax.jit(jax.export.deserialize(file.read()).call)
    return lambda images: np.asarray(function(images))


def time_single(run, images):
    """Returns the probabilities of images taken one at a time, and the median seconds of one."""
    run(images[:1])
    answers, seconds = [], []
    for index in range(len(images)):
        began = time.perf_counter()
        answers.append(run(images[index : index + 1]))
        seconds.append(time.perf_counter() - began)
    return np.concatenate(answers), statistics.median(seconds)


def main(model, images_file, probabilities_file):
    images, run = np.load(images_file), load(model)
    singly, seconds = time_single(run, images[:TIMED_IMAGES])
    batches = range(len(singly), len(images), BATCH_SIZE)
    rest = [run(images[first : first + BATCH_SIZE]) for first in batches]
    again = run(images[: len(singly)][:BATCH_SIZE])
    np.save(probabilities_file, np.concatenate([singly, *rest]))
    runtimes = ('onnxruntime', 'ai-edge-litert', 'jax', 'numpy')
    versions = {}
    for name in runtimes:
        if name.replace('-', '_') in sys.modules:
            versions[name] = importlib.metadata.version(name)
    print(
        json.dumps(
            {
                'milliseconds': 1000 * seconds,
                'batch_difference': float(np.abs(again - singly[:BATCH_SIZE]).max()),
                'versions': versions,
            }
        )
    )


if __name__ == '__main__':
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except ImportError as error:
        sys.exit(f'error: {error}; pip install onnxruntime, ai-edge-litert or jax[cpu]')
