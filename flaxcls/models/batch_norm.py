"""Batch normalisation whose groups belong to the experiment, and the statistics that it takes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxcls.models import init
from flaxcls.models.patterns import matches
from flaxcls.ops.batch_norm import (
    Moments,
    Parts,
    affine,
    batch_norm,
    compute_moments,
    join,
    merge_moments,
    merge_over_devices,
    normalize,
    normalize_in_evaluation,
    split_of_group,
    unbiased,
)


class BatchNorm(nn.Module):
    """Batch normalisation (arXiv:1502.03167, algorithm 1) whose group is part of the experiment.

    In training, every `group_size` consecutive examples of the batch share a mean and a biased
    variance. The running variance takes the unbiased estimate, as torch's does; running statistics
    are the average over all groups, so they are equal on every device. All statistics are float32
    whatever `dtype` is. The variance is the mean of squared deviations from the mean, since the
    mean of squares minus the squared mean cancels when the mean is large; between devices, and on
    GPUs and TPUs, values are shifted by the running mean instead, which takes one reading of the
    activations.

    Attributes:
      momentum: share of the old running statistics kept (torch writes 1 - momentum).
      eps: added to the variance.
      group_size: examples per group; None: the batch, over all devices.
      axis_name: the mapped axis over which the batch is split; None: it is not split.
      scale_init: initializer of the scale, float32 [C].
      frozen: patterns (as in `fnmatch`) of paths such as stage1_block1/bn1; a layer that one fits
        uses its running statistics in training too, and leaves them alone.
      collect_statistics: normalise with the group's statistics even if `train` is False, and leave
        this device's `Moments` in place of the running ones; see `flaxcls.training.precise_bn`.
      mask: bool [B]; examples where it is False count in no statistic. None: all count. Only for
        collect_statistics: a batch of training is whole.
      dtype: of the output; statistics are float32.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    group_size: int | None = None
    axis_name: str | None = None
    scale_init: init.Initializer = init.ones
    frozen: tuple[str, ...] = ()
    collect_statistics: bool = False
    mask: jax.Array | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array | Parts, *, train: bool, moments: Moments | None = None
    ) -> jax.Array:
        """Normalises x [B, H, W, C].

        Args:
          x: activations, also several, whose channels follow one another.
          train: whether to use the statistics of the group, and update the running ones.
          moments: `group_moments(x)`, where they are known; None: they are computed.
        """
        parts = x if isinstance(x, tuple) else (x,)
        batch, *size, _ = parts[0].shape
        channels = sum(part.shape[-1] for part in parts)
        scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
        bias = self.param('bias', init.zeros, (channels,), jnp.float32)
        zeros, ones = init.zeros, init.ones
        running_mean = self.variable('batch_stats', 'mean', zeros, None, (channels,))
        running_var = self.variable('batch_stats', 'var', ones, None, (channels,))
        learning = train and not matches('/'.join(self.path), self.frozen)
        if self.is_initializing() or not (learning or self.collect_statistics):
            factor = scale * lax.rsqrt(running_var.value + self.eps)
            y = normalize_in_evaluation(parts, running_mean.value, factor, bias)
            return y.astype(self.dtype)

        local, span = split_of_group(batch, self.group_size, self.axis_name)
        grouped = tuple(part.reshape(-1, local, *part.shape[1:]) for part in parts)
        if moments is None and span == 1 and not self.collect_statistics:
            y, group = batch_norm(join(grouped), scale, bias, running_mean.value, self.eps)
        else:
            group = moments = moments or self.group_moments(join(parts), running_mean.value)
            if span > 1:
                shift = lax.stop_gradient(running_mean.value)
                group = merge_over_devices(moments, span, self.axis_name, shift)
            y = normalize(grouped, *affine(group, scale, self.eps), bias)
        if self.collect_statistics:
            device = merge_moments(moments)
            running_mean.value, running_var.value = device.mean, device.var
            self.put_variable('batch_stats', 'count', device.count)
        else:
            # Only the groups on this device; the training step averages over the devices, for all
            # layers at once.
            self._update(running_mean, group.mean)
            self._update(running_var, unbiased(group))
        return y.astype(self.dtype).reshape(batch, *size, channels)

    @nn.nowrap
    def group_moments(self, x: jax.Array, shift: jax.Array | None = None) -> Moments:
        """Returns the moments of what this device has of each group, of x [B, H, W, C].

        They depend on settings that all layers of a network share, and not on the layer; `shift`,
        see `compute_moments`, on neither.
        """
        local, _ = split_of_group(x.shape[0], self.group_size, self.axis_name)
        grouped = x.reshape(-1, local, *x.shape[1:])
        mask = None if self.mask is None else self.mask.reshape(*grouped.shape[:2], 1, 1, 1)
        return compute_moments(grouped, mask, shift)

    def _update(self, running: nn.Variable, new: jax.Array) -> None:
        new = jnp.mean(new, axis=0)
        running.value = self.momentum * running.value + (1 - self.momentum) * new
