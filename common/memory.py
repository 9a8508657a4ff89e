"""Out of memory: one line that says which batch was tried and which one would fit, in place of a traceback.

What fits is tried, not computed: everything of the failed step is freed, then one whole step (attack, forward and
backward pass, optimiser) is made with half the images, a quarter, and so on, until one fits or the time is up.
"""

import functools
import gc
import re
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import ema, group
from common.errors import UserError
from common.records import read_metrics
from common.types import Batch, StepContext

SECONDS = 60.0                 # no further size is tried after that
ALLOCATORS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "out of memory")
VALIDATING = "in the validation between epochs"


def ran_out(error: BaseException) -> bool:
    """Whether an error means that there is not enough memory, of the host or of a device."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ALLOCATORS))


def wanted(error: BaseException) -> str:
    """" (20.00 MiB more were asked for)", where the error says so."""
    found = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return f" ({found[1]} more were asked for)" if found else ""


def in_words(error: BaseException) -> UserError | None:
    """The UserError for an error that means too little memory, met outside of the steps that are explained below; None
    for any other."""
    if not ran_out(error):
        return None
    return UserError(f"out of memory{wanted(error)}: free memory that other programs hold, or take a smaller network, "
                     "fewer images or a smaller batch size; what is done is kept", code="E-MEMORY")


def released(error: BaseException | None) -> None:
    """Free what the frames of a failed call still hold: the graph of its loss, above all."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def tidy() -> None:
    """Give freed memory back."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def largest(attempt: Callable[[int], Any], tried: int) -> int | None:
    """The first of tried/2, tried/4, ... 1 images with which `attempt` does not run out of memory; None if it always
    does, if it cannot be made with so few, or if SECONDS are over."""
    started, size = time.monotonic(), tried // 2
    while size and time.monotonic() - started < SECONDS:
        tidy()
        try:
            attempt(size)
        except Exception as error:      # a loss may refuse a batch of 1: then nothing is known
            if not ran_out(error):
                return None
            released(error)
        else:
            return size
        finally:
            tidy()
        size //= 2
    return None


def in_training(*learners: tuple[str, str], model: str = "model", copies: int = 0) -> Callable[[Callable], Callable]:
    """A decorator for a training loop (called by keywords): out of memory becomes a UserError, E-MEMORY.

    learners: the keywords of each objective and of its optimiser; model: that of the network; copies: how many more
    networks of its size the loop holds, beside an average.
    """
    def decorate(loop: Callable) -> Callable:
        @functools.wraps(loop)
        def explained(**given: Any) -> Any:
            if given.get("validate") is not None:
                given["validate"] = _Noted(given["validate"])
            try:
                return loop(**given)
            except Exception as error:
                if not ran_out(error):
                    raise
                what, validating = wanted(error), VALIDATING in getattr(error, "__notes__", ())
                released(error)
            raise _refusal(given, learners, model, copies, what, validating)
        return explained
    return decorate


class _Noted:
    """A validation whose errors carry a note that they are its own; all else, as its state, is the validation's."""

    def __init__(self, validate: Callable):
        self._validate = validate

    def __call__(self, *args: Any) -> Any:
        try:
            return self._validate(*args)
        except Exception as error:
            error.add_note(VALIDATING)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._validate, name)


def _refusal(given: Mapping[str, Any], learners: tuple[tuple[str, str], ...], model: str, copies: int, what: str,
             validating: bool) -> UserError:
    engine, batches, network = given["engine"], given["batches"], given[model]
    where = f"on {engine.device.type}{what}"
    kept = f"the last saved state is kept in {given['weights']}"
    if validating:
        return UserError(f"out of memory {VALIDATING}, {where}: let it take fewer images at a time (the flag of its "
                         f"batch, where there is one) or free memory, and type the same command again: {kept}",
                         "E-MEMORY")
    epoch = len(read_metrics(Path(given["out"]) / "metrics.jsonl"))
    engine.forget()
    network.zero_grad(set_to_none=True)
    batch = next(iter(batches.epoch(epoch)))
    share = batch.share
    total, mine = len(batch.y) if share is None else share.size, len(batch.y)

    def attempt(size: int) -> None:
        others = [ema.averaged_copy(network) for _ in range(copies + bool(given.get("average")))]
        context = StepContext(generator=torch.Generator(engine.device).manual_seed(0), epoch=epoch,
                              steps_per_epoch=len(batches), progress=float(epoch), attacking=engine.attacking,
                              average=others[0] if given.get("average") else None)
        try:
            with group.alone():
                for objective, optim in learners:
                    _step(network, given[objective], given[optim], cut(batch, size), context, engine)
        finally:
            network.zero_grad(set_to_none=True)
            engine.forget()

    size = largest(attempt, mine)
    flag, said = getattr(batches, "flag", "--batch_size"), f"out of memory in a training step with {total} images"
    if size is None:
        return UserError(f"{said}, {where}, and none of fewer images was found to fit: free memory that other programs "
                         f"hold, or take a smaller network; {kept}", "E-MEMORY")
    fits = size if share is None else size * group.current().ranks
    return UserError(f"{said}, {where}. A step with {fits} images fits here: give {flag} {fits} and another name with "
                     f"--run, for that is another training (more steps an epoch: lower the learning rate, too); or "
                     f"free memory and type the same command again: {kept}", "E-MEMORY")


def _step(network: torch.nn.Module, objective: Any, optim: Any, batch: Batch, context: StepContext, engine: Any
          ) -> None:
    """A whole step that moves no weight."""
    optimiser = optim.build(network)
    for settings in optimiser.param_groups:
        settings["lr"] = 0.0
    network.train()
    loss, _ = objective(engine.runner(network), batch, context)
    loss.backward()
    optimiser.step()
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)


def cut(batch: Batch, size: int) -> Batch:
    """The first `size` images of a batch, of each of its views; a second stream of another length stays whole."""
    views = len(batch.x) // len(batch.y)
    x = batch.x.unflatten(0, (views, len(batch.y)))[:, :size].flatten(0, 1)
    along = isinstance(batch.extra, Tensor) and len(batch.extra) == len(batch.y)
    return Batch(x, batch.y[:size], batch.extra[:size] if along else batch.extra)


def in_evaluation(attempt: Callable[..., None]) -> Callable[[Callable], Callable]:
    """A decorator for `evaluate(model, split, plan, *, device, batch_size, ...)`: the same for evaluations.

    attempt: (model, split, device, images at a time) makes a pass as the attacks do.
    """
    def decorate(evaluate: Callable) -> Callable:
        @functools.wraps(evaluate)
        def explained(model: Any, split: Any, plan: Any, **given: Any) -> Any:
            try:
                return evaluate(model, split, plan, **given)
            except Exception as error:
                if not ran_out(error):
                    raise
                what = wanted(error)
                released(error)
            device = torch.device(given["device"])
            tried = min(given.get("batch_size") or plan.chunk, plan.chunk, len(split))
            with group.alone():
                size = largest(lambda size: attempt(model, split, device, size), tried)
            raise _too_large(plan, tried, size, f"on {device.type}{what}")
        return explained
    return decorate


def _too_large(plan: Any, tried: int, size: int | None, where: str) -> UserError:
    said = f"out of memory while evaluating by plan {plan.name}, {tried} images at a time, {where}"
    whole = any(one.kind.endswith("autoattack") for one in plan.evaluators)
    chunks = (f"; AutoAttack takes the plan's whole chunks of {plan.chunk} images, whatever that says: for it free "
              "memory, or name a plan or a flag of smaller chunks, which is another measurement" if whole else "")
    if size is None:
        return UserError(f"{said}, and no pass of fewer images was found to fit: free memory that other programs hold; "
                         "the chunks that are done are kept", "E-MEMORY")
    return UserError(f"{said}. A pass with {size} images and its gradient fits here: evaluate with --batch_size {size} "
                     f"(scripts/evaluate.py; it changes no verdict){chunks}. The chunks that are done are kept",
                     "E-MEMORY")
