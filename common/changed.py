"""A run that is gone on with: whether it is another configuration, or files that changed under it.  No torch here."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.environment import portable
from common.errors import UserError
from common.evaluation.plans import Plan
from common.files import read_json

WORDS = {"data.train_fingerprint": "training images or labels", "data.test_fingerprint": "test images or labels",
         "data.validation_fingerprint": "validation images or labels",
         "data.extra_fingerprint": "extra training images",
         "regularisation.fingerprint": "images whose pairs regularise", "teachers.robust": "robust teacher's weights",
         "teachers.standard": "standard teacher's weights", "pretrained": "weights that the run starts from"}
# What follows from the files above.
DERIVED = {"data.n_train", "regularisation.n", "low", "high"}
LIMITS = {"up_lim", "down_lim"}


def changed_files(there: Mapping[str, Any], here: Mapping[str, Any], data: Mapping[str, Any],
                  needs: Mapping[str, str], needed: Mapping[str, str]) -> list[str]:
    """What changed, one phrase each, where two flat configurations differ in the contents of files alone; else empty.

    data, needs: of the run as it is now (see `common.experiment.Experiment`), which name the files; needed: of the run
    that is there.  Weights of another name are another choice, not a file that changed.
    """
    differ = {key for key in there.keys() | here.keys() if there.get(key) != here.get(key)}
    if any(key not in there or key not in here for key in differ):
        return []
    base = here.get("limits_from")
    contents, limits = differ & WORDS.keys(), differ & LIMITS if base else set()
    if contents - {key for key in WORDS if "fingerprint" in key} and needs.keys() != needed.keys():
        return []
    if differ - contents - limits - (DERIVED if contents else set()):
        return []
    named = [f"{WORDS[key]}{_source(key, data, needs, here[key])}: sha256 {there[key][:12]} then, {here[key][:12]} now"
             for key in WORDS if key in contents]
    return named + [f"the run {base} of --limits_from: its curve gives {key} {here[key]}, and gave {there[key]}"
                    for key in sorted(limits)]


def _source(key: str, data: Mapping[str, Any], needs: Mapping[str, str], digest: str) -> str:
    """Which file it is, in brackets, as far as it is known."""
    if key == "data.extra_fingerprint":
        told = data.get("extra", {}).get("source")
    elif key.startswith("data."):
        told = data.get("source")
    else:
        told = next((name for name, other in needs.items() if other == digest), None)
    return f" ({told})" if told else ""


def check_corruptions(path: Path, plan: Plan, weights: str) -> None:
    """UserError where the record at `path` judged the same weights (sha256) by other files of corrupted images."""
    record = read_json(path) if path.exists() else {}
    if record.get("weights_sha256") != weights:
        return
    now = {one.name: one.setting("sha256") for one in plan.evaluators if one.kind == "corruption-file"}
    other = sorted({result["settings"]["corruption"] for result in record["results"]
                    if result["name"] in now and result["settings"]["sha256"] != now[result["name"]]})
    if other:
        raise UserError(f"{portable(str(path))} was measured on other files of corrupted images: {', '.join(other[:4])}"
                        f"{' ...' if len(other) > 4 else ''}.npy have changed since. Put the old ones back, or move "
                        "that record away to measure on the new ones. Nothing was changed", code="E-DATA-CHANGED")


def last_started(run_json: Path) -> str:
    """When a run was last started with what its run.json says: "2026-01-31 12:00 UTC"."""
    return datetime.fromtimestamp(run_json.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")
