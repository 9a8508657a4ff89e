"""What a training run leaves as it goes: a resume file, one line of metrics per epoch, a progress bar.

Killed at any moment and started again, a run goes on from its last whole epoch; asked to end (common.signals), it
writes the steps of the running epoch too and goes on from there.  The line of metrics is written before the resume
file, so at worst a line stands there of an epoch that is then done again: such lines are cut off on resume.
Of several processes (common.group) rank 0 writes, and all read; they go on from the last whole epoch.
"""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import checkpoint, group
from common.alarms import Alarm, found
from common.errors import UserError
from common.memory import ran_out
from common.records import append_metrics, read_metrics, truncate_metrics
from common.signals import Stopped, held
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
        self.step = 0            # optimiser steps done in them
        self.logs: list[dict[str, Tensor]] = []       # of the running epoch's steps
        self.counts: list[float] = []         # what this rank's numbers of each step count for (`Share.weight`)
        self.seconds = 0.0       # spent in training and validation so far, over all sittings
        self.best: dict[str, float] = {}      # name of a selection -> its best score so far
        self.final: dict[str, Any] = {}
        self.crew = group.current()
        self._since = self._started = time.perf_counter()     # the last line of metrics; the running epoch
        self._training: float | None = None   # seconds of its steps, once they are done
        self._before = (0.0, 0.0)             # seconds of it, and of its steps, in earlier sittings
        self._best_before: dict[str, float] = {}      # the best scores when it began

    def restore(self) -> bool:
        """Take up the state that was written last; False if there is none."""
        path = self.weights / "resume.pt"
        if len(set(self.crew.gather(path.exists()))) > 1:
            raise UserError(f"{path} is there for some of the {self.crew.ranks} processes only: all must see the same "
                            "folders (--results, --weights)", code="E-PROCESSES")
        if not path.exists():
            self._cut(0)
            return False
        self._take_up(path)
        if missing := [name for name in self.best if not (self.weights / f"{name}.pt").exists()]:
            raise UserError(f"{self.weights / missing[0]}.pt is missing, the best weights of the {self.epoch} epochs "
                            f"that {path.name} has trained: restore it, or move {self.weights} away to train again",
                            code="E-RESUME")
        lines = len(read_metrics(self.metrics, self.epoch))
        if lines < self.epoch:
            raise UserError(f"{self.metrics} has {lines} of the {self.epoch} epochs that {path} has trained: restore "
                            f"it, or move {self.weights} away to train again", code="E-RESUME")
        self.crew.barrier()
        self._cut(self.epoch)
        return True

    def _take_up(self, path: Path) -> None:
        """Read the resume file into the parts; UserErrors: damaged, of another configuration."""
        try:
            state = checkpoint.load_tree(path, self.device)
            if state.get("identity") == self.identity:
                for name, part in self.parts.items():
                    # It may be older than a part that begins without a state, such as the check of the attacks.
                    if name in state["parts"] or part.state_dict():
                        part.load_state_dict(state["parts"][name])
                self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
                self.best, self.final = dict(state["best"]), state["final"]
                self._best_before = dict(self.best)
                if (running := state.get("running")) is not None:
                    self.logs = unpacked(running["logs"], len(running["counts"]))
                    self.counts, self._before = list(running["counts"]), (running["seconds"], running["training"])
                return
        # All but the first: a tree of tensors that is no resume file, or not of this network.
        except (UserError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if ran_out(error) or getattr(error, "code", None) == "E-MEMORY":
                raise
            raise UserError(f"{path} is damaged or no resume file of this run ({_brief(error)}): restore it, or remove "
                            "it to train this run again from its first epoch", code="E-RESUME") from error
        raise UserError(f"{path} belongs to another configuration: give this run another name (--run), "
                        "or move the old folder away", code="E-RESUME")

    def _cut(self, lines: int) -> None:
        if self.crew.leads:
            truncate_metrics(self.metrics, lines)

    def keep(self, name: str, network: nn.Module) -> None:
        """Write a network's weights as NAME.pt."""
        if self.crew.leads:
            checkpoint.save_state(self.weights / f"{name}.pt", network.state_dict())

    def begin_epoch(self) -> None:
        """From now on the running epoch's time counts, also where it goes on after steps of an earlier sitting."""
        self._started, self._training, self._best_before = time.perf_counter(), None, dict(self.best)

    def log(self, row: dict[str, Tensor], count: float) -> None:
        """A step is done: what it logged, and what this rank's numbers count for (`Share.weight`)."""
        self.logs.append(row)
        self.counts.append(count)

    @held()
    def close_epoch(self, means: dict[str, float], *, images: int, lr: float, validation: dict[str, float]) -> None:
        """Write an epoch's line of metrics and the resume file."""
        self.check(validation, self.epoch + 1)
        now = time.perf_counter()
        seconds, self._since = now - self._since + self._before[0], now
        training, self._before = self._of_steps(), (0.0, 0.0)
        self.seconds += seconds
        self.epoch += 1
        self.step += len(self.logs)
        self.logs, self.counts = [], []
        self.final = {"epoch": self.epoch, "step": self.step, "lr": lr, **means, "seconds": round(seconds, 3),
                      "images_per_second": round(images / max(training, 1e-9), 1), **validation}
        if not self.crew.leads:
            return
        append_metrics(self.metrics, self.final)
        self._save(self.best)

    def _of_steps(self) -> float:
        """Seconds that the running epoch's steps took, without validation."""
        here = time.perf_counter() - self._started if self._training is None else self._training
        return here + self._before[1]

    def _save(self, best: dict[str, float], **more: Any) -> None:
        checkpoint.save_tree(self.weights / "resume.pt", {
            "identity": self.identity, "epoch": self.epoch, "step": self.step, "seconds": self.seconds,
            "best": best, "final": self.final,
            "parts": {name: part.state_dict() for name, part in self.parts.items()}, **more})

    @contextmanager
    def kept_if_stopped(self) -> Iterator[None]:
        """Where a signal ends the block, what is done of the running epoch is written first."""
        try:
            yield
        except Stopped as stopped:
            stopped.kept = self.pause()
            raise

    def pause(self) -> str:
        """Write the state between two steps; what is kept, in words.  Of several processes none waits for another."""
        done = f"epoch {self.epoch} is done and kept in {self.weights}" if self.epoch else "no epoch is done yet"
        if not self.logs or self.crew.ranks > 1:
            return done
        self.means()         # a state that is not finite must not take the place of the last whole epoch's
        # A validation that was cut short may have kept a better network: it will do so again.
        self._save(self._best_before, running={
            "logs": packed(self.logs), "counts": self.counts, "training": self._of_steps(),
            "seconds": time.perf_counter() - self._since + self._before[0]})
        return f"epoch {self.epoch + 1} is done up to step {len(self.logs)} and kept in {self.weights}"

    def say(self, epochs: int) -> None:
        """One line on the epoch just closed, with the time left, and one for each alarm that it raises."""
        left = self.seconds / self.epoch * (epochs - self.epoch)
        shown = {"loss": "loss {:.3f}", "test_clean_accuracy": "clean {:.1%}", "test_pgd_accuracy": "PGD {:.1%}",
                 "images_per_second": "{:.0f} img/s"}
        numbers = ", ".join(form.format(self.final[key]) for key, form in shown.items() if key in self.final)
        tqdm.write(f"epoch {self.epoch}/{epochs}: {numbers}, {left / 60:.1f} min left")
        for alarm in self.alarms():
            if alarm.epoch == self.epoch:
                tqdm.write(f"warning: {alarm.text}", file=sys.stderr)

    def alarms(self) -> list[Alarm]:
        """What the epochs so far are to be warned of; rank 0 knows."""
        return found(read_metrics(self.metrics), self.best) if self.crew.leads else []

    def means(self) -> dict[str, float]:
        """Means over the epoch's steps that logged a name: one fetch from the device for each, one for the weights.

        Raises UserError at the first number or weight that is not finite; the files of the epoch before are kept.
        """
        means, logs = {}, self.logs
        for name in dict.fromkeys(name for row in logs for name in row):
            steps = [step for step, row in enumerate(logs) if name in row]
            values = self._of_all(torch.stack([logs[step][name].float() for step in steps]),
                                  [self.counts[step] for step in steps]).tolist()
            broken = next((step for step, value in zip(steps, values, strict=True) if not math.isfinite(value)), None)
            if broken is not None:
                raise UserError(
                    f"{name} is {values[steps.index(broken)]} in epoch {self.epoch + 1}, step {broken + 1} of "
                    f"{len(logs)} (step {self.step + broken + 1} of the run): training stops. The state after epoch "
                    f"{self.epoch} is kept in {self.weights}. Try a lower learning rate, or --precision fp32",
                    code="E-NOT-FINITE")
            means[name] = math.fsum(values) / len(values)
        # The last step's loss was found before it moved the weights.
        tensors = [(name, tensor) for part in self.parts.values() if isinstance(part, nn.Module)
                   for name, tensor in part.state_dict().items() if tensor.is_floating_point()]
        whole = torch.stack([tensor.isfinite().all() for _, tensor in tensors]).tolist() if tensors else []
        if not all(whole):
            self._refuse(f"the weight {tensors[whole.index(False)][0]} is not finite", self.epoch + 1)
        self._training = time.perf_counter() - self._started
        return means

    def _of_all(self, values: Tensor, counts: list[float]) -> Tensor:
        """The means over the ranks of a number per step (steps,)."""
        if self.crew.ranks == 1:
            return values
        return self.crew.total(values * values.new_tensor(counts)) / self.crew.ranks

    def check(self, validation: dict[str, float], epoch: int) -> dict[str, float]:
        """What a validation after `epoch` epochs returned, if all of it is finite; else a UserError."""
        for name, value in validation.items():
            if not math.isfinite(value):
                self._refuse(f"{name} is {value}", epoch)
        return validation

    def _refuse(self, what: str, epoch: int) -> NoReturn:
        raise UserError(f"{what} after epoch {epoch}: training stops. The state after epoch {self.epoch} is kept in "
                        f"{self.weights}. Try a lower learning rate, or --precision fp32", code="E-NOT-FINITE")


def _brief(error: Exception) -> str:
    """An error's first words."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


def packed(logs: list[dict[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """The logs of an epoch's steps, a tensor for each name, for the resume file."""
    names = dict.fromkeys(name for row in logs for name in row)
    return {name: {"steps": [step for step, row in enumerate(logs) if name in row],
                   "values": torch.stack([row[name].float() for row in logs if name in row])} for name in names}


def unpacked(names: dict[str, dict[str, Any]], steps: int) -> list[dict[str, Tensor]]:
    """The logs of so many steps, from what `packed` made of them."""
    logs: list[dict[str, Tensor]] = [{} for _ in range(steps)]
    for name, logged in names.items():
        for step, value in zip(logged["steps"], logged["values"], strict=True):
            logs[step][name] = value
    return logs


def progress(batches: Iterable[Batch], *, images: int, label: str, share: float = 0.0) -> Iterator[Batch]:
    """Go through the batches of an epoch with a bar that shows images per second and the time left.

    share: of the epoch, done before.
    """
    with tqdm(total=images, desc=label, unit="img", unit_scale=True, leave=False, mininterval=0.5, dynamic_ncols=True,
              initial=int(share * images), disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.y) if batch.share is None else batch.share.size)
