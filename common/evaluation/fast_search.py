"""AutoAttack's fast search: the official attacks on a fast view of the network, and float32 where the two disagree.

The view computes in bf16 or TF32, channels-last inside, batch norm folded into the convolutions; its last linear layer
stays in float32, since logits rounded to bf16 hide what the losses of the attacks compare.  Square leaves an image
alone as soon as the view misclassifies it, the others at the end of a run; so a tenth of apgd-ce goes first, and spares
the images that fall to it the rest.  Where the network itself, in plain float32, does not, the image is
disputed: the same stage attacks it once more, on the network itself.  And where the margin is within what bf16 rounds
off, the view may hide that an image can be fooled: so apgd-t attacks all that is left after it in float32 as well,
towards the few nearest classes.  FAB's projections, in L-inf and L2, are our own, which do not sort the pixels: with a
small network a third of its time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

from common.attack_view import AttackView, cannot_view
from common.attacks.balls import ball
from common.attacks.losses import predictions
from common.attacks.projection import PROJECTIONS
from common.errors import UserError
from common.evaluation.autoattack import Official, changed, passes_of, shares_of, shorten
from common.evaluation.judging import Network, allowed, correct
from common.evaluation.plans import Evaluator
from common.evaluation.searches import LENGTH

DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32}
BRIEF = "brief apgd-ce"
Stages = Iterator[tuple[str, partial]]


def check(evaluator: Evaluator, model: nn.Module, device: torch.device) -> None:
    """A UserError where the fast search cannot be had."""
    if evaluator.setting("arithmetic") == "tf32" and device.type != "cuda":
        raise UserError(f"evaluator {evaluator.name!r}: TF32 is an arithmetic of CUDA devices, this is {device.type}: "
                        "search in bf16 (--search fast) or in float32", code="E-SEARCH")
    if reason := cannot_view(model):
        raise UserError(f"evaluator {evaluator.name!r}: there is no fast view, {reason}: use --search float32",
                        code="E-SEARCH")


class FastView(AttackView):
    """x (B,C,H,W) float32 in [0,1] -> logits (B,K) float32 of the network in eval mode, its weights as they are now."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__(network, training=False, dtype=dtype)
        graph = self.graph.graph
        head = next(node for node in graph.nodes if node.op == "output").args[0]
        if head.op == "call_module" and isinstance(self.graph.get_submodule(head.target), nn.Linear):
            self.graph.get_submodule(head.target).float()
            with graph.inserting_before(head):
                head.args = (graph.call_method("float", head.args),)
            self.graph.recompile()
        self.eval()
        self.refresh()


class FastSearch:
    """The runner of the kind fast-autoattack: "brief apgd-ce", then the standard version's stages, each on the view.

    After apgd-t follows "float32 apgd-t", towards the `targets` nearest classes.  With the setting `finish` every
    survivor is attacked by all stages in float32 at the end instead, and disputed images wait for that.
    arrays: of the chunk, "disputed" (B,), 1 where an image was disputed in some stage.  shares: stage -> how much of a
    chunk's work it is, roughly.
    """

    def __init__(self, evaluator: Evaluator, network: Network, classes: int, device: torch.device, batch_size: int):
        self.network, self.batch_size = network, batch_size
        self.threat = ball(evaluator.norm, evaluator.eps)
        self.arithmetic, self.finish = evaluator.setting("arithmetic"), evaluator.setting("finish")
        self.view = Network(FastView(network.model, DTYPES[self.arithmetic])).eval()
        standard = replace(evaluator, name="search", kind="autoattack",
                           settings={name: evaluator.setting(name) for name in LENGTH})
        self.fast, self.exact = (Official(standard, each, classes, device) for each in (self.view, network))
        project_by_ours(self.fast.stages["fab-t"])
        self.brief = changed(self.fast.stages["apgd-ce"], n_restarts=1)
        # In L1 it has three phases of an iteration at least.
        shorten(self.brief, max(3, self.brief.n_iter // 10))
        targeted = self.exact.stages["apgd-t"]
        self.near = changed(targeted, n_target_classes=min(targeted.n_target_classes, evaluator.setting("targets")))
        # A pass in float32 takes about twice the time.
        extra = self.exact.passes if self.finish else {"apgd-t": passes_of(self.near)}
        again = {f"float32 {stage}": 2 * count for stage, count in extra.items()}
        self.shares = shares_of({BRIEF: passes_of(self.brief)} | self.fast.passes | again)
        self.arrays: dict[str, Tensor] = {}

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> Stages:
        disputed, exact = torch.zeros(len(x), device=x.device), dict(self.exact(x, y, seed))
        self.arrays = {"disputed": disputed}
        yield BRIEF, partial(self._search, partial(Official.run, self.brief, x, y, seed))
        for name, search in self.fast(x, y, seed):
            yield name, partial(self._attack, search, exact[name], x, y, disputed)
            if name == "apgd-t" and not self.finish:
                yield "float32 apgd-t", partial(Official.run, self.near, x, y, seed)
        if self.finish:
            for name, search in exact.items():
                yield f"float32 {name}", search

    def _search(self, search: partial, standing: Tensor) -> Tensor:
        # Whom the view alone takes for fooled stands, and is attacked by the next stage.
        with arithmetic(self.arithmetic):
            return search(standing)

    @torch.no_grad()
    def _attack(self, search: partial, exact: partial, x: Tensor, y: Tensor, disputed: Tensor, standing: Tensor
                ) -> Tensor:
        clean, labels = x[standing], y[standing]
        with arithmetic(self.arithmetic):
            wrong = predictions(self.view(clean)) != labels
            found = search(standing)
        # The attacks leave what the view misclassifies clean as it is, and change what they believe to have fooled.
        believed = wrong | (found != clean).flatten(1).any(1)
        stands = correct(self.network, allowed(self.threat, clean, found), labels, self.batch_size)
        again = (believed & stands).nonzero().squeeze(1)
        disputed[standing[again]] = 1
        if len(again) and not self.finish:
            found[again] = exact(standing[again])
        return found


def project_by_ours(fab) -> None:
    """Let an attack of the official package, and no other, project without a sort.  L1 has no such projection here."""
    run = type(fab).attack_single_run
    names = {f"projection_{norm}": project for norm, project in PROJECTIONS.items()}
    own = FunctionType(run.__code__, {**run.__globals__, **names}, run.__name__, run.__defaults__)
    fab.attack_single_run = MethodType(own, fab)


@contextmanager
def arithmetic(name: str) -> Iterator[None]:
    """TF32 in products and convolutions on CUDA, for "tf32"; the switches are put back."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        if name == "tf32":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
