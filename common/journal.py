"""What a training run leaves as it goes: a resume file, one line of metrics per epoch, a progress bar.

Killed at any moment and started again, a run goes on from its last whole epoch.  The line of metrics is written before
the resume file, so at worst a line stands there of an epoch that is then done again: such lines are cut off on resume.
Of several processes (common.group) rank 0 writes, and all read.
"""

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import checkpoint, group
from common.errors import UserError
from common.records import append_metrics, read_metrics, truncate_metrics
from common.types import Batch


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Journal:
    """The records of one run.  `parts`: whatever has a state and goes into the resume file, by name.

    out      folder of metrics.jsonl
    weights  folder of resume.pt, last.pt, best.pt
    identity hash of the configuration; a resume file of another one is refused with a UserError
    """

    def __init__(self, *, out: Path, weights: Path, identity: str, parts: dict[str, Stateful], device: torch.device):
        self.metrics = Path(out) / "metrics.jsonl"
        self.weights = Path(weights)
        self.identity = identity
        self.parts = parts
        self.device = device
        self.epoch = 0           # whole epochs done
        self.step = 0            # optimiser steps done
        self.seconds = 0.0       # spent in training and validation so far, over all sittings
        self.best: dict[str, float] = {}      # name of a selection -> its best score so far
        self.final: dict[str, Any] = {}
        self.crew = group.current()
        self._since = time.perf_counter()

    def restore(self) -> bool:
        """Take up the state of the last whole epoch; False if there is none."""
        path = self.weights / "resume.pt"
        if len(set(self.crew.gather(path.exists()))) > 1:
            raise UserError(f"{path} is there for some of the {self.crew.ranks} processes only: all must see the same "
                            "folders (--results, --weights)")
        if not path.exists():
            self._cut(0)
            return False
        state = checkpoint.load_tree(path, self.device)
        if not isinstance(state, dict) or state.get("identity") != self.identity:
            raise UserError(f"{path} belongs to another configuration: give this run another name (--run), "
                            "or move the old folder away")
        for name, part in self.parts.items():
            # A resume file may be older than the check of the attacks, which begins without a state.
            if name in state["parts"] or part.state_dict():
                part.load_state_dict(state["parts"][name])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.best, self.final = dict(state["best"]), state["final"]
        lines = len(read_metrics(self.metrics))
        if lines < self.epoch:
            raise UserError(f"{self.metrics} has {lines} of the {self.epoch} epochs that {path} has trained: restore "
                            f"it, or move {self.weights} away to train again")
        self.crew.barrier()
        self._cut(self.epoch)
        return True

    def _cut(self, lines: int) -> None:
        if self.crew.leads:
            truncate_metrics(self.metrics, lines)

    def keep(self, name: str, network: nn.Module) -> None:
        """Write a network's weights as NAME.pt."""
        if self.crew.leads:
            checkpoint.save_state(self.weights / f"{name}.pt", network.state_dict())

    def close_epoch(self, means: dict[str, float], *, steps: int, images: int, train_seconds: float, lr: float,
                    validation: dict[str, float]) -> None:
        """Write an epoch's line of metrics and the resume file.  train_seconds: without validation."""
        self.check(validation, self.epoch + 1)
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.seconds += seconds
        self.epoch += 1
        self.step += steps
        self.final = {"epoch": self.epoch, "step": self.step, "lr": lr, **means, "seconds": round(seconds, 3),
                      "images_per_second": round(images / max(train_seconds, 1e-9), 1), **validation}
        if not self.crew.leads:
            return
        append_metrics(self.metrics, self.final)
        checkpoint.save_tree(self.weights / "resume.pt", {
            "identity": self.identity, "epoch": self.epoch, "step": self.step, "seconds": self.seconds,
            "best": self.best, "final": self.final,
            "parts": {name: part.state_dict() for name, part in self.parts.items()}})

    def say(self, epochs: int) -> None:
        """One line on the epoch just closed, with the time left."""
        left = self.seconds / self.epoch * (epochs - self.epoch)
        shown = {"loss": "loss {:.3f}", "test_clean_accuracy": "clean {:.1%}", "test_pgd_accuracy": "PGD {:.1%}",
                 "images_per_second": "{:.0f} img/s"}
        numbers = ", ".join(form.format(self.final[key]) for key, form in shown.items() if key in self.final)
        tqdm.write(f"epoch {self.epoch}/{epochs}: {numbers}, {left / 60:.1f} min left")

    def means(self, logs: list[dict[str, Tensor]], counts: list[float] | None = None) -> dict[str, float]:
        """Means over the steps of an epoch that logged a name: one fetch from the device for each, one for the weights.

        counts: what this rank's numbers of each step count for (`Share.weight`); None: 1.

        Raises UserError at the first number or weight that is not finite; the files of the epoch before are kept.
        """
        means = {}
        for name in dict.fromkeys(name for row in logs for name in row):
            steps = [step for step, row in enumerate(logs) if name in row]
            values = self._of_all(torch.stack([logs[step][name].float() for step in steps]),
                                  [counts[step] for step in steps] if counts else None).tolist()
            broken = next((step for step, value in zip(steps, values, strict=True) if not math.isfinite(value)), None)
            if broken is not None:
                raise UserError(
                    f"{name} is {values[steps.index(broken)]} in epoch {self.epoch + 1}, step {broken + 1} of "
                    f"{len(logs)} (step {self.step + broken + 1} of the run): training stops. The state after epoch "
                    f"{self.epoch} is kept in {self.weights}. Try a lower learning rate, or --precision fp32")
            means[name] = math.fsum(values) / len(values)
        # The last step's loss was found before it moved the weights.
        tensors = [(name, tensor) for part in self.parts.values() if isinstance(part, nn.Module)
                   for name, tensor in part.state_dict().items() if tensor.is_floating_point()]
        whole = torch.stack([tensor.isfinite().all() for _, tensor in tensors]).tolist() if tensors else []
        if not all(whole):
            self._refuse(f"the weight {tensors[whole.index(False)][0]} is not finite", self.epoch + 1)
        return means

    def _of_all(self, values: Tensor, counts: list[float] | None) -> Tensor:
        """The means over the ranks of a number per step (steps,)."""
        if self.crew.ranks == 1:
            return values
        if counts is not None:
            values = values * values.new_tensor(counts)
        return self.crew.total(values) / self.crew.ranks

    def check(self, validation: dict[str, float], epoch: int) -> dict[str, float]:
        """What a validation after `epoch` epochs returned, if all of it is finite; else a UserError."""
        for name, value in validation.items():
            if not math.isfinite(value):
                self._refuse(f"{name} is {value}", epoch)
        return validation

    def _refuse(self, what: str, epoch: int) -> NoReturn:
        raise UserError(f"{what} after epoch {epoch}: training stops. The state after epoch {self.epoch} is kept in "
                        f"{self.weights}. Try a lower learning rate, or --precision fp32")


def progress(batches: Iterable[Batch], *, images: int, label: str) -> Iterator[Batch]:
    """Go through the batches of an epoch with a bar that shows images per second and the time left."""
    with tqdm(total=images, desc=label, unit="img", unit_scale=True, leave=False, mininterval=0.5, dynamic_ncols=True,
              disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.y) if batch.share is None else batch.share.size)
