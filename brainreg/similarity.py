"""Which pairs of images the regulariser takes, and how similar a network is to find them (arXiv 2410.03952).

    S     = U U^T,   u_i = (v_i - mean image) / ||v_i - mean image||,   v_i the pixels of image i, channels averaged
    S^Th  = +b where S > Th,  -b where S < -Th,  else 0

S is the same for v and for scale*(v - shift).  The pairs are i < j; by what S, never S^Th, says of them:

    all            every pair                    low        |S| < Th
    high           S > Th, then S < -Th          positive   S > Th, then |S| < Th
    high_positive  S > Th                        negative   S < -Th, then |S| < Th
    double         |S| < Th_2, then |S| > Th

Comparisons are strict; "then": first the pairs of the one half, in lexicographic order, next those of the other.
A pair in both halves, as `double` has where Th < Th_2, counts twice.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import UserError


def _any(similarity: Tensor, threshold: float) -> Tensor:
    return torch.ones_like(similarity, dtype=torch.bool)


def _above(similarity: Tensor, threshold: float) -> Tensor:
    return similarity > threshold


def _below(similarity: Tensor, threshold: float) -> Tensor:
    return similarity < -threshold


def _inside(similarity: Tensor, threshold: float) -> Tensor:
    # As two comparisons: |S| would take another matrix of floats.
    return (similarity < threshold) & (similarity > -threshold)


def _outside(similarity: Tensor, threshold: float) -> Tensor:
    return (similarity > threshold) | (similarity < -threshold)


Half = Callable[[Tensor, float], Tensor]                 # S (N,N), threshold -> which of its entries, bool (N,N)
RANGES: dict[str, tuple[Half, ...]] = {
    "all": (_any,), "high": (_above, _below), "low": (_inside,), "positive": (_above, _inside),
    "negative": (_below, _inside), "high_positive": (_above,), "double": (_inside, _outside)}


def pixel_similarity(images: Tensor) -> Tensor:
    """S (N,N) in [-1,1] up to rounding, float32 (float64 where they are), of images (N,C,H,W) of any range.

    An image that is the mean image has similarity 0 to every one, itself too.
    """
    pixels = images.mean(1).flatten(1)
    pixels = pixels - pixels.mean(0)
    lengths = torch.linalg.vector_norm(pixels, dim=1, keepdim=True)
    directions = pixels / lengths.clamp_min(torch.finfo(pixels.dtype).tiny)
    return directions @ directions.T


def boosted(similarity: Tensor, threshold: float, boost: float = 1.0) -> Tensor:
    """S^Th of the shape and type of S, which may be any part of the matrix: the targets of the pairs, say."""
    signs = (similarity > threshold).to(torch.int8) - (similarity < -threshold).to(torch.int8)
    return signs.to(similarity.dtype).mul_(boost)


def pairs_in_range(similarity: Tensor, kind: str, threshold: float, second: float | None = None, *,
                   boosted: bool = True, at_least: int = 1) -> Tensor:
    """The pairs (P,2) int64, i < j, of range `kind` (a key of RANGES), on the device of the similarities S (N,N).

    threshold, second  Th and Th_2; only `double` takes the latter, and needs it
    boosted            the targets are S^Th: Th_2 must then be below Th
    at_least           k, the pairs of a batch
    UserError where these do not fit, and where there are fewer pairs than `at_least`; ValueError for another kind.  It
    waits for the device.
    """
    if kind not in RANGES:
        raise ValueError(f"no range of similarities is called {kind!r}: {', '.join(RANGES)}")
    if kind == "double":
        if second is None:
            raise UserError("--reg_range double takes the pairs of |S| < Th_2 too: give Th_2 as --reg_thresh_2",
                            code="E-FLAG-PAIR")
        if boosted and second >= threshold:
            raise UserError(f"--reg_thresh_2 {second:g} must be below --reg_thresh {threshold:g}, between which are "
                            "the similarities that --reg_range double leaves out", code="E-FLAG-PAIR")
    halves = RANGES[kind]
    limits = (second, threshold) if kind == "double" else (threshold,) * len(halves)
    found = [half(similarity, limit).triu_(1).nonzero() for half, limit in zip(halves, limits, strict=True)]
    pairs = found[0] if len(found) == 1 else torch.cat(found)
    if len(pairs) < at_least:
        raise UserError(_too_few(similarity, kind, threshold, len(pairs), at_least), code="E-PAIRS")
    return pairs


def _too_few(similarity: Tensor, kind: str, threshold: float, found: int, wanted: int) -> str:
    """What is wrong where a range holds fewer pairs than a batch, and which |S| there are."""
    if len(similarity) < 2:
        return f"the regulariser compares pairs of images, and there is {len(similarity)}: raise --reg_image_num"
    apart = _any(similarity, threshold).triu(1)
    sizes = similarity[apart].abs()
    which = "no pair" if found == 0 else f"only {found} of the {len(sizes)} pairs"
    mend = "" if kind == "all" else f" (--reg_thresh {threshold:g}; the largest |S| is {sizes.max():.3g}, the least " \
                                    f"{sizes.min():.3g})"
    return (f"{which} of regularisation images {'is' if found < 2 else 'are'} in --reg_range {kind}{mend}, and a batch "
            f"takes {wanted}: take another threshold or range, more images or a smaller --reg_batch_size")
