"""Receipts: the adversarial images behind a number, so that anybody can judge them again without attacking.

A receipt is one npz: `meta` (JSON: plan, network, hashes of weights, data and all arrays, settings, seed, machine),
`clean` uint8 (N,C,H,W), `labels` int64 (N,), and per evaluator `flags/NAME` bool (n,), True: still classified right,
and `adversarial/NAME` float32 (n,C,H,W): what fooled the network, else the last that was tried.  It proves which images
fall; that the others withstand a stronger attack no receipt can prove.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from common.attacks.balls import ball
from common.data.splits import Split, to_float
from common.environment import environment, portable, relative_command
from common.errors import UserError
from common.evaluation.judging import judged, weights_sha256
from common.evaluation.kinds import CHANGED_KINDS
from common.evaluation.plans import Plan, plan_sha256
from common.files import remove, replacing, sha256_of_json
from common.inputs import parse_json
from common.npz_files import read_arrays
from common.record_fields import problems

if TYPE_CHECKING:
    from common.evaluation.harness import Result

FORMAT = 1
OUTSIDE = 1e-5                      # by which rounding may carry an image out of its ball
ROUNDING = 1e-3                     # margins, as shares of the largest logit, that rounding elsewhere may turn


class Changed(Exception):
    """A receipt, or what it is about, is not what it was.  The text is one line."""


def keeps_images(kind: str) -> bool:
    """Whether evaluators of a kind make adversarial images in a ball around the test images."""
    return kind not in ("clean", "cw-l2", "boundary", "hopskipjump", "perception-pgd", "perception-noise",
                        *CHANGED_KINDS)


@dataclass(frozen=True)
class Keeper:
    """Keeps each chunk's adversarial images in a file of its own in `folder`, until they become a receipt.

    key: of the evaluation (`key_of`), so that no other's images are taken for its own.
    """

    folder: Path
    key: str

    def path(self, evaluator: str, number: int) -> Path:
        return self.folder / f"kept-{self.key}-{re.sub('[^A-Za-z0-9]+', '_', evaluator)}-{number}.npy"

    def save(self, evaluator: str, number: int, images: Tensor) -> None:
        """Keep float32 images (B,C,H,W) of a chunk."""
        with replacing(self.path(evaluator, number)) as temporary, open(temporary, "wb") as stream:
            np.save(stream, images.detach().cpu().numpy().astype(np.float32))

    def has(self, evaluator: str, number: int) -> bool:
        return self.path(evaluator, number).exists()

    def collect(self, evaluator: str, chunks: int) -> np.ndarray:
        """All chunks of an evaluator, in order: (n,C,H,W)."""
        return np.concatenate([np.load(self.path(evaluator, number)) for number in range(chunks)])

    def clear(self) -> None:
        remove(*self.folder.glob(f"kept-{self.key}-*.npy"))


def key_of(plan: Plan, weights: str, images: str, seed: int) -> str:
    """What tells an evaluation from others: plan, hashes of weights and test images, seed."""
    return sha256_of_json([plan_sha256(plan), weights, images, seed])[:16]


def digest(array: np.ndarray) -> str:
    """Hex sha256 over type, shape and bytes of an array."""
    return hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes()
                          ).hexdigest()


def write_receipt(path: Path, *, keeper: Keeper, results: "Sequence[Result]", plan: Plan, split: Split,
                  network: nn.Module, said: Mapping[str, Any], device: str, threads: int | None = None) -> None:
    """Write the receipt of an evaluation.  said: model, weights (file, sha256, part), data, seed, for `meta`."""
    longest = max(result.n for result in results)
    arrays = {"clean": split.images[:longest].cpu().numpy(), "labels": split.labels[:longest].cpu().numpy()}
    listed = []
    for result in results:
        each = result.evaluator
        arrays[f"flags/{each.name}"] = result.flags
        if keeps_images(each.kind):
            arrays[f"adversarial/{each.name}"] = keeper.collect(each.name, -(-result.n // plan.chunk))
        listed.append({"name": each.name, "kind": each.kind, "norm": each.norm, "eps": each.eps, "n": result.n,
                       "robust": result.robust})
    meta = portable({
        "format": FORMAT, **said, "state_sha256": weights_sha256(network), "plan": plan.to_json(),
        "plan_sha256": plan_sha256(plan), "evaluators": listed, "command": relative_command(),
        "environment": environment(device, "fp32", threads),
        "arrays": {name: digest(array) for name, array in arrays.items()}})
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, meta=np.array(json.dumps(meta, sort_keys=True)), **arrays)
    keeper.clear()


def read_receipt(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """meta and the arrays; UserError where it is no receipt, Changed where an array is not the one that meta names."""
    path = Path(path)
    try:
        arrays = read_arrays(path)
    except OSError as error:
        raise UserError(f"cannot read the receipt {path}: {error.strerror or error}", code="E-READ") from error
    except ValueError as error:
        if isinstance(error.__cause__, zipfile.BadZipFile | zlib.error):
            raise Changed(f"{path} is damaged, or no receipt: {error.__cause__}") from error
        raise UserError(f"{path} is no receipt of scripts/evaluate.py --receipt: {error}", code="E-RECEIPT") from error
    try:
        meta = parse_json(str(arrays.pop("meta")))
        named = dict(meta["arrays"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no receipt of scripts/evaluate.py --receipt: {error}", code="E-RECEIPT") from error
    if meta.get("format") != FORMAT:
        raise UserError(f"{path} is a receipt of format {meta.get('format')}, this code reads {FORMAT}",
                        code="E-RECEIPT")
    if set(named) != set(arrays):
        raise Changed(f"{path} holds {', '.join(sorted(arrays))}, and names {', '.join(sorted(named))}")
    for name, array in arrays.items():
        if digest(array) != named[name]:
            raise Changed(f"{path}: {name} is not what was written (its sha256 differs)")
    if wrong := next(_wrong(meta, arrays), None):
        raise UserError(f"{path} is no receipt of scripts/evaluate.py --receipt: {wrong}", code="E-RECEIPT")
    return meta, arrays


def _wrong(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[str]:
    """What a receipt whose hashes are right says or lacks all the same, so that it cannot be judged."""
    weights, model, evaluators = meta.get("weights"), meta.get("model"), meta.get("evaluators")
    if not isinstance(model, Mapping) or not isinstance(model.get("builder", model.get("name")), str):
        yield "it names no network"
    if not isinstance(weights, Mapping) or not all(
            weights.get(key, "") is None or isinstance(weights.get(key, 0), str) for key in ("file", "part", "sha256")):
        yield "it names no weights"
    clean, labels = arrays.get("clean"), arrays.get("labels")
    if clean is None or labels is None or clean.ndim != 4 or clean.dtype != np.uint8 or labels.dtype != np.int64 \
            or labels.shape != clean.shape[:1] or not clean.size:
        yield "it holds no clean images with their labels"
        return
    if not isinstance(evaluators, list):
        yield "it names no evaluators"
        return
    for each in evaluators:
        if found := problems("result", {"settings": {}, "seconds": 0, **each} if isinstance(each, Mapping) else each):
            yield found[0]
            return
        n, eps, name = each["n"], each["eps"], each["name"]
        flags, images = arrays.get(f"flags/{name}"), arrays.get(f"adversarial/{name}")
        if flags is None or flags.ndim != 1 or flags.dtype != np.bool_ or n > len(clean):
            yield f"the flags of {name} are not there"
        if images is not None and (images.dtype != np.float32 or each["norm"] not in ("linf", "l2", "l1")
                                   or eps is None or eps < 0):
            yield f"the adversarial images of {name} have no ball"


def check_counts(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Changed where the counts are not those of the flags."""
    for each in meta["evaluators"]:
        flags = arrays[f"flags/{each['name']}"]
        if (len(flags), int(flags.sum())) != (each["n"], each["robust"]):
            raise Changed(f"{each['name']}: {each['robust']} of {each['n']} is said, the flags have {int(flags.sum())} "
                          f"of {len(flags)}")


def check_images(arrays: Mapping[str, np.ndarray], split: Split) -> None:
    """Changed where the clean images or labels are not the first of a data set's test images."""
    images, labels = (part[:len(arrays["labels"])].cpu().numpy() for part in (split.images, split.labels))
    if not np.array_equal(images, arrays["clean"]) or not np.array_equal(labels, arrays["labels"]):
        raise Changed("the clean images or labels are not the first test images of that data set")


def rejudge(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], network: nn.Module, *, batch: int = 100
            ) -> list[str]:
    """A line per evaluator, every image judged again on the CPU; Changed where a verdict or a ball is broken.

    A verdict may differ where the margin is as small as rounding: it is counted in the line.
    """
    if weights_sha256(network) != meta["state_sha256"]:
        raise Changed("the weights are not those of the receipt (their sha256 differs)")
    x, y = to_float(torch.from_numpy(arrays["clean"])), torch.from_numpy(arrays["labels"])
    lines = []
    with judged(network, torch.device("cpu")) as judge:
        clean, clean_close = verdicts(judge, x, y, batch)
        for each in meta["evaluators"]:
            name, n = each["name"], each["n"]
            flags = torch.from_numpy(arrays[f"flags/{name}"])
            images = arrays.get(f"adversarial/{name}")
            right, close = clean[:n], clean_close[:n]
            if images is not None:
                adversarial = torch.from_numpy(images)
                check_ball(name, each, x[:n], adversarial)
                found, near = verdicts(judge, adversarial, y[:n], batch)
                right, close = right & found, close | near
            elif each["kind"] != "clean":
                lines.append(f"{name}: {each['robust']} of {n} by its flags; it keeps no images to judge again")
                continue
            differ = right != flags
            if bool((differ & ~close).any()):
                first = int((differ & ~close).nonzero()[0])
                raise Changed(f"{name}: {int((differ & ~close).sum())} verdicts of {n} are others, the first that of "
                              f"image {first}")
            rounded = f"; {int(differ.sum())} verdicts at the boundary turned by rounding" if differ.any() else ""
            lines.append(f"{name}: {each['robust']} of {n}, every image judged again{rounded}")
    return lines


def check_ball(name: str, each: Mapping[str, Any], x: Tensor, adversarial: Tensor) -> None:
    """Changed where an adversarial image lies outside [0,1] or farther than eps from its clean one."""
    if adversarial.shape != x.shape or not bool(adversarial.isfinite().all()):
        raise Changed(f"{name}: the adversarial images are not finite ones of the clean images' shape")
    if float(adversarial.min()) < 0 or float(adversarial.max()) > 1:
        raise Changed(f"{name}: an adversarial image leaves [0,1]")
    size = ball(each["norm"], each["eps"]).size(adversarial - x).flatten()
    if bool((size > each["eps"] * (1 + OUTSIDE) + OUTSIDE * 0.1).any()):
        raise Changed(f"{name}: image {int(size.argmax())} lies {float(size.max()):.6f} away, farther than eps "
                      f"{each['eps']:.6f}")


@torch.no_grad()
def verdicts(network: nn.Module, x: Tensor, y: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """(B,) classified correctly, and (B,) whether that hangs on rounding."""
    right, close = [], []
    for images, labels in zip(x.split(batch), y.split(batch), strict=True):
        logits = network(images)
        top = logits.topk(2, dim=1).values
        right.append(logits.argmax(1) == labels)
        close.append(top[:, 0] - top[:, 1] <= ROUNDING * logits.abs().amax(1))
    return torch.cat(right), torch.cat(close)
