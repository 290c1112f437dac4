"""The table of networks, and a network layer by layer, as text."""

from collections.abc import Mapping

import flax.linen as nn

from flaxcls.config.files import load_config
from flaxcls.config.option import require_choice
from flaxcls.errors import UserError
from flaxcls.models.image_size import require_image_size
from flaxcls.models.registry import MODELS, create_model
from flaxcls.models.summary import Layer, count_cost, list_layers
from flaxcls.system.text import table
from flaxcls.training.from_config import create_network


def model_table() -> str:
    """Returns a line for each network: what it costs at its paper's image size, and the paper."""
    rows = [('name', 'parameters', 'GMACs', 'activations/M', 'pixels', 'paper')]
    for name, row in MODELS.items():
        numbers = '', '', ''
        if row.parameters is not None:
            numbers = f'{row.parameters:,}', f'{row.gmacs:.4f}', f'{row.activations:.2f}'
        rows.append((name, *numbers, row.image_size, row.paper))
    return '\n'.join(table(rows, '<>>>><'))


def create_overridden(name: str, overrides: Mapping[str, str], extensions: str = '') -> nn.Module:
    """Returns a network with other options than its own.

    Args:
      name: a key of MODELS.
      overrides: of config.model, {'model.width_multiplier': '0.5'}; of anything else, they are
        refused.
      extensions: the value of config.extensions.

    Raises:
      UserError: there is no such network, or it has no such option.
    """
    require_choice('model.name', name, list(MODELS))
    for key in overrides:
        if not key.startswith('model.') or key == 'model.name':
            raise UserError(f'--config.{key} changes no layer of {name}; leave it out.')
    named = {'extensions': extensions, 'model.name': name}
    return create_network(load_config(None, named | overrides)) if overrides else create_model(name)


def layer_table(name: str, image_size: int | None = None, model: nn.Module | None = None) -> str:
    """Returns a line for each layer of a network: output, window, receptive field and costs.

    Args:
      name: a key of MODELS.
      image_size: pixels; None: the paper's.
      model: the network with other options; None: with its own.

    Raises:
      UserError: there is no such network, or it does not take images of this size.
    """
    require_choice('model.name', name, list(MODELS))
    size = image_size or MODELS[name].image_size
    model = create_model(name) if model is None else model
    require_image_size(model, name, size)
    window = ('kernel', 'stride', 'padding', 'groups', 'receptive field')
    rows = [('layer', '', 'output', *window, 'parameters', 'MMACs')]
    rows += [_layer_row(layer) for layer in list_layers(model, size)]
    cost = count_cost(model, size)
    about = (
        f'{name} at {size}x{size}: {cost.parameters:,} parameters, {cost.macs / 1e9:.4f} GMACs, '
        f'{cost.activations / 1e6:.2f} M activations; {MODELS[name].paper}'
    )
    return '\n'.join([*table(rows, '<<>>>>>>>>'), about])


def _layer_row(layer: Layer) -> tuple[str, ...]:
    known = lambda number: '' if number is None else str(number)  # noqa: E731
    return (
        layer.path,
        layer.kind if layer.rate is None else f'{layer.kind} {layer.rate:g}',
        'x'.join(map(str, layer.output[1:])),
        'x'.join(map(str, layer.kernel or ())),
        known(layer.stride),
        '+'.join(map(str, dict.fromkeys(layer.padding or ()))),  # 0+1: above and below.
        known(layer.groups),
        'all' if layer.receptive_field is None else str(layer.receptive_field),
        f'{layer.parameters:,}' if layer.parameters else '',
        f'{layer.macs / 1e6:.2f}' if layer.macs else '',
    )
