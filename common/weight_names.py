"""Under which names the same weights stand in other people's files.  Names only: no file is read here, no tensor moved.

Facts come from the golden state dicts of the four originals and from RobustBench's model zoo.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch

from common.errors import UserError

# Where a container keeps its network, in the order of preference: averaged weights are what their authors evaluate.
PARTS = ("wa_model", "ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "model_state_dict",
         "state_dict", "model", "net", "network", "weights", "unaveraged_model")

# A run's id, as the brain-inspired regulariser's files have it: they hold {id: {..., "best_state": ...}}.
RUN_ID = re.compile(r"[0-9A-F]{8}")

# What wrappers put before every name: DataParallel, classes that hold a network, Sequential(net), Sequential(f, net).
PREFIXES = ("module.", "model.", "net.", "0.", "1.")
COMPILED = "_orig_mod."                      # torch.compile, which may also wrap inner modules

# The input normalisation of a file: `mean` and `std` or `mu` and `sigma`, alone or inside a module of its own.
NORMALISATION = re.compile(r"(?:(?:0|norm|normali[sz](?:e|er|ation)(?:_layer)?)\.)?(mean|std|mu|sigma)")
OWN_NORMALISATION = {"mean": "normalise.mean", "mu": "normalise.mean", "std": "normalise.std",
                     "sigma": "normalise.std"}

# Running statistics: batch norm has them, group norm under the same names has not.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

# The same architecture under other names, by source: {start of a name there: start of the name here}.  The swish
# networks of DyART, of Gowal et al. and of RobustBench (DM*) have our names.
SOURCES: dict[str, dict[str, str]] = {
    "as they are": {},
    "RPAT part 1, wide ResNets": {"linear.": "fc."},
}

# Entries that no forward pass reads, by the start of the name, with the reason; they are named, then left.
UNUSED = {
    "n_averaged": "the counter of torch's AveragedModel",
    "sub_block1.": "a stage that the TRADES code builds and never calls",
}

LISTED = 5                                   # names that a message spells out; the rest is counted


class Plain(NamedTuple):
    """names: {name in the file: name without prefixes}; prefixes: what was taken off; behind: the network stood
    second in a Sequential and nothing of what stood first is in the file."""

    names: dict[str, str]
    prefixes: tuple[str, ...]
    behind: bool


def strip_prefixes(names: Collection[str]) -> Plain:
    """Take off the prefixes that all entries share; the entries of an input normalisation may stand outside them."""
    current = {name: _without_compiled(name) for name in names}
    prefixes = [COMPILED] if any(old != new for old, new in current.items()) else []
    behind = False
    while prefix := _shared_prefix(current.values()):
        prefixes.append(prefix)
        if prefix == "1.":
            behind = not any(name.startswith("0.") for name in current.values())
            current = {old: new.removeprefix("0.") for old, new in current.items()}
        current = {old: new.removeprefix(prefix) for old, new in current.items()}
    if len(set(current.values())) < len(current):
        raise UserError("two entries have the same name once their prefixes are taken off", code="E-CHECKPOINT-FIT")
    return Plain(current, tuple(prefixes), behind)


def _without_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED.rstrip("."))


def _shared_prefix(names: Collection[str]) -> str | None:
    weights = [name for name in names if not NORMALISATION.fullmatch(name) and name != "n_averaged"]
    for prefix in PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            # `0.weight`, `0.bias` are a layer of a Sequential network, not a network inside a Sequential.
            inner = prefix not in ("0.", "1.") or any("." in name.removeprefix(prefix) for name in weights)
            return prefix if inner else None
    return None


def rename(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """{name: name in the model} by the source whose names fit `wanted` best; `as they are` where several do."""

    def to_model(name: str, table: Mapping[str, str]) -> str:
        if name in wanted:
            return name
        if match := NORMALISATION.fullmatch(name):
            return OWN_NORMALISATION[match[1]]
        start = next((start for start in table if name.startswith(start)), "")
        return table.get(start, "") + name.removeprefix(start)

    options = [{name: to_model(name, table) for name in names} for table in SOURCES.values()]
    best = min(options, key=lambda option: (len(option) - len(set(option.values())),
                                            len(set(option.values()) ^ set(wanted))))
    if twice := [new for new, count in Counter(best.values()).items() if count > 1]:
        raise UserError(f"several entries stand for the model's {listed(twice)}", code="E-CHECKPOINT-FIT")
    return best


def why_unused(name: str) -> str | None:
    """Why an entry may be left out although the model has no place for it; None if it may not."""
    return next((reason for start, reason in UNUSED.items() if name.startswith(start)), None)


Shape = tuple[int, ...]


def misfit(theirs: Mapping[str, Shape], ours: Mapping[str, Shape]) -> str | None:
    """Why the entries of a file do not fit a model's, in words that follow the file's name; None if they do.

    Both map names to shapes in the order of the state dict, so that the model's last entries are its last layer's.
    """
    missing = [name for name in ours if name not in theirs]
    unexpected = [name for name in theirs if name not in ours]
    differing = {name: (theirs[name], ours[name]) for name in ours if name in theirs and theirs[name] != ours[name]}
    if not (missing or unexpected or differing):
        return None
    if said := _only_norm(missing, unexpected, theirs, ours):
        return said
    if not missing and not unexpected and (said := _only_classes(differing, list(ours)) or _only_channels(differing)):
        return said
    said = [f"{what} {listed(names)}" for what, names in (
        ("missing", missing), ("unexpected", unexpected),
        ("of another shape", [f"{name} (file {_shape(there)}, model {_shape(here)})"
                              for name, (there, here) in differing.items()])) if names]
    return f"is of another network than the model: {'; '.join(said)}; build the network that it was made with"


def _only_norm(missing: list[str], unexpected: list[str], theirs: Mapping[str, Shape],
               ours: Mapping[str, Shape]) -> str | None:
    """The kind of normalisation layer, where one side has all the running statistics and nothing else too many."""
    lacks, extra = (ours, unexpected) if unexpected else (theirs, missing)
    if (missing and unexpected) or not extra or not all(name.endswith(STATISTICS) for name in extra):
        return None
    if any(name.endswith(STATISTICS) for name in lacks):
        return None
    there, here = ("batch", "group") if unexpected else ("group", "batch")
    return f"has {there} norm and the model {here} norm: build it with norm={there}"


def _only_classes(differing: Mapping[str, tuple[Shape, Shape]], names: list[str]) -> str | None:
    last = names[-1].rpartition(".")[0]
    if not all(name.rpartition(".")[0] == last and there and here and there[1:] == here[1:]
               for name, (there, here) in differing.items()):
        return None
    there, here = next(iter(differing.values()))
    return f"has {there[0]} classes and the model {here[0]}: build it with classes={there[0]}"


def _only_channels(differing: Mapping[str, tuple[Shape, Shape]]) -> str | None:
    there, here = next(iter(differing.values()))
    if len(differing) > 1 or len(there) != 4 or len(here) != 4 or (there[0], *there[2:]) != (here[0], *here[2:]):
        return None
    return f"takes images of {there[1]} channels and the model of {here[1]}: build it with channels={there[1]}"


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def listed(names: Collection[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(list(names)[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"


class Part(NamedTuple):
    """name: the container's key (None: the file is a bare state dict); others: the candidates not taken."""

    name: str | None
    tensors: dict[str, torch.Tensor]
    others: tuple[str, ...]


def is_state(value: Any) -> bool:
    """Whether a value is a state dict: not empty, names to tensors."""
    return isinstance(value, Mapping) and len(value) > 0 and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())


def pick_part(tree: Any, part: str | None) -> Part:
    """The state dict in what a file holds: the part asked for, else the first of PARTS, else the only one there is."""
    if part is None and is_state(tree):
        return Part(None, dict(tree), ())
    found = _states(tree)
    if part is not None:
        if part not in found:
            raise UserError(f"there is no part {part!r}; " + (f"there are {', '.join(found)}" if found else
                            "it is a bare state dict" if is_state(tree) else "it holds no weights"),
                            code="E-CHECKPOINT-PART")
        return Part(part, found[part], tuple(name for name in found if name != part))
    if not found:
        raise UserError("it holds no network's weights (no dict of names to tensors)", code="E-CHECKPOINT-PART")
    known = sorted((name for name in found if _rank(name) < len(PARTS)), key=_rank)
    if not known and len(found) > 1:
        raise UserError(f"it holds several networks: say which one with part= ({', '.join(found)})",
                        code="E-CHECKPOINT-PART")
    taken = known[0] if known else next(iter(found))
    return Part(taken, found[taken], tuple(name for name in found if name != taken))


def _rank(part: str) -> int:
    outermost = part.split(".")[0]
    return PARTS.index(outermost) if outermost in PARTS else len(PARTS)


def _states(tree: Any, inside: str = "") -> dict[str, dict[str, torch.Tensor]]:
    """All state dicts in a container by their dotted keys; nested ones only below the known keys and run
    ids, since an optimiser's state is a dict of tensors too."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    if not isinstance(tree, Mapping):
        return states
    for key, value in tree.items():
        if not isinstance(key, str):
            continue
        if is_state(value):
            states[inside + key] = dict(value)
        elif key in PARTS or RUN_ID.fullmatch(key):
            states |= _states(value, f"{inside}{key}.")
    return states
