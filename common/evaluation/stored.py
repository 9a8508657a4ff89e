"""What is known of a checkpoint's clean verdicts before it is evaluated: from other records of its run, or a file's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import records
from common.environment import portable
from common.evaluation.preflight import Stored
from common.files import read_json


def of_run(folder: Path, run: Mapping[str, Any], digest: str, data: Mapping[str, Any]) -> Stored | None:
    """The clean verdicts of the same weights (sha256 of their file) on the same images in any record of the run.

    The longest of them; None where there are none.
    """
    # Records that are older than the key: a quirk of theirs may have changed the images.
    older = any("crop" in quirk or "half" in quirk for quirk in run["quirks"])
    found = None
    for evaluation in records.read_run(folder).evals.values():
        record = evaluation.record
        if (record["weights_sha256"] != digest or record.get("changed_images", older)
                or record["data"]["test_fingerprint"] != data["test_fingerprint"]):
            continue
        for name, result in evaluation.results.items():
            if result["kind"] == "clean" and (found is None or result["n"] > len(found.flags)):
                found = Stored(portable(str(evaluation.path)), flags=evaluation.arrays[name])
    return found


def beside(file: Path) -> Stored | None:
    """The clean accuracy that the JSON beside a checkpoint states as "clean_acc", in percent, as RobustBench writes it.

    None where there is no such file, or it says nothing of the kind.
    """
    path = Path(file).with_suffix(".json")
    content = read_json(path) if path.exists() else None
    try:
        stated = float(content["clean_acc"])
    except (TypeError, KeyError, ValueError):
        return None
    return Stored(path.name, accuracy=stated / 100) if 0 <= stated <= 100 else None
