"""Runs an exported network without flaxcls, and shows how: it needs numpy and one runtime.

  python run.py model.onnx picture.jpg [more.png ...]
  python run.py model.onnx images.npy probabilities.npy

The first prints the likeliest classes of pictures, which it prepares as preprocessing.json says,
with Pillow. The second takes prepared ones, uint8 [N, S, S, 3], RGB in 0 to 255, and writes float32
[N, C], the classes in the order of class_names.json; it prints one line of JSON: the median time of
one image alone, and versions. The runtime is onnxruntime for .onnx, ai-edge-litert for .tflite, and
jax for .stablehlo, of a release until the date that certificate.json has as readable_until.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import statistics
import sys
import time

import numpy as np

# ruff: noqa: PLC0415 - each format has its own runtime, and needs no other

BATCH_SIZE = 7
TIMED_IMAGES = 30
TOP_K = 5
PACKAGES = {'onnx': 'onnxruntime', 'tflite': 'ai-edge-litert', 'stablehlo': 'jax'}


def load(path):
    """Returns images uint8 [N, S, S, 3] -> probabilities float32 [N, C], for any N."""
    suffix = str(path).rpartition('.')[-1]
    if suffix not in PACKAGES:
        sys.exit(f'error: {path} ends in none of .{", .".join(PACKAGES)}')
    require_as_exported(path)
    try:
        make = {'onnx': load_onnx, 'tflite': load_tflite, 'stablehlo': load_stablehlo}[suffix]
        return make(str(path))
    except ImportError as error:
        sys.exit(f'error: {error}; pip install {PACKAGES[suffix]}')


def require_as_exported(path):
    """Ends with a sentence if the file is not the one that the certificate beside it is about."""
    try:
        certificate = json.loads(pathlib.Path(path).with_name('certificate.json').read_text())
        expected = certificate['sha256'] if certificate['file'] == pathlib.Path(path).name else None
    except (OSError, ValueError, KeyError, TypeError):
        return  # There is no certificate beside it.
    with open(path, 'rb') as file:
        if expected and hashlib.file_digest(file, 'sha256').hexdigest() != expected:
            sys.exit(f'error: {path} is damaged: it is not the file that was exported')


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: session.run(['probabilities'], {'images': images})[0]


def load_tflite(path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    (given,) = interpreter.get_input_details()
    output = interpreter.get_signature_runner().get_output_details()['probabilities']

    def run(images):
        if tuple(interpreter.get_input_details()[0]['shape']) != images.shape:
            interpreter.resize_tensor_input(given['index'], images.shape, strict=True)
            interpreter.allocate_tensors()
        interpreter.set_tensor(given['index'], images)
        interpreter.invoke()
        return interpreter.get_tensor(output['index'])

    interpreter.allocate_tensors()
    return run


def load_stablehlo(path):
    import jax
    import jax.export

    content = pathlib.Path(path).read_bytes()
    try:
        function = jax.jit(jax.export.deserialize(content).call)
    except Exception as error:  # Of flatbuffers as well, where JAX has not looked at the version.
        sys.exit(f'error: {refusal(path, jax.__version__, error)}')

    def run(images):
        try:
            return np.asarray(function(images))
        except RuntimeError as error:  # As an older JAX says of newer operations.
            if 'deserialize' not in str(error):
                raise
            sys.exit(f'error: {refusal(path, jax.__version__, error)}')

    return run


def refusal(path, installed, error):
    """Returns a sentence about a file that this JAX does not read, too old or too new for it."""
    reason = ' '.join(str(error).split()).partition('.')[0]
    wrote, remedy = 'a JAX more than six months older or newer wrote it', ''
    try:
        certificate = json.loads(pathlib.Path(path).with_name('certificate.json').read_text())
        version = certificate['versions_of_export']['jax']
        wrote, remedy = f'JAX {version} wrote it', f'pip install jax=={version}, or '
        if until := certificate.get('readable_until'):
            wrote += f', which releases of JAX until {until} promise to read'
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # There is no certificate beside it.
    return (
        f'{path} cannot be read by JAX {installed} ({reason}); {wrote}; {remedy}export the run '
        'anew, for an archive as ONNX'
    )


def prepare(picture, side, shorter_side):
    """Returns a picture as the network takes it, uint8 [S, S, 3]; the steps of preprocessing.json.

    Args:
      picture: of Pillow.
      side: S.
      shorter_side: of the picture, before its middle is cut.
    """
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith('I'):
        picture = Image.fromarray((np.asarray(picture).astype(int) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new('RGBA', picture.size, 'white')
        picture = Image.alpha_composite(white, picture.convert('RGBA'))
    scale = shorter_side / min(picture.size)
    size = [max(shorter_side, round(length * scale)) for length in picture.size]
    picture = picture.convert('RGB').resize(size, Image.Resampling.BILINEAR)
    left, top = ((length - side) // 2 for length in size)
    return np.asarray(picture)[top : top + side, left : left + side]


def name_pictures(model, files):
    """Prints a line for each picture: the likeliest classes, and how likely they are."""
    from PIL import Image

    folder, run = pathlib.Path(model).parent, load(model)
    names = json.loads((folder / 'class_names.json').read_text())
    rules = json.loads((folder / 'preprocessing.json').read_text())
    for file in files:
        with Image.open(file) as picture:
            image = prepare(picture, rules['side'], rules['shorter_side'])
        probabilities = run(image[None])[0]
        order = np.argsort(-probabilities)[:TOP_K]
        print(file, *(f'{names[label]} {probabilities[label]:.2%}' for label in order), sep='  ')


def time_single(run, images):
    """Returns the probabilities of images taken one at a time, and the median seconds of one."""
    run(images[:1])
    outputs, seconds = [], []
    for index in range(len(images)):
        began = time.perf_counter()
        outputs.append(run(images[index : index + 1]))
        seconds.append(time.perf_counter() - began)
    return np.concatenate(outputs), statistics.median(seconds)


def run_array(model, images_file, probabilities_file):
    """Writes the probabilities of prepared images, and prints what that took."""
    images, run = np.load(images_file), load(model)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        sys.exit(
            f'error: {images_file} has {images.dtype} {list(images.shape)}; give uint8 [N, S, S, 3]'
        )
    singly, seconds = time_single(run, images[:TIMED_IMAGES])
    firsts = range(len(singly), len(images), BATCH_SIZE)
    rest = [run(images[first : first + BATCH_SIZE]) for first in firsts]
    batch = np.arange(BATCH_SIZE) % len(singly)
    difference = np.abs(run(images[batch]) - singly[batch]).max()
    np.save(probabilities_file, np.concatenate([singly, *rest]))
    versions = {
        name: importlib.metadata.version(name)
        for name in (*PACKAGES.values(), 'numpy')
        if name.replace('-', '_') in sys.modules
    }
    report = {
        'milliseconds': 1000 * seconds,
        'batch_difference': float(difference),
        'versions': versions,
    }
    print(json.dumps(report))


def main(arguments):
    """Runs the command line."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    model, *files = arguments
    try:
        if files[0].endswith('.npy') and len(files) == 2:
            run_array(model, *files)
        else:
            name_pictures(model, files)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main(sys.argv[1:])
