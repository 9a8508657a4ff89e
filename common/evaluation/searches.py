"""How AutoAttack may search, and what the result is called.  Imports no torch.

float32         the official attacks on the network itself: the one that is called AutoAttack
fast            the same attacks on a fast view of the network, in bf16 (fast-tf32: in TF32, on CUDA only); an image
                counts as fooled only if plain float32 misclassifies its adversarial image: `AA (fast search)`
fast+float32    first fast; whatever is left then withstands all of the float32 search, or falls: no image is called
                robust that AutoAttack's own attacks did not fail on.  It draws other random numbers than AutoAttack
                alone, so its flags may differ by an image: `AutoAttack (fast first)`
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import UserError

if TYPE_CHECKING:
    from common.evaluation.plans import Plan
    from common.runs import Column

RESERVED = re.compile(r"(aa|auto-?attack)\b", re.IGNORECASE)
KIND = "fast-autoattack"
LENGTH = {"iterations": 100, "queries": 5000}                   # the standard version's
SETTINGS = {"arithmetic": "bf16", "finish": False, "targets": 3}    # of the fast search


class Search(NamedTuple):
    """title: how names of evaluators begin; settings: those of the kind fast-autoattack (None: not of that kind)."""

    title: str
    settings: Mapping[str, Any] | None


SEARCHES = {
    "float32": Search("AutoAttack", None),
    "fast+float32": Search("AutoAttack (fast first)", {**SETTINGS, "finish": True}),
    "fast": Search("AA (fast search)", SETTINGS),
    "fast-tf32+float32": Search("AutoAttack (fast first tf32)", {**SETTINGS, "arithmetic": "tf32", "finish": True}),
    "fast-tf32": Search("AA (fast search tf32)", {**SETTINGS, "arithmetic": "tf32"}),
}
ARITHMETICS = ("bf16", "tf32")


def search_of(kind: str, settings: Mapping[str, Any], length: Mapping[str, int] = LENGTH) -> str | None:
    """The search of an evaluator of the standard version, whose length is `length`; None of any other."""
    for name, search in SEARCHES.items():
        if kind == ("autoattack" if search.settings is None else KIND) and (
                dict(settings) == {**length, **(search.settings or {})}):
            return name
    return None


def name_fits(name: str, search: str | None) -> bool:
    """Whether an evaluator with this search may have a name: those that begin with AutoAttack or AA say what it is."""
    if not RESERVED.match(name):
        return True
    if search in (None, "float32"):
        return search is not None and "(" not in name
    return name == SEARCHES[search].title or name.startswith(SEARCHES[search].title + " ")


def called(name: str, search: str) -> str:
    """The name of an evaluator that is called `name` where it searches in float32."""
    if search == "float32":
        return name
    title = SEARCHES[search].title
    found = RESERVED.match(name)
    return title + name[found.end():] if found else f"{name} ({title.partition('(')[2]}"


def suffix(search: str) -> str:
    """How the names of plans end that search so."""
    return "" if search == "float32" else "-" + search.replace("+", "-")


def split_name(name: str) -> tuple[str, str]:
    """The name of a plan without its suffix, and the search that this stands for."""
    ends = {suffix(search): search for search in SEARCHES}
    end = max((end for end in ends if name.endswith(end)), key=len)
    return name.removesuffix(end), ends[end]


def searched(plan: "Plan", search: str) -> "Plan":
    """The plan with AutoAttack by another search, under other names; a UserError where it has no AutoAttack."""
    if search == "float32":
        return plan
    changed = [replace(each, name=called(each.name, search), kind=KIND,
                       settings={**dict(each.settings), **SEARCHES[search].settings})
               if each.kind == "autoattack" else each for each in plan.evaluators]
    if changed == list(plan.evaluators):
        raise UserError(f"plan {plan.name} has no AutoAttack (the standard version, searching in float32): "
                        f"{search} changes nothing in it; leave --search, or the end of the plan's name, out",
                        code="E-SEARCH")
    return replace(plan, name=plan.name + suffix(search), evaluators=tuple(changed))


def searchable(plan_named: "Callable[..., Plan]") -> "Callable[..., Plan]":
    """Let a function from names to plans take names with the suffix of a search: paper-adarat-1000-200-fast."""
    @wraps(plan_named)
    def named(name: str, *args: Any, **options: Any) -> "Plan":
        plain, search = split_name(name)
        return searched(plan_named(plain, *args, **options), search)
    return named


# -- tables ----------------------------------------------------------------------------------------------------------

def preference(results: Iterable[Mapping[str, Any]]) -> int:
    """The place of a record's search in SEARCHES.  A plan with another search repeats the plan's other evaluators:
    where several records have one, the first in this order counts."""
    found = [search_of(result["kind"], result["settings"]) for result in results if result["kind"] == KIND]
    return min((list(SEARCHES).index(search) for search in found if search), default=0 if not found else len(SEARCHES))


def columns_of(columns: "Iterable[Column]", suffixes: Iterable[str], evaluators: Collection[str]) -> "list[Column]":
    """A table's columns, and behind each of AutoAttack one of its own for every other search that was run.

    suffixes: of the rows' evaluators; evaluators: names of results that there are.  Reported numbers stay beside
    AutoAttack.
    """
    ends, found = set(suffixes), []
    for column in columns:
        found.append(column)
        part = "beside" if column.formula else "evaluator"
        judge = getattr(column, part)
        if not RESERVED.match(judge):
            continue
        for search in [search for search in SEARCHES if search != "float32"]:
            name = called(judge, search)
            if any(name + end in evaluators for end in ends):
                title = f"{column.title} ({name})" if column.formula else called(column.title, search)
                found.append(replace(column, title=title, reported=(), points=(), **{part: name}))
    return found
