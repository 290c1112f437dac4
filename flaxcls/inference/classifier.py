"""Inference API of a trained run: from images, or their files, to predictions."""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxcls.augment.transforms import make_normalize
from flaxcls.augment.tta import make_tta_crops
from flaxcls.config.config_dict import set_option
from flaxcls.config.validation import validate
from flaxcls.config.workdir import load_class_names, load_stored_config
from flaxcls.errors import RunError, UserError
from flaxcls.inference.calibration import load_temperature
from flaxcls.inference.export_function import Inference, make_inference
from flaxcls.models.intermediates import apply_with_intermediates
from flaxcls.system.files import require_place, write_atomically
from flaxcls.system.threads import map_in_threads
from flaxcls.system.xla_options import compiler_options
from flaxcls.training.checkpoint_files import read_run_weights
from flaxcls.training.from_config import EvalImages, create_network, eval_images
from flaxcls.training.steps import make_classify

# An array uint8 [H, W, 1 or 3], the bytes of an image file, or its path.
Image = np.ndarray | bytes | str | os.PathLike


BATCH_SIZE = 64


class UnreadableImage(RunError):
    """An image that cannot be decoded.

    Attributes:
      reason: why, without the name of the file.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f'{name}: {reason}.')
        self.reason = reason


class Classifier:
    """A network with its weights, its preprocessing and the names of its classes.

    Attributes:
      model_name: a row of MODELS.
      model: the Linen module.
      variables: {'params': ..., 'batch_stats': ...}; of averaged weights, these.
      class_names: in the order of the logits.
      images: how evaluation shows them to the network.
      temperature: divides the logits before they become probabilities; 1 unless it was measured.
      step: training step of the checkpoint.
      num_threads: that decode images; None: one per core.
      normalize: images in 0..255 -> what the network takes.
      side: S, in pixels, of preprocessed images.
    """

    def __init__(
        self,
        model_name: str,
        model: nn.Module,
        variables: dict[str, Any],
        class_names: Sequence[str],
        images: EvalImages,
        *,
        temperature: float = 1.0,
        step: int = 0,
        num_threads: int | None = None,
    ):
        self.model_name = model_name
        self.model = model
        self.variables = jax.device_put(variables)
        self.class_names = tuple(class_names)
        self.images = images
        self.temperature = temperature
        self.step = step
        self.num_threads = num_threads
        self.normalize = make_normalize(images.mean, images.std)
        self.side = images.crop.side
        self._compiled: dict[Any, Callable[..., Any]] = {}
        crops_of = None
        if images.crop.tta != 'center':
            crops_of = make_tta_crops(images.crop.tta, images.crop.size)
        self._classify = self.compile(make_classify(model, self.normalize, crops_of))
        self._features = self.compile(self._features_of)

    @classmethod
    def load(
        cls, workdir: str | os.PathLike, *, checkpoint: str = 'newest', crops: str | None = None
    ) -> 'Classifier':
        """Returns the classifier that a run has trained, whose data need not be there any more.

        Args:
          workdir: path of the directory that the run was trained in.
          checkpoint: newest, best (by validation accuracy), or a step.
          crops: the TTA crops that are averaged: center, flip or ten; None: as the run evaluates.
            With others than the run's, the temperature that was measured does not apply.

        Raises:
          UserError: there is no such run or checkpoint, or there are no such crops.
          RunError: the checkpoint cannot be read.
        """
        workdir = pathlib.Path(workdir).expanduser()
        config = load_stored_config(workdir)
        others = crops not in (None, config.data.eval_crops)
        if others:
            _require_different_crops(crops, config.data.eval_crop_fraction)
            set_option(config, 'data.eval_crops', crops)
        validate(config)
        names = load_class_names(workdir) or map(str, range(config.model.num_classes))
        step, variables = read_run_weights(workdir, checkpoint)
        return cls(
            config.model.name,
            create_network(config),
            variables,
            tuple(names),
            eval_images(config),
            # It is measured with the crops of evaluation.
            temperature=1.0 if others else load_temperature(workdir, step),
            step=step,
            num_threads=config.data.num_threads,
        )

    def in_float32(self) -> 'Classifier':
        """Returns the classifier as it is exported, whatever its network computes in."""
        return Classifier(
            self.model_name,
            self.model.clone(dtype=jnp.float32),
            self.variables,
            self.class_names,
            self.images,
            temperature=self.temperature,
            step=self.step,
            num_threads=self.num_threads,
        )

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function under jit, compiled as the steps of the network are."""
        options = compiler_options(self.model_name, jax.default_backend())
        return jax.jit(function, compiler_options=options)

    def compiled(
        self, make: Callable[..., Callable[..., Any]], *options: Any
    ) -> Callable[..., Any]:
        """Returns make(self, *options) as `compile` does, which is done once for each of them."""
        if (make, options) not in self._compiled:
            self._compiled[make, options] = self.compile(make(self, *options))
        return self._compiled[make, options]

    def in_batches(
        self, function: Callable[..., jax.Array], *arrays: np.ndarray, size: int = BATCH_SIZE
    ) -> np.ndarray:
        """Returns function(variables, *arrays) [N, ...], computed `size` rows at a time."""
        firsts = range(0, len(arrays[0]), size)
        batches = ([array[first : first + size] for array in arrays] for first in firsts)
        return np.concatenate([self._in_batch(function, *batch) for batch in batches])

    def predict(self, images: Image | Sequence[Image]) -> np.ndarray:
        """Returns float32 probabilities [N, C] of images as they come.

        Args:
          images: uint8 [N, H, W, 3], or any number of arrays, bytes or paths, of any sizes; each
            is decoded, resized and cut as in evaluation.

        Raises:
          UserError: an array is not a uint8 image.
          RunError: a file cannot be read.
        """
        return self.to_probabilities(self.logits(images))

    def logits(self, images: Image | Sequence[Image]) -> np.ndarray:
        """Returns float32 logits [N, C]; arguments and errors as `predict`."""
        return np.concatenate([self.classify(batch) for batch in self._batches(images)])

    def features(self, images: Image | Sequence[Image]) -> np.ndarray:
        """Returns what the last layer sees, float32 [N, F], of the central crop.

        Arguments and errors as `predict`.
        """
        return np.concatenate(
            [self._in_batch(self._features, batch) for batch in self._batches(images)]
        )

    def classify(self, prepared: np.ndarray) -> np.ndarray:
        """Returns float32 logits [N, C] of images uint8 [N, S, S, 3] that `prepare` has made."""
        return self._in_batch(self._classify, prepared)

    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns the softmax [N, C] of logits [N, C] divided by the temperature."""
        # In NumPy, since XLA would compile the few operations for each number of images.
        scaled = np.asarray(logits, np.float32) / np.float32(self.temperature)
        exponentials = np.exp(scaled - scaled.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)

    def preprocess(self, image: Image) -> np.ndarray:
        """Returns one image as evaluation shows it to the network, uint8 [S, S, 3].

        Raises:
          UserError: an array is not a uint8 image.
          UnreadableImage: a file cannot be read; a RunError.
        """
        if isinstance(image, np.ndarray | jax.Array):
            return self.images.crop.cut(_require_image(np.asarray(image)))
        try:
            data = image if isinstance(image, bytes) else pathlib.Path(image).read_bytes()
            return self.images.crop.cut(data)
        except (ValueError, OSError) as error:
            name = 'an image' if isinstance(image, bytes) else os.fspath(image)
            raise UnreadableImage(name, getattr(error, 'strerror', None) or str(error)) from None

    def inference(self, *, with_maps: bool = False) -> Inference:
        """Returns `make_inference` of this network."""
        return make_inference(
            self.model,
            self.variables,
            self.images,
            temperature=self.temperature,
            with_maps=with_maps,
        )

    def export(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes the network as StableHLO for CPU, CUDA and TPU; returns the file.

        `jax.export.deserialize(bytes).call` takes images uint8 [N, S, S, 3] for any N, as `prepare`
        makes them, and returns float32 probabilities [N, C]. It needs jax alone, of a release at
        most six months newer; an archive is better served by `flaxcls export --format=onnx`.

        Raises:
          UserError: the file cannot be there.
        """
        path = require_place(path)
        infer = self.inference()
        function = jax.jit(lambda images: infer(images)['probabilities'])
        (batch,) = jax.export.symbolic_shape('batch')
        images = jax.ShapeDtypeStruct((batch, self.side, self.side, 3), jnp.uint8)
        exported = jax.export.export(function, platforms=('cpu', 'cuda', 'tpu'))(images)
        write_atomically(path, exported.serialize())
        return path

    def _features_of(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        size = self.images.crop.size
        first = (self.side - size) // 2  # What ten crops are cut from is larger than a crop.
        images = self.normalize(images[:, first : first + size, first : first + size])
        return apply_with_intermediates(self.model, variables, images, ['features'])[1]['features']

    def _batches(self, images: Image | Sequence[Image]) -> Iterator[np.ndarray]:
        """Yields the images prepared, as uint8 [at most BATCH_SIZE, S, S, 3]."""
        if isinstance(images, bytes | str | os.PathLike):
            images = [images]
        if not len(images):
            raise UserError('there are no images; give at least one.')
        for first in range(0, len(images), BATCH_SIZE):
            batch = images[first : first + BATCH_SIZE]
            yield np.stack(list(map_in_threads(self.preprocess, batch, self.num_threads)))

    def _in_batch(self, function: Callable[..., jax.Array], *arrays: np.ndarray) -> np.ndarray:
        filled = map(pad_to_power_of_two, arrays)
        return np.asarray(function(self.variables, *filled))[: len(arrays[0])]


def pad_to_power_of_two(rows: np.ndarray) -> np.ndarray:
    """Returns rows [N, ...] with zeros after them, so that few sizes are ever compiled."""
    missing = (1 << (len(rows) - 1).bit_length()) - len(rows)
    return np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))


def _require_different_crops(crops: str, fraction: float) -> None:
    if crops == 'ten' and fraction == 1:
        raise UserError(
            'ten crops would all be the same, since the run looks at whole images '
            '(config.data.eval_crop_fraction=1); choose flip or center.'
        )


def _require_image(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UserError(
            f'an image is an array of {image.dtype} {list(image.shape)}; give uint8 [H, W, 3] or '
            '[H, W, 1], in 0 to 255.'
        )
    return image
