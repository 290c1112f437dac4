"""Training steps and forward passes of PyTorch's networks, without JAX in the process."""

import functools
from collections.abc import Callable

import torch
import torch.fx.experimental.optimization
import torchvision

from benchmarks import torch_cifar


def torch_calls(
    name: str, batch: int, dtype: str, layout: str, mode: str
) -> dict[str, Callable[[], None]]:
    """Returns {'step': ..., 'forward': ...} of PyTorch's network of that name."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    memory_format = torch.channels_last if layout == 'channels_last' else torch.contiguous_format
    size, classes = (32, 10) if name in torch_cifar.NETWORKS else (224, 1000)
    create = torch_cifar.NETWORKS.get(name) or functools.partial(torchvision.models.get_model, name)
    model = create().to(device, memory_format=memory_format)
    images = torch.randn(batch, 3, size, size).to(device, memory_format=memory_format)
    labels = torch.randint(classes, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    run = torch.compile(model) if mode == 'compiled' else model
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')

    def wait():
        if device == 'cuda':
            torch.cuda.synchronize()

    def step():
        model.train()
        optimizer.zero_grad()
        with autocast:
            loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()
        wait()

    def forward():
        model.eval()
        with torch.no_grad(), autocast:
            run(images)
        wait()

    calls = {'step': step, 'forward': forward}
    if mode == 'fused':
        model.eval()
        run = torch.fx.experimental.optimization.fuse(model)
        calls.pop('step')
    return calls
