"""What METHODS can name: the network without regularisation, with the paper's, and one change at a time of that.  No
torch here.

    unregularised; SOURCE, our name of a data set; SOURCE-plain (the targets are S: the paper's S^pixel)
    N, k, thresholds, ranges      ablations on the target's first source, all of them; SOURCE-N, ... on another
    SOURCE-MARK                   one of them: imagenet-n1000, cifar10-k4, mnist-th0.4, cifar10-double0.1
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from brainreg.runs_budgets import Budget, Target
from brainreg.settings import SOURCES, Settings, usual
from common.errors import UserError

UNREGULARISED = "unregularised"
SECOND = 0.1                                   # Th_2 of range double: below every threshold here
# Group -> (setting, values): one changes, the others are the paper's.
ABLATIONS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "N": ("reg_image_num", (100, 1000, 5000)),
    "k": ("reg_batch_size", (4, 8, 16, 32)),
    "thresholds": ("reg_thresh", (0.2, 0.4, 0.6, 0.8)),
    "ranges": ("reg_range", ("all", "low", "high", "positive", "negative", "double"))}
PLAIN = "plain"
RELEASED_N = 5000


@dataclass(frozen=True)
class Variant:
    """One network.  word: as METHODS names it; source: our name of the data set that regularises, or None; groups: the
    ablations that it is a point of, with its value there."""

    word: str
    source: str | None
    settings: Settings
    groups: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """(method, variant) of its records."""
        return self.settings.method, self.settings.variant

    @property
    def main(self) -> bool:
        """Whether it is one of the paper's rows: nothing is changed but, perhaps, the targets to S."""
        return self.source is None or self.word in (self.source, f"{self.source}-{PLAIN}")


def base(target: Target, shape: Budget) -> Settings:
    """The settings that all networks of a target and budget share, seed 0; unregularised."""
    given = {"base_channels": shape.width, "stem": shape.stem, "n_train": shape.n_train,
             "n_epoch_test": shape.n_epoch_test, "valid_portion": shape.valid_portion,
             "resnet_batch_size": shape.batch_size, "lr": shape.lr}
    return Settings(task=SOURCES[target.task], rgb=target.rgb, archi=(shape.archi or target.archi).lower(),
                    epoch_num=shape.epochs or target.epochs, phase_num=shape.phases, phase_duration=shape.phase,
                    **{name: value for name, value in given.items() if value is not None})


def variants(target: Target, shape: Budget) -> dict[str, Variant]:
    """Word -> what it names, in the order of the table: without regularisation, then source by source."""
    plain = base(target, shape)
    found = {UNREGULARISED: Variant(UNREGULARISED, None, plain, {})}
    for source in dict.fromkeys((*target.sources, *SOURCES.values())):
        alpha, threshold = usual(plain.task, source)
        ours = replace(plain, reg_data=source, reg_alpha=alpha, reg_thresh=threshold,
                       reg_image_num=shape.images or RELEASED_N)
        groups = {group: getattr(ours, name) for group, (name, _) in ABLATIONS.items()}
        found[source] = Variant(source, source, ours, groups)
        unboosted = replace(ours, reg_boosting=False)
        found[f"{source}-{PLAIN}"] = Variant(f"{source}-{PLAIN}", source, unboosted, {})
        for group, (name, values) in ABLATIONS.items():
            for value in values:
                if value == groups[group] or (group == "N" and value > ours.reg_image_num):
                    continue
                changed = replace(ours, **{name: value}, reg_thresh_2=SECOND if value == "double" else None)
                mark = next(mark for mark in changed.marks if mark not in ours.marks)
                found[f"{source}-{mark}"] = Variant(f"{source}-{mark}", source, changed, {group: value})
    return found


def chosen(words: tuple[str, ...], target: Target, known: Mapping[str, Variant]) -> list[Variant]:
    """What the user's words name, in the order of `known`; UserError for a word that names nothing."""
    plain = {word.lower(): word for word in known}
    named = {group.lower(): group for group in (*ABLATIONS, PLAIN)}
    wanted: set[str] = set()
    for word in words:
        name = word.lower().replace("_", "-").replace("fashionmnist", "fashion-mnist")
        source, _, group = ("", "", name) if name in named else name.rpartition("-")
        if name in plain:
            wanted.add(plain[name])
        elif group in named and (source in SOURCES.values() or not source):
            wanted |= of_group(named[group], source or target.sources[0], known)
        else:
            raise UserError(f"unknown method {word!r}: there are {UNREGULARISED}; {', '.join(SOURCES.values())}; of "
                            f"each -{PLAIN} and the ablations -N, -k, -thresholds, -ranges or one of them, such as "
                            f"{target.sources[0]}-n1000, -k4, -th0.4, -high, -double{SECOND:g}; N, k, thresholds and "
                            f"ranges alone are {target.sources[0]}'s", code="E-METHOD")
    return [variant for word, variant in known.items() if word in wanted]


def of_group(group: str, source: str, known: Mapping[str, Variant]) -> set[str]:
    """Words of an ablation of one source, the usual setting among them."""
    if group == PLAIN:
        return {f"{source}-{PLAIN}"}
    return {word for word, variant in known.items() if variant.source == source and group in variant.groups}
