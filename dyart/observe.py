"""What training does to the decision boundary, epoch by epoch: margins, and the speeds of the step to come.

dynamics.npz in the run's folder, a row for each moment (E moments, N images):
    epoch (E,)       epochs done; 0: before the first step
    radius (E,N)     the margin R in [0,1] units; 0 where phi <= 0 (see `Margins`), NaN where no point was found
    speed (E,N)      s(x), what the next optimiser step adds to R; NaN where no boundary point is kept
    speed_METHOD     the same for a step of another method from the same weights, on the same batch, at the same rate:
                     AT beside DyART, DyART beside a baseline; it has no momentum, as that would be its own run's
    lr (E,)          learning rate of both steps
    positions (N,)   places of the images in the training split
    about            JSON: method, norm, temperature, iterations, what is measured
The network is the one that is trained, not its average; the step is the run's own, on the batch that comes next.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.data import Split
from common.engine import Engine
from common.files import replacing
from common.fit import SGD, BatchSource
from common.seeds import fold
from common.types import Batch, Hyper, Objective, Schedule, StepContext
from dyart.dynamics import Direction, margins, step_direction
from dyart.method import DyART


class Observer:
    """`fit` calls it with (model, optimiser, epochs done).  images: those that are measured, as they are.

    objective: the run's own; rival: (name, objective) of the method that is put beside it.
    """

    def __init__(self, path: Path, images: Split, *, batches: BatchSource, objective: Objective,
                 rival: tuple[str, Objective], ruler: DyART, optim: SGD, schedule: Schedule, epochs: int, seed: int,
                 device: torch.device, method: str):
        self.path, self.images, self.batches = Path(path), images, batches
        self.objective, self.ruler, self.optim, self.schedule = objective, ruler, optim, schedule
        self.rival, self.other = f"speed_{rival[0]}", rival[1]
        self.epochs, self.seed = epochs, seed
        # Plain: an engine with fast attacks keeps every network that it attacks, and each step here is on a copy.
        self.engine = Engine(device)
        self.about = json.dumps({"method": method, "norm": ruler.search.norm, "temperature": ruler.temperature,
                                 "iterations": ruler.search.steps, "step": "the run's own, on the next batch, float32"})

    def __call__(self, model: nn.Module, optimiser: torch.optim.Optimizer, done: int) -> None:
        """Measure and write; rows of later moments, from a run that was killed, go."""
        last = min(done, self.epochs - 1)                # after the last epoch: the step that would come, at its rate
        hyper = self.schedule(last)
        batch = next(iter(self.batches.epoch(last)))
        own = self.direction(model, self.objective, batch, done, last, hyper, optimiser.state_dict())
        rival = self.direction(model, self.other, batch, done, last, hyper, None)
        found = margins(model, self.images, self.ruler, seed=self.seed, directions={"speed": own, self.rival: rival})
        row = {"epoch": np.array([done]), "lr": np.array([hyper.lr], np.float32),
               "radius": found.radius.float().numpy()[None],
               **{name: speed.float().numpy()[None] for name, speed in found.speeds.items()}}
        if done and self.path.exists():
            with np.load(self.path, allow_pickle=False) as before:
                kept = before["epoch"] < done
                row = {name: np.concatenate([before[name][kept], values]) for name, values in row.items()}
        with replacing(self.path) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(stream, **row, positions=np.arange(len(self.images)), about=np.array(self.about))

    def direction(self, model: nn.Module, objective: Objective, batch: Batch, done: int, last: int, hyper: Hyper,
                  state: dict[str, Any] | None) -> Direction:
        """theta' of one step, drawn alike for every objective."""
        seed = fold(self.seed, "observe", done)
        generator = torch.Generator(self.engine.device).manual_seed(seed)
        torch.manual_seed(fold(seed, "global"))                    # dropout; the next step of the run seeds it anew
        ctx = StepContext(generator=generator, epoch=last, progress=float(last), lr=hyper.lr,
                          steps_per_epoch=len(self.batches), attacking=self.engine.attacking)
        return step_direction(model, objective, batch, ctx, engine=self.engine, optim=self.optim, hyper=hyper,
                              state=state if state and state["state"] else None)
