"""What a verdict needs: exact float32, eval mode, frozen parameters, random states put back, a ball that is kept."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from common.attacks.balls import Ball
from common.attacks.losses import predictions
from common.attacks.mode import frozen, mode
from common.data.splits import Split, to_float


class _PlainGradient(torch.autograd.Function):
    """The identity; its gradient is contiguous NCHW whatever layout the network works in."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.contiguous()


class Network(nn.Module):
    """A model as third-party attacks want it: NCHW gradients (they call view), float32 logits of their own.

    `release` drops the model: torchattacks keeps every object that its attacks were ever given.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: nn.Module | None = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(_PlainGradient.apply(x)).float().contiguous()

    def release(self) -> None:
        self.model = None


@contextmanager
def judged(model: nn.Module, device: torch.device) -> Iterator[Network]:
    """The model in eval mode, parameters frozen, in exact float32; every flag as it was afterwards."""
    held = [tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if any(dtype != torch.float32 for dtype in held):
        raise ValueError(f"a verdict needs a float32 model, this one holds {', '.join(sorted(map(str, set(held))))}")
    network = Network(model)
    with ExitStack() as stack:
        stack.enter_context(untouched_random_states())
        stack.enter_context(exact_float32(device))
        stack.enter_context(mode(model, training=False))
        stack.enter_context(frozen(model))
        network.eval()
        stack.callback(network.release)
        yield network


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32, no algorithm chosen by a race; the global switches are put back."""
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    switches = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = switches


@contextmanager
def untouched_random_states() -> Iterator[None]:
    """The global generators of torch (CPU, CUDA), numpy and Python stand afterwards where they stood before."""
    plain, arrays = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators seeded for the length of a block, for third-party code that draws from them."""
    with untouched_random_states():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@torch.no_grad()
def correct(network: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """(B,) bool on the device: which images are classified correctly."""
    parts = [predictions(network(images)) == labels
             for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)]
    return torch.cat(parts)


def allowed(threat: Ball, x: Tensor, x_adv: Tensor) -> Tensor:
    """What an attack returned, brought into ball and box; an image with a NaN or an infinity becomes its clean one."""
    x_adv = x_adv.detach().to(x).reshape(x.shape)
    whole = x_adv.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
    return threat.project(x, torch.where(whole, x_adv, x))


def weights_sha256(model: nn.Module) -> str:
    """Hex digest of a model's state: names, types, shapes and bytes, independent of device and memory layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def gradient_pass(model: nn.Module, split: Split, device: torch.device, size: int) -> None:
    """A pass of the first `size` images and the gradient with respect to them, as attacks make it."""
    images = to_float(split.images[:size].to(device)).contiguous().requires_grad_()
    with judged(model, device) as network, torch.enable_grad():
        logits = network(images)
        torch.autograd.grad(logits.logsumexp(1).sum(), images)
