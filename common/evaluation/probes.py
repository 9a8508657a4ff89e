"""Questions to a network before it is attacked: does it answer as an attack needs it?  Each answer is a Finding.

Shape letters: B images, C channels, H and W pixels, K classes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from common.attacks.losses import margin
from common.evaluation.codes import Finding

REPEATED, ALONE = 1e-5, 1e-3        # differences by rounding, as shares of the largest logit
MASKED = 0.1                        # share of images without a gradient that is too large to attack


def probe(model: nn.Module, x: Tensor, y: Tensor, *, gradients: bool = True) -> list[Finding]:
    """Everything that is wrong with `model`, as it is handed over, and with the images x (B,C,H,W), labels y (B,).

    gradients: whether it is to be attacked by its gradients.  What would follow from an earlier finding is not asked.
    The network's statistics are put back.
    """
    found = list(image_range(model, x))
    if training := [name or "the network" for name, module in model.named_modules() if module.training]:
        return [*found, Finding("E-MODE", f"{training[0]} is in train mode ({len(training)} modules): call eval() on "
                                "the network, and let no module override train()")]
    with statistics_kept(model) as before, torch.no_grad():
        logits, again = model(x), model(x)
        moved = [name for name, value in statistics(model).items() if not torch.equal(value, before[name])]
    if moved:
        return [*found, Finding("E-MODE", f"batch norm statistics move in eval mode ({moved[0]}, {len(moved)} in all): "
                                "something in forward() switches to train mode; take it out")]
    found += answers(model, x, logits, again)
    found += twice_normalised(model, x) if not found else []
    if gradients and not any(finding.code in ("E-RANDOM", "E-GRADIENT") for finding in found):
        found += image_gradients(model, x, y)
    return found


def image_range(model: nn.Module, x: Tensor) -> Iterator[Finding]:
    """E-RANGE, or E-NORMALISED-TWICE where images outside [0,1] meet a network that normalises."""
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 1:
        if high <= 1.5 / 255:
            yield Finding("E-RANGE", f"no pixel is brighter than {high:.4f}: the images were divided by 255 twice, or "
                          "hold 0 and 1 where 0 to 255 is meant; give bytes of 0 to 255")
        return
    if high > 2 and low >= 0:
        yield Finding("E-RANGE", f"the images run from {low:g} to {high:g}: divide them by 255")
    elif (slope := normalising(model, x)) is not None:
        yield Finding("E-NORMALISED-TWICE", f"the images run from {low:.2f} to {high:.2f}, as if normalised, and the "
                      f"network normalises its input (divides by {slope:.3g}): give it images in [0,1]")
    else:
        yield Finding("E-RANGE", f"the images run from {low:.2f} to {high:.2f}: eps is a distance of images in [0,1]; "
                      "put the normalisation inside the network and give it images in [0,1]")


def answers(model: nn.Module, x: Tensor, logits: Tensor, again: Tensor) -> Iterator[Finding]:
    """Of the logits (B,K) of two calls: not finite, random, dependent on the batch, probabilities."""
    if not bool(logits.isfinite().all()):
        yield Finding("E-GRADIENT", "the network returns values that are not finite: look for an overflow, a division "
                      "by zero, or damaged weights")
        return
    size = float(logits.abs().max()) or 1.0
    apart = float((logits - again).abs().max())
    if apart > REPEATED * size:
        yield Finding("E-RANDOM", f"two calls on the same images differ by {apart:.2g} (logits up to {size:.2g}): "
                      "switch off what is drawn at test time, or judge a randomised network by an attack made for it")
    elif len(x) >= 2:
        half = len(x) // 2
        with torch.no_grad():
            parts = torch.cat([model(x[:half]), model(x[half:].flip(0)).flip(0)])
        apart = float((logits - parts).abs().max())
        if apart > ALONE * size:
            yield Finding("E-BATCH", f"an image's logits move by {apart:.2g} (of up to {size:.2g}) with the other "
                          "images of its batch: batch norm must use its running statistics (track_running_stats)")
    sums, spread = logits.sum(1), float((logits.amax(0) - logits.amin(0)).max())
    total, off = float(sums.mean()), float((sums - sums.mean()).abs().max())
    # A softmax may be scaled: its sums then differ by rounding alone, however much the outputs do.  Those of a network
    # that was hardly trained may be alike for all images, and so nearly are their sums.
    scaled = off < 1e-5 * total and spread > 100 * off
    if bool((logits >= 0).all()) and (scaled or off + abs(total - 1) < 1e-3):
        yield Finding("E-SOFTMAX", f"the outputs are probabilities (each row sums to {total:.4g}), on which attacks by "
                      "cross-entropy stall: return the logits, without softmax")


def image_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Finding]:
    """E-GRADIENT, W-GRADIENT: of the margin of the logits, and of the cross-entropy that most attacks climb."""
    with torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        logits = model(images)
        if not logits.requires_grad:
            yield Finding("E-GRADIENT", "no gradient reaches the image: take detach(), no_grad() and conversions to "
                          "numpy out of forward()")
            return
        found = []
        for loss in (margin(logits, y), F.cross_entropy(logits, y, reduction="none")):
            gradient, = torch.autograd.grad(loss.sum(), images, retain_graph=True, allow_unused=True)
            found.append(torch.zeros_like(images) if gradient is None else gradient)
    if not all(bool(gradient.isfinite().all()) for gradient in found):
        yield Finding("E-GRADIENT", "the gradient by the image is not finite: look for a root or a logarithm of 0 in "
                      "forward()")
        return
    of_margin, of_entropy = (int((gradient.flatten(1) == 0).all(1).sum()) for gradient in found)
    if of_margin > MASKED * len(x):
        yield Finding("E-GRADIENT", f"the gradient is exactly zero for {of_margin} of {len(x)} images: rounding, a "
                      "threshold or dead units hide it; attack a smooth stand-in of that step, or by Square")
    elif of_entropy > of_margin:
        yield Finding("W-GRADIENT", f"the cross-entropy's gradient is exactly zero for {of_entropy} of {len(x)} "
                      "images: logits this large make PGD on it blind; trust attacks on DLR or margin, as "
                      "AutoAttack has one")


def twice_normalised(model: nn.Module, x: Tensor) -> Iterator[Finding]:
    """E-NORMALISED-TWICE where images in [0,1] reach the first layer spread as only two normalisations spread them."""
    reached = first_input(model, x)
    line = affine(x, reached)
    if line is None:
        return
    slope, _ = line
    spread = reached.transpose(0, 1).flatten(1).std(1)
    # Deviations of images in [0,1] lie between 0.15 and 0.45; the product of two of them is what stands here.
    if bool(((1 / slope > 0.02) & (1 / slope < 0.15) & (spread > 2)).all()):
        yield Finding("E-NORMALISED-TWICE", f"the first layer sees a deviation of {float(spread.mean()):.1f} where "
                      "one normalisation gives 1: the network normalises its input, and so does what is around it; "
                      "take one away (or allow it, where the network was trained so)")


def normalising(model: nn.Module, x: Tensor) -> float | None:
    """By what the network divides its input before the first layer, if it does and by less than 0.6."""
    line = affine(x, first_input(model, x))
    if line is None or not bool((line[0] > 1 / 0.6).all()):
        return None
    return float((1 / line[0]).mean())


def affine(x: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """(slope (C,), offset (C,)) of z = slope x + offset per channel, both (B,C,H,W); None if it is no such function."""
    if z is None or z.shape != x.shape:
        return None
    flat, image = (part.detach().transpose(0, 1).flatten(1).double() for part in (z, x))
    centred = image - image.mean(1, keepdim=True)
    spread = centred.square().mean(1)
    if not bool((spread > 0).all()):
        return None
    slope = (centred * flat).mean(1) / spread
    offset = flat.mean(1) - slope * image.mean(1)
    left = (flat - slope[:, None] * image - offset[:, None]).abs().amax()
    if not bool((slope > 0).all()) or float(left) > 1e-3 * float(flat.std() + 1e-12):
        return None
    return slope, offset


def first_input(model: nn.Module, x: Tensor) -> Tensor | None:
    """What the first convolution or linear layer that is called gets; None if there is none."""
    seen: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not seen:
            seen.append(inputs[0].detach())

    handles = [module.register_forward_pre_hook(note) for module in model.modules()
               if isinstance(module, nn.Conv2d | nn.Linear)]
    try:
        with statistics_kept(model), torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if seen else None


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Name -> running statistic of every batch norm."""
    return {f"{name}.{key}": buffer for name, module in model.named_modules() if isinstance(module, _NormBase)
            for key, buffer in module.named_buffers(recurse=False)}


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """The running statistics as they are now; they and the modules' modes are the same again afterwards."""
    before = {name: value.clone() for name, value in statistics(model).items()}
    modes = {module: module.training for module in model.modules()}
    try:
        yield before
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, value in statistics(model).items():
                if not torch.equal(value, before[name]):
                    value.copy_(before[name])
