"""Command lines as targets: words drawn from a parser's own flags, parsed and turned into settings, nothing run."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from common.fuzz import Target

WORDS = ("", "0", "1", "-1", "3", "8", "0.5", "8/255", "1/0", "/", "1e999", "nan", "inf", "-inf", "9" * 30, "9" * 5000,
         "1e-400", "True", "False", "none", "None", "all", "default", "x", "a,b", "1,2", "1,x", "../x", "/etc/passwd",
         "npz:", "npz:/dev/zero", "folder:x?size=0", "a\nb", "%s", "%", "{}", "\udcff", "é", "--", "-", "=", "cifar10",
         "resnet18", "linf", "x" * 5000, "'", "~", "$HOME", "cuda:99", "pkg:function")
FILE = "argv.json"


def target(name: str, make: Callable[[], argparse.ArgumentParser], parse: Callable[[Sequence[str]], Any],
           usual: Sequence[str] = ()) -> Target:
    """parse(words) is the property; make() gives the parser whose flags are drawn; usual: what must be typed besides
    the flags that the parser requires."""
    def mutate(random: Random, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps([*(usual if random.randrange(8) else ()), *words(random, make())]))

    def load(folder: Path) -> None:
        parse(json.loads((folder / FILE).read_text()))

    return Target(f"flags {name}", lambda folder: folder.joinpath(FILE).write_text(json.dumps(
        [*usual, *required(make())])), mutate, load)


def required(parser: argparse.ArgumentParser) -> list[str]:
    """The flags and words that must be there, with a value each."""
    found: list[str] = []
    for action in parser._actions:
        if action.required:
            value = next(iter(action.choices)) if action.choices else "1"
            found += [*action.option_strings[:1], *([str(value)] * (action.nargs if type(action.nargs) is int else 1))]
    return found


def words(random: Random, parser: argparse.ArgumentParser) -> list[str]:
    """A command line: the flags that must be there, up to four others with values of all kinds, and stray words."""
    found = required(parser) if random.randrange(8) else []
    for _ in range(random.randrange(1, 5)):
        action = random.choice(parser._actions)
        flag = random.choice([*action.option_strings, ""])
        usual = [*map(str, action.choices or ()), str(action.default), "1", "0.1"]
        value = random.choice(usual if random.randrange(2) else WORDS)
        if random.randrange(20) == 0:
            flag += "x"
        if flag and random.randrange(4) == 0:
            found.append(f"{flag}={value}")
        else:
            found += [*([flag] if flag else []), *([value] if action.nargs != 0 or random.randrange(8) == 0 else [])]
    return found
