"""What the tables show: accuracies over and at strengths, the boundary attack's median, small eps.  No torch here."""

from brainreg import plans
from brainreg.runs_budgets import BOARD, BOARD_TARGETS, BUDGETS, CHANGES, SOURCE_SEED, TARGETS, shape_of, target_of
from brainreg.runs_variants import PLAIN, Variant, variants
from brainreg.settings import DEFAULT_PLAN, Settings
from common import board
from common.runs import Column, Row, Table

NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
         "imagenet": "ImageNet"}
# Our attacks -> what the list of reported numbers calls the curve.
NORMS = {"Gaussian": "gaussian noise", "TransferredFGSM": "transferred FGSM"}
BOUNDARY_NORM = "L2 squared per pixel"
TITLES = {"Gaussian": "Gaussian", "Uniform": "uniform", "SaltPepper": "salt and pepper", "TransferredFGSM": "FGSM"}
SHOWN = (5, 9)                                 # which of the ten strengths have a column of their own
RANGES = {"low": "S_low", "high": "S_high", "positive": "S_+", "negative": "S_-", "double": "S_double"}
# Short names under which the poster lists boundary attacks; its components are of a network regularised on CIFAR-10.
POSTER_RANGES = {"low": ("ResNet S_low^Th", "low"), "high": ("ResNet S_high^Th", "high"), "positive": ("plus",),
                 "negative": ("ResNet S_-^Th", "minus"), "double": ("ResNet S_double^{Th1,Th2}", "double")}
# Under which it repeats the network of the default settings, beside its changes of N and of the range.
POSTER_DEFAULTS = {"imagenet": ("ResNet reg ImageNet N=5000", "N=5000"), "cifar10": ("ResNet S^Th", "STh")}


def label(variant: Variant) -> str:
    """How a table calls it."""
    settings = variant.settings
    if not settings.regularised:
        words = ["unregularised"]
    else:
        words = [f"regularised on {NAMES[settings.reg_data or '']}"]
        words += [] if settings.reg_boosting else ["targets S^pixel"]
        words += [f"N = {settings.reg_image_num:,}"] if settings.reg_image_num != 5000 else []
        words += [f"k = {settings.reg_batch_size}"] if settings.reg_batch_size != 16 else []
        words += [f"Th = {settings.reg_thresh:g}"] if "thresholds" in variant.groups and not variant.main else []
        if settings.reg_range != "all":
            second = f" (Th_2 = {settings.reg_thresh_2:g})" if settings.reg_thresh_2 else ""
            words.append(RANGES[settings.reg_range] + second)
    return ", ".join([*words, *(["ResNet-34"] if settings.archi == "resnet34" else [])])


def reported_as(variant: Variant) -> tuple[tuple[str, str], ...]:
    """(method, variant) of what is reported for it, in results/reported/brainreg.csv.

    The variant there is the number of epochs, where it is known; CIFAR-100's (60) are of a ResNet-34.
    The poster's k is left out: its k = 32 is the curve of the default, 16 pairs, so it may count images and not pairs.
    """
    settings = variant.settings
    marks = tuple(mark for mark in settings.marks if mark != settings.archi)
    theirs = {"fashion-mnist": "FashionMNIST"}.get(settings.reg_data or "", NAMES.get(settings.reg_data or "", ""))
    names: tuple[str, ...] = ()
    if not settings.regularised:
        names = ("ResNet unregularised", "unregularised", "unreg")
    elif not marks:
        names = (f"ResNet reg {theirs}, S^Th alpha={settings.reg_alpha:g} Th={settings.reg_thresh:g}",
                 f"ResNet reg {theirs} S^Th", f"reg {theirs} S^Th", *POSTER_DEFAULTS.get(settings.reg_data or "", ()))
    elif marks == (PLAIN,):
        names = (f"ResNet reg {theirs}, S^pixel",)
    elif settings.reg_data == "imagenet" and marks == (f"n{settings.reg_image_num}",):
        names = (f"ResNet reg ImageNet N={settings.reg_image_num}", f"N={settings.reg_image_num}")
    elif settings.reg_data == "cifar10" and len(marks) == 1:
        names = POSTER_RANGES.get(settings.reg_range, ())
    epochs = ("60 epochs",) if settings.archi == "resnet34" else ("", "20 epochs", "40 epochs")
    return tuple((name, length) for name in names for length in epochs)


def described() -> tuple[Row, ...]:
    """A row for every network that a target and a budget have, the unregularised one first."""
    found: dict[tuple[str, str], Variant] = {}
    reported: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
    # The released settings first.
    places = [(dataset, budget) for budget in reversed(BUDGETS) for dataset in TARGETS]
    places += [(dataset, board.BUDGET) for dataset in BOARD_TARGETS]
    for place in places:
        for variant in variants(target_of(*place), shape_of(*place)).values():
            found.setdefault(variant.key, variant)
            reported.setdefault(variant.key, {}).update(dict.fromkeys(reported_as(variant)))
    return tuple(Row(method=key[0], variant=key[1], label=label(variant), reported=tuple(reported[key]))
                 for key, variant in found.items())


def columns(dataset: str) -> tuple[Column, ...]:
    """Of one target: clean, each attack's mean over strengths and two of them, the boundary attack, small eps."""
    settings = Settings(task=dataset)
    found = [Column(evaluator="clean", title="clean", reported=("accuracy",),
                    points=tuple((norm, 0.0) for norm in NORMS.values()))]
    for attack, title in TITLES.items():
        sizes = plans.strengths(attack, settings)
        found.append(Column(evaluator=f"{attack} mean", title=f"{title}, mean", over=tuple(sizes)))
        for name in (list(sizes)[position] for position in SHOWN):
            points = ((NORMS[attack], sizes[name]),) if attack in NORMS else ()
            found.append(Column(evaluator=name, title=f"{title} {sizes[name]:.3g}", points=points,
                                reported=("accuracy",) if points else ()))
    found.append(Column(evaluator=plans.BOUNDARY, title="boundary, median x1e-3", over=plans.boundary_names(),
                        value="mean_square.median", factor=1000, reported=("median x1e-3",),
                        points=((BOUNDARY_NORM, None),)))
    sort = "colour" if settings.colour_task else "grey"
    found += [Column(evaluator=f"PGD-{plans.PGD_STEPS} {size}", title=f"PGD-{plans.PGD_STEPS} {size}")
              for size in plans.SMALL[sort]]
    found += [Column(evaluator=f"AutoAttack {size}", title=f"AutoAttack {size}") for size in plans.AUTOATTACK[sort]]
    return tuple(found)


ROWS = described()
BASES = {row.variant for row in ROWS if row.method == "unregularised"}
TABLE = Table(
    title="Brain-inspired regulariser", rows=ROWS, columns=columns("cifar10"),
    special_columns={dataset: columns(dataset) for dataset in TARGETS} | {
        dataset: tuple(Column(evaluator=name, title=name) for name in ("clean", "PGD-20", "AutoAttack"))
        for dataset in BOARD_TARGETS},
    # Validation images are drawn by the seed, so the training images that are left are others too.
    per_seed=("train_fingerprint",), plans=(f"{DEFAULT_PLAN}*", "*"), sources=(SOURCE_SEED,),
    compare_rows=tuple(((row.method, row.variant), ("unregularised", base)) for row in ROWS
                       if row.method == "regularised" for base in sorted(BASES)
                       if ("resnet34" in row.variant) == ("resnet34" in base)),
    reported_file="brainreg", reported_paper="brainreg", reported_points=True, reported_weights=("mean of 7 seeds",),
    reported_datasets={dataset: f"{NAMES[dataset]} (grayscale)" for dataset in TARGETS},
    reported_models={dataset: ("ResNet-34",) if target.archi == "ResNet34" else ("ResNet-18",)
                     for dataset, target in TARGETS.items()},
    budget_notes={name: f"Budget: {budget.about}." for name, budget in BUDGETS.items()} | {
        " ".join(key): f"Budget: {changes['about']}." for key, changes in CHANGES.items()} | {
        board.BUDGET: f"Budget: {BOARD.about}."})
