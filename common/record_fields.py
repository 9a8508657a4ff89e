"""What stands in a record: its fields, their types, and the names that may become paths.  No torch here."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

SCHEMA = 1
_TEXT, _COUNT, _NUMBER = (str,), (int,), (int, float)
_IDENTITY = {"schema": _COUNT, "paper": _TEXT, "dataset": _TEXT, "run": _TEXT}
_OPTIONAL_TEXT = (str, type(None))
FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "run": {**_IDENTITY, "method": _TEXT, "variant": _TEXT, "budget": _TEXT, "seed": _COUNT, "config": (dict,),
            "config_sha256": _TEXT, "spec_sha256": _OPTIONAL_TEXT, "quirks": (list,), "needs": (dict,),
            "data": (dict,), "model": (dict,), "command": _TEXT},
    "train": {**_IDENTITY, "spec_sha256": _OPTIONAL_TEXT, "config_sha256": _TEXT, "weights": (dict,),
              "epochs": _COUNT, "steps": _COUNT, "seconds": _NUMBER, "selected_on": _OPTIONAL_TEXT,
              "final": (dict,), "environment": (dict,)},
    "eval": {**_IDENTITY, "plan": _TEXT, "spec_sha256": _OPTIONAL_TEXT, "plan_sha256": _TEXT, "checkpoint": _TEXT,
             "weights_sha256": _TEXT, "data": (dict,), "seed": _COUNT, "results": (list,), "flags": _TEXT,
             "flags_sha256": _TEXT, "environment": (dict,), "command": _TEXT},
    "result": {"name": _TEXT, "kind": _TEXT, "norm": _OPTIONAL_TEXT, "eps": (int, float, type(None)),
               "settings": (dict,), "robust": _COUNT, "n": _COUNT, "seconds": _NUMBER},
    "weights": {"file": _TEXT, "sha256": _TEXT},
    "data": {"name": _TEXT, "test_fingerprint": _TEXT},
    "alarm": {"kind": _TEXT, "state": _TEXT, "epoch": _COUNT, "text": _TEXT},
}
# Fields that need not be there.
OPTIONAL: dict[str, dict[str, tuple[type, ...]]] = {
    "train": {"alarms": (list,)},
    "result": {"survivors": (dict,), "values": (dict,)},
    "data": {"source": _TEXT, "n_train": _COUNT, "n_test": _COUNT, "train_fingerprint": _TEXT, "extra": (dict,)},
}
PATHS = ("paper", "dataset", "run", "plan", "flags", "file")       # of which paths are made
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
LARGEST = 2 ** 53              # of counts: what floats, and other readers of JSON, hold exactly


def problems(kind: str, record: Any) -> list[str]:
    """What is wrong with a record of this kind (a key of FIELDS), one line each; empty if it is whole."""
    if not isinstance(record, Mapping):
        return [f"{kind} is not an object"]
    if found := list(_of_fields(kind, record)):
        return found
    if record.get("schema", SCHEMA) != SCHEMA:
        return [f"schema is {record['schema']}, this code reads {SCHEMA}"]
    inner: list[tuple[str, Any]] = []
    if kind == "train":
        inner = [*(("weights", value) for value in record["weights"].values()),
                 *(("alarm", value) for value in record.get("alarms", []))]
    elif kind == "run":
        inner = [("data", record["data"])]
        found = list(_of_run(record))
    elif kind == "eval":
        inner = [("data", record["data"]), *(("result", value) for value in record["results"])]
    elif kind == "result":
        counts = [record["robust"], *record.get("survivors", {}).values()]
        if record["n"] < 1 or not all(type(count) is int and 0 <= count <= record["n"] for count in counts):
            found.append(f"result {record['name']!r} counts {counts} robust images of {record['n']}")
    found += [problem for name, value in inner for problem in problems(name, value)]
    if kind == "eval" and not found and len({one["name"] for one in record["results"]}) < len(record["results"]):
        found.append("two results have one name")
    return found


def _of_fields(kind: str, record: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with single fields: missing, of another type, no name, no text of one line."""
    needed, optional = FIELDS[kind], OPTIONAL.get(kind, {})
    of = f" of result {_shown(record.get('name'))}" if kind == "result" else ""
    for key, types in (needed | optional).items():
        if key not in record:
            if key in needed:
                yield f"{key!r}{of} is missing"
            continue
        value = record[key]
        if not isinstance(value, types) or isinstance(value, bool):
            yield f"{key!r}{of} is {_shown(value)}, not {' or '.join(one.__name__ for one in types)}"
        elif isinstance(value, str) and key in PATHS and not SAFE_NAME.fullmatch(value):
            yield f"{key!r}{of} is {_shown(value)}, which is no plain name: letters, digits, '.', '_' and '-'"
        elif isinstance(value, str) and not value.isprintable():
            yield f"{key!r}{of} is {_shown(value)}, not one line of text"
        elif isinstance(value, int) and abs(value) > LARGEST:
            yield f"{key!r}{of} is {_shown(value)}, too large"


def _of_run(record: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong within the lists and objects of run.json that are used."""
    for key, values in (("quirks", record["quirks"]), ("needs", record["needs"].keys())):
        if not all(isinstance(value, str) and value.isprintable() for value in values):
            yield f"{key!r} is {_shown(record[key])}, not names"
    config = record["config"]
    if not isinstance(config.get("data", {}), Mapping):
        yield f"'config' has for 'data' {_shown(config['data'])}, not dict"
    model = config.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("name", model.get("builder")), str):
        yield f"'config' has for 'model' {_shown(model)}, which names no network"
    try:
        shlex.split(record["command"])
    except ValueError:
        yield f"'command' is {_shown(record['command'])}, which no shell can read"


def _shown(value: Any) -> str:
    """A value in a message, however large."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number of many digits"
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
