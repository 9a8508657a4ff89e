"""Receipts: the adversarial images behind a number, so that anybody can judge them again without attacking.

A receipt is one npz: `meta` (JSON: plan, network, hashes of weights, data and all arrays, settings, seed, machine),
`clean` uint8 (N,C,H,W), `labels` int64 (N,), and per evaluator `flags/NAME` bool (n,), True: still classified right,
and `adversarial/NAME` float32 (n,C,H,W): what fooled the network, else the last that was tried.  It proves which images
fall; that the others withstand a stronger attack no receipt can prove.
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
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
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the receipt {path}: {error.strerror or error}") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(str(arrays.pop("meta")))
        named = meta["arrays"]
    except zipfile.BadZipFile as error:
        raise Changed(f"{path} is damaged, or no receipt: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{path} is no receipt of scripts/evaluate.py --receipt: {error}") from error
    if meta.get("format") != FORMAT:
        raise UserError(f"{path} is a receipt of format {meta.get('format')}, this code reads {FORMAT}")
    if set(named) != set(arrays):
        raise Changed(f"{path} holds {', '.join(sorted(arrays))}, and names {', '.join(sorted(named))}")
    for name, array in arrays.items():
        if digest(array) != named[name]:
            raise Changed(f"{path}: {name} is not what was written (its sha256 differs)")
    return meta, arrays


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
