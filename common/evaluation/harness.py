"""The harness: it hands images to attacks and trusts nothing that comes back.

Every adversarial image is projected into ball and box again and classified again, in float32, TF32 off, eval mode,
parameters frozen.  An image is robust under an evaluator if it is classified correctly clean and after every stage.

Several processes (common.group) share out the chunks; what is drawn depends on the chunk alone, so flags are the same.
"""

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import determinism, group, memory
from common.attacks.balls import ball
from common.data.batches import augment
from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import changing
from common.evaluation.bar import Bar
from common.evaluation.judging import Network, allowed, correct, gradient_pass, judged, seeded, weights_sha256
from common.evaluation.kinds import CHANGED_KINDS, TRANSFERRED
from common.evaluation.ledger import Chunk, Ledger, ledger_path, ledger_paths
from common.evaluation.measuring import Measuring, values_of
from common.evaluation.plans import KINDS, Evaluator, Plan, plan_sha256
from common.evaluation.preflight import Stored, check_source, fits, preflight
from common.evaluation.receipts import Keeper, keeps_images
from common.evaluation.runners import Runner, runner_for
from common.evaluation.transferred import Source
from common.files import remove
from common.seeds import fold

if TYPE_CHECKING:
    from common.data.corruption_files import CorruptionFiles


@dataclass(frozen=True)
class Result:
    """What an evaluator found on the first n test images.

    flags (n,) numpy bool in test-set order: correct clean and under the attack; robust: their number.
    survivors: images left, clean and after each stage of an attack that has several.  seconds: of all chunks.
    arrays: name -> (n,) float32, of evaluators that measure more than flags; values: what a record says of them.
    """

    evaluator: Evaluator
    flags: np.ndarray
    survivors: dict[str, int]
    seconds: float
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The evaluator's name."""
        return self.evaluator.name

    @property
    def robust(self) -> int:
        """How many images stood."""
        return int(self.flags.sum())

    @property
    def n(self) -> int:
        """How many images were tried."""
        return len(self.flags)

    @property
    def caution(self) -> str:
        """A line where Square, which sees no gradients, got beyond the attacks before it by 0.2%, else empty.

        The official code's sign of masked gradients: the robust accuracy may be too high.
        """
        stages = list(self.survivors)
        if "square" not in stages[1:]:
            return ""
        beyond = self.survivors[stages[stages.index("square") - 1]] - self.survivors["square"]
        if beyond <= 0.002 * self.n:
            return ""
        return (f"{self.name}: Square broke {beyond} images of {self.n} that withstood the gradient attacks: "
                "gradients may be masked, the true robust accuracy lower")


def result_json(result: Result) -> dict[str, Any]:
    """A result as records keep it: counts and every setting; the flags are kept beside it."""
    evaluator = result.evaluator
    numbers = {name: getattr(evaluator, name) for name in KINDS[evaluator.kind].uses if name != "eps"}
    return {"name": evaluator.name, "kind": evaluator.kind, "norm": evaluator.norm, "eps": evaluator.eps,
            "settings": numbers | dict(evaluator.settings), "robust": result.robust, "n": result.n,
            "survivors": result.survivors, "seconds": round(result.seconds, 3),
            **({"values": dict(result.values)} if result.values else {})}


@memory.in_evaluation(gradient_pass)
def evaluate(model: nn.Module, split: Split, plan: Plan, *, seed: int, device: torch.device | str, work: Path,
             batch_size: int | None = None, progress: bool = True,
             corrupted: "CorruptionFiles | None" = None, sources: Mapping[str, nn.Module] | None = None,
             allow: Collection[str] = (), stored: Stored | None = None, keeper: Keeper | None = None
             ) -> list[Result]:
    """Run a plan's evaluators on the first images of `split`; one Result each, in the plan's order.

    model: (B,C,H,W) float32 in [0,1] -> logits (B,K); it is moved to `device` and otherwise left as it was.
    Random numbers are folded from (seed, evaluator's name, chunk): `batch_size` (None: a whole chunk) only splits the
    passes of FGSM, PGD and CW.  After each chunk its flags are written to a file in the folder `work`; the same call
    goes on from there.  Call `forget` once the results are kept.  Every process gets all results.
    corrupted: the files that a plan of kind corruption-file was made from.
    sources: sha256 of weights -> the network whose gradients evaluators of kind transferred-fgsm with that setting
    take; like the model they are moved to `device` and otherwise left as they were.
    allow: codes (common.evaluation.codes) of what would be refused and is accepted here; stored: what is known of the
    clean accuracy.  keeper: keeps the adversarial images, for a receipt.
    """
    device, crew = torch.device(device), group.current()
    batch_size = min(batch_size or plan.chunk, plan.chunk)
    counts = {evaluator.name: image_count(evaluator, split) for evaluator in plan.evaluators}
    model.to(device)
    changing.check(plan, split, corrupted, sources or {})
    if keeper is not None and (plan.test_crop or plan.half_inputs):
        raise UserError(f"plan {plan.name} changes the test images before it attacks them: no receipt can be given",
                        code="E-FLAG-PAIR")
    with ExitStack() as stack:
        network = stack.enter_context(judged(model, device))
        classes = preflight(network, split, plan, device, allow=allow, stored=stored, progress=progress)
        needed = {one.setting("source") for one in plan.evaluators if one.kind == TRANSFERRED}
        helpers = {name: Source(stack.enter_context(judged(sources[name].to(device), device)))
                   for name in sorted(needed)}
        for helper in helpers.values():
            check_source(helper.network, split, classes, device)
        key = {"plan": plan_sha256(plan), "weights": weights_sha256(model), "images": split.fingerprint, "seed": seed,
               "torch": torch.__version__, "device": device.type, "format": 1,
               **({"deterministic": True} if determinism.is_on() else {})}
        ledger = Ledger(ledger_path(work, plan, crew.rank), key,
                        {name: chunk_sizes(n, plan.chunk) for name, n in counts.items()}, ledger_paths(work, plan))
        share_ledger(ledger)
        turn = 0
        if ledger.discarded and progress:
            tqdm.write(ledger.discarded, file=sys.stderr)
        for evaluator in plan.evaluators:
            runner = runner_for(evaluator, network, classes=classes, device=device, batch_size=batch_size)
            change = changing.change_of(evaluator, split, corrupted, helpers, device, batch_size)
            run_chunks(network, runner, split, plan, evaluator, ledger, counts[evaluator.name], seed=seed,
                       device=device, batch_size=batch_size, progress=progress, change=change, turn=turn,
                       keeper=keeper if keeps_images(evaluator.kind) else None)
            turn += -(-counts[evaluator.name] // plan.chunk)
        share_ledger(ledger)
    results = [collect(evaluator, ledger.chunks[evaluator.name]) for evaluator in plan.evaluators]
    for result in results:
        if progress and result.caution:
            tqdm.write(result.caution, file=sys.stderr)
    return results


def forget(work: Path, plan: Plan) -> None:
    """Remove the progress of a plan, once its results are kept elsewhere."""
    remove(*ledger_paths(work, plan))


def share_ledger(ledger: Ledger) -> None:
    """Let every process know the chunks of all."""
    for chunks in group.current().gather(ledger.chunks):
        ledger.merge(chunks)


def run_chunks(network: Network, runner: Runner | Measuring, split: Split, plan: Plan, evaluator: Evaluator,
               ledger: Ledger, count: int, *, seed: int, device: torch.device, batch_size: int, progress: bool,
               change: "changing.Change | None" = None, turn: int = 0, keeper: Keeper | None = None) -> None:
    """Run one evaluator on the chunks that the ledger lacks; of several processes each takes its own.

    turn: differs between evaluators, so that the processes that have a chunk more are not always the same.
    keeper: chunks whose images it lacks are run again.
    """
    crew, done = group.current(), ledger.chunks[evaluator.name]
    seen, standing = sum(len(chunk.flags) for chunk in done), sum(int(chunk.flags.sum()) for chunk in done)
    known = {chunk.number for chunk in done if keeper is None or keeper.has(evaluator.name, chunk.number)}
    missing = [number for number in range(-(-count // plan.chunk)) if number not in known]
    missing = missing[(crew.rank - turn) % crew.ranks::crew.ranks]
    total = seen + sum(min(plan.chunk, count - number * plan.chunk) for number in missing)
    shares = getattr(runner, "shares", {})
    with Bar(evaluator.name, total, seen, shown=progress) as bar:
        for number in missing:
            begin, started = number * plan.chunk, time.monotonic()
            where = slice(begin, min(begin + plan.chunk, count))
            x, y = chunk_images(split, where, plan.test_crop, fold(seed, "crop", evaluator.name, number), device)
            kept = None if keeper is None else x.clone()
            chunk_seed, survivors, arrays = fold(seed, "evaluate", evaluator.name, number), {}, {}
            if change is not None:
                x = change(x, y, where, chunk_seed)
            if plan.half_inputs:
                x = x.half().float()
            with seeded(chunk_seed):         # for a network that draws numbers itself
                for stage, flags in verdicts(network, runner, evaluator, x, y, chunk_seed, batch_size, arrays, kept):
                    survivors[stage] = int(flags.sum())
                    # Within a chunk too, so that the bar knows the time left of one that takes an hour.
                    behind = sum(shares.get(name, 0) for name in survivors)
                    # What stands now can still fall: an upper bound on the accuracy of the images seen so far.
                    most = (standing + survivors[stage]) / (seen + len(y))
                    bar.to(seen + int(behind * len(y) + 1e-9), f"{stage}: at most {most:.1%} robust")
            standing, seen = standing + survivors[stage], seen + len(y)
            if keeper is not None:
                keeper.save(evaluator.name, number, kept)
            numbers = {name: array.cpu().numpy() for name, array in arrays.items()}
            ledger.append(evaluator.name, Chunk(flags.cpu().numpy(), survivors, time.monotonic() - started, numbers,
                                                number))
            bar.to(seen)


def verdicts(network: Network, runner: Runner | Measuring, evaluator: Evaluator, x: Tensor, y: Tensor, seed: int,
             batch_size: int, arrays: dict[str, Tensor], kept: Tensor | None = None
             ) -> Iterator[tuple[str, Tensor]]:
    """(stage, flags (B,) bool) after the clean pass and after each stage; an image that fell is not attacked again.

    What a measuring runner finds besides goes into `arrays`; the adversarial images into `kept` (B,C,H,W): those that
    fooled the network, else the last ones tried.
    """
    threat, flags = ball(evaluator.norm, evaluator.eps), correct(network, x, y, batch_size)
    yield "clean", flags
    if hasattr(runner, "measure"):
        flags, found = runner.measure(x, y, flags, seed)
        arrays.update(found)
        yield runner.stage, flags
        return
    for stage, attack in runner(x, y, seed):
        standing = flags.nonzero().squeeze(1)
        if len(standing):
            x_adv = allowed(threat, x[standing], attack(standing))
            if kept is not None:
                kept[standing] = x_adv
            flags = flags.clone()
            flags[standing] = correct(network, x_adv, y[standing], batch_size)
        arrays.update(getattr(runner, "arrays", {}))
        yield stage, flags


def collect(evaluator: Evaluator, chunks: list[Chunk]) -> Result:
    """Add an evaluator's chunks up."""
    stages = list(chunks[0].survivors)
    totals = {stage: sum(chunk.survivors[stage] for chunk in chunks) for stage in stages}
    kept = stages if len(stages) > 2 else stages[:1]       # of an attack in one stage only the clean count is news
    if evaluator.kind in CHANGED_KINDS:
        kept = []                                          # what was counted first are changed images, not clean ones
    arrays = {name: np.concatenate([chunk.arrays[name] for chunk in chunks]) for name in chunks[0].arrays}
    return Result(evaluator, np.concatenate([chunk.flags for chunk in chunks]),
                  {stage: totals[stage] for stage in kept}, sum(chunk.seconds for chunk in chunks), arrays,
                  values_of(evaluator, arrays, totals["clean"]))


def chunk_images(split: Split, where: slice, crop: bool, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x (B,C,H,W) float32 in [0,1], contiguous, and y (B,) of a chunk, on the device."""
    images = split.images[where]
    if crop:           # on the CPU, so that every device sees the same crops
        images = augment(images.cpu(), torch.Generator().manual_seed(seed), crop=4, crop_mode="zero", flip=False)
    return to_float(images.to(device)).contiguous(), split.labels[where].to(device)


def chunk_sizes(count: int, chunk: int) -> list[int]:
    """How many images each chunk has."""
    return [min(chunk, count - begin) for begin in range(0, count, chunk)]


def check_plan(plan: Plan, model: nn.Module, split: Split) -> None:
    """Raise, before anything is trained, the UserErrors that evaluating the trained model by `plan` would end in."""
    cpu = torch.device("cpu")
    for evaluator in plan.evaluators:
        image_count(evaluator, split)
    with judged(model, cpu) as network:
        fits(network, split, plan, cpu)


def image_count(evaluator: Evaluator, split: Split) -> int:
    """How many images an evaluator uses; more than there are is a UserError."""
    if len(split) == 0:
        raise UserError("there are no test images", code="E-NO-IMAGE")
    if evaluator.n is not None and evaluator.n > len(split):
        raise UserError(f"evaluator {evaluator.name!r} wants {evaluator.n} images, the test set has {len(split)}: "
                        "lower its n, or leave it out to use them all", code="E-PLAN-DATA")
    return len(split) if evaluator.n is None else evaluator.n
