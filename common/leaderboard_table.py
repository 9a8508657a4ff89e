"""The leaderboard as tables: one grid per group, one CSV row per entry.  No torch."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from common.cells import Cell, short
from common.leaderboard import Board, Entry, Group, Shape
from common.leaderboard_differences import NOTES as OF_DIFFERENCES
from common.leaderboard_differences import Changes, grid
from common.render import DASH, Grid
from common.stats import mean_sd

HEADER = ("#", "method", "paper", "seeds", "clean %", "AutoAttack %", "clean % there", "front",
          "passes per image and epoch", "passes per image in all", "minutes", "minutes in all", "device", "weights",
          "not the same")
NOTES = (
    "Each group is one network, one number of training images, one number of epochs, one set of test images and one "
    "attack: compare within a group only. What still differs inside a group stands under 'not the same'.",
    "Accuracies: one seed's value, or mean ± sample standard deviation over seeds; in brackets Wilson's 95% interval "
    "for this number of test images. It does not hold what another seed would change.",
    "AutoAttack is often run on fewer images than clean accuracy; 'clean % there' is clean accuracy on its images, "
    "above which it cannot be.",
    "Front: no other method of the group is at least as good in both accuracies and better in one (Pareto front of the "
    "point estimates; where brackets overlap, the order is not resolved: see scripts/compare.py).",
    "A pass is one forward and backward pass of one image (a step of an attack counts 2/3, a forward pass alone 1/3). "
    "In all: over all epochs, with the runs that had to be trained before. Minutes: of training and its own "
    "validation, on the device named, evaluation left out; other work on the machine lengthens them.")

SHOWN = 8                                      # labels of a paper's methods that a group lacks, by name


def percent(entry: Entry, which: Cell) -> str:
    """'26.00 [20.1, 32.9]' or '25.75 ± 1.77 [20.1, 32.0]'."""
    middle, sd = mean_sd(which.accuracies)
    low, high = entry.image_interval(which)
    spread = "" if sd is None else f" ± {100 * sd:.2f}"
    return f"{100 * middle:.2f}{spread} [{100 * low:.1f}, {100 * high:.1f}]"


def cells(entry: Entry, group: Group, number: int) -> tuple[str, ...]:
    """One row, as text, in the order of HEADER."""
    return (str(number), entry.label, entry.paper, ", ".join(str(run.run["seed"]) for run in entry.runs),
            percent(entry, entry.clean), percent(entry, entry.attacked), f"{100 * fmean(entry.clean_there):.1f}",
            "yes" if entry.key in group.front else "",
            _number(entry.passes), _number(entry.passes_in_all), f"{entry.seconds / 60:.1f}",
            f"{entry.seconds_in_all / 60:.1f}", entry.device, entry.weights, "; ".join(entry.marks) or DASH)


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}"


def measured_on(group: Group, board: Board) -> str:
    """What the accuracies of a group were measured on, in words."""
    shape = group.shape
    return (f"Clean accuracy on {shape.n_clean:,} test images, AutoAttack ({board.threat}) on {shape.n_attacked:,} "
            f"(test images sha256 {shape.test_fingerprint[:12]}).")


def grids(board: Board, title: str, changes: Mapping[Shape, Changes] | None = None) -> list[Grid]:
    """The groups, each with what was compared in it, then what was left aside; the first grid holds the notes on all
    of them."""
    notes = (*NOTES, *(OF_DIFFERENCES if changes else ()))
    found = [Grid(title, (), (), (*notes, f"Attack: AutoAttack, standard version, {board.threat}."))]
    for group in board.groups:
        rows = tuple(cells(entry, group, number) for number, entry in enumerate(group.entries, start=1))
        found.append(Grid(group.shape.title, HEADER, rows, (
            measured_on(group, board), *alone(group), *absent(group),
            *(f"{number}: {', '.join(short(record.path) for record in entry.records)}"
              for number, entry in enumerate(group.entries, start=1)))))
        if changes and group.shape in changes:
            found.append(grid(changes[group.shape], f"Differences: {group.shape.title}"))
    if board.left:
        found.append(Grid("Left aside", ("run", "why"), tuple(board.left)))
    return found


def alone(group: Group) -> tuple[str, ...]:
    """A warning where a group compares no two papers."""
    if len({entry.paper for entry in group.entries}) > 1:
        return ()
    return ("Only one paper has runs of this shape: this group compares no two papers. `make leaderboard BUDGET=board` "
            "trains the methods of all papers under one shape.",)


def absent(group: Group) -> tuple[str, ...]:
    """Which methods of its papers a group of several papers lacks, and how they join it."""
    if not group.absent:
        return ()
    lists = [f"{paper}: {', '.join(labels[:SHOWN])}" + (f" and {len(labels) - SHOWN} more" if labels[SHOWN:] else "")
             for paper, labels in group.absent]
    return (f"Not here: {'; '.join(lists)}. One joins by `make reproduce-PAPER-DATASET BUDGET={group.shape.budget} "
            "METHODS=...` (the paper's README names the words), then `make leaderboard`.",)


def rows(board: Board) -> list[dict[str, Any]]:
    """One row per entry, for CSV; fractions with 6 digits."""
    return [_row(entry, group, board) for group in board.groups for entry in group.entries]


def _row(entry: Entry, group: Group, board: Board) -> Mapping[str, Any]:
    shape, row = entry.shape, {"paper": entry.paper, "method": entry.label}
    row |= {"data": shape.data, "budget": shape.budget, "network": shape.network, "n_train": shape.n_train,
            "extra_images": shape.extra, "epochs": shape.epochs, "norm": board.threat.norm,
            "eps": f"{board.threat.eps:.6f}", "seeds": " ".join(str(run.run["seed"]) for run in entry.runs)}
    for name, which in (("clean", entry.clean), ("autoattack", entry.attacked)):
        middle, sd = mean_sd(which.accuracies)
        image, whole = entry.image_interval(which), entry.interval(which)
        row |= {name: f"{middle:.6f}", f"{name}_sd": None if sd is None else f"{sd:.6f}", f"{name}_n": which.n,
                f"{name}_robust": " ".join(map(str, which.robust)),
                **{f"{name}_{end}_{what}": f"{value:.6f}" for what, pair in (("images", image), ("images_and_seeds",
                                                                                                whole))
                   for end, value in zip(("low", "high"), pair, strict=True)}}
    return row | {
        "clean_on_autoattack_images": f"{fmean(entry.clean_there):.6f}",
        "front": entry.key in group.front, "passes_per_image_and_epoch": _csv(entry.passes),
        "passes_per_image_in_all": _csv(entry.passes_in_all), "minutes": f"{entry.seconds / 60:.2f}",
        "minutes_in_all": f"{entry.seconds_in_all / 60:.2f}", "after": " ".join(entry.after), "device": entry.device,
        "weights": entry.weights, "not_the_same": "; ".join(entry.marks),
        "records": " ".join(short(record.path) for record in entry.records)}


def _csv(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
