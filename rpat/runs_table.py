"""What RPAT's tables show: each base beside base + RPAT, with the best and the last weights.  Imports no torch."""

from common import board
from common.runs import Column, Row, Table
from rpat.runs_budgets import BUDGETS, CHANGES, PART_ONE, TARGETS

BOTTLENECK = "ResNet-18 (code: Bottleneck [2,2,2,2])"
NETWORKS = {"resnet18": (BOTTLENECK,), "PreActResNet18": ("PreActResNet-18",),
            "WideResNet": ("WideResNet-34-10",)}
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet"}
LAST = " last"                                 # how the evaluators of the last weights' plans end

# (method, variant, label, the same in the list of reported numbers)
LINES = (
    *((method, variant, label.format(method), ((method, listed),)) for method in PART_ONE
      for variant, label, listed in (("plain", "{}", "base"), ("rpat", "{} + RPAT", "+RPAT"))),
    ("ReBAT", "plain", "ReBAT", (("ReBAT", "*"),)), ("RPAT++", "plain", "RPAT++", (("RPAT++", "*"),)),
    ("ReBAT", "cutmix", "ReBAT (CutMix)", (("ReBAT*", "*"),)),
    ("RPAT++", "cutmix", "RPAT++ (CutMix)", (("RPAT++*", "*"),)),
    ("ce", "plain", "standard training", ()), ("ce_rand", "plain", "training with noise", ()))

TABLE = Table(
    title="RPAT",
    rows=(*(Row(method=method, variant=variant, label=label, reported=listed)
            for method, variant, label, listed in LINES),
          *(Row(method=method, variant=variant, label=f"{label}, last epoch", suffix=LAST)
            for method, variant, label, _ in LINES)),
    columns=(Column(evaluator="clean", title="clean", reported=("clean",)),
             Column(evaluator="PGD-10", title="PGD-10"),
             Column(evaluator="PGD-20", title="PGD-20", reported=("PGD-20",)),
             Column(evaluator="AutoAttack", title="AutoAttack", reported=("AA",)),
             Column(evaluator="clean", beside="AutoAttack", formula="mean", title="mean",
                    reported=("mean(clean,AA)",)),
             Column(evaluator="clean", beside="AutoAttack", formula="NRR", title="NRR", reported=("NRR",))),
    compare=(("rpat", "plain"),), compare_methods=(("RPAT++", "ReBAT"),),
    reported_datasets={name: NAMES[target.data] for name, target in TARGETS.items()},
    reported_models={name: NETWORKS[target.model] for name, target in TARGETS.items()},
    reported_sizes={name: "128/255 (repo default; not printed)" for name, target in TARGETS.items()
                    if target.norm == "l2"},
    reported_weights=("best",), reported_file="rpat", reported_paper="RPAT",
    budget_notes={name: f"Budget: {budget.about}." for name, budget in BUDGETS.items()} | {
        " ".join(key): f"Budget: {changes['about']}." for key, changes in CHANGES.items()} | {
        board.BUDGET: f"Budget: {board.ABOUT}."})
