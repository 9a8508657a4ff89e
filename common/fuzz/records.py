"""The readers of records, receipts and reported numbers as targets."""

import hashlib
import json
from pathlib import Path
from random import Random

import numpy as np

from common import records, reported
from common.evaluation.receipts import check_counts, digest, read_receipt
from common.evaluation.summaries import said
from common.fuzz import Target
from common.fuzz.mutations import VALUES, changed, damage, damage_json, damage_zip, rewrite
from common.tests.fabricate import fabricate

CSV = "source_class,paper,table,dataset,model,method,variant,norm,eps,metric,value,checkpoint,source\n" \
      "A,adarat,1,cifar10,resnet18,PGD-AT,plain,linf,8/255,clean,84.5,last,their table 1\n"


def make_run(folder: Path) -> None:
    fabricate(folder, metrics=[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}],
              accuracies={"clean": 0.8, "pgd-20": 0.5}, n=10)


def mutate_run(random: Random, folder: Path) -> None:
    """One of the files; a damaged file of flags sometimes with its right hash in the record."""
    run = next(folder.glob("*/*/*"))
    name = random.choice(("run.json", "train.json", "eval-adarat.json", "eval-adarat.json", "metrics.jsonl", "flags"))
    if name == "metrics.jsonl":
        lines = (run / name).read_bytes().splitlines(keepends=True)
        place = random.randrange(len(lines))
        lines[place] = damage_json(random, lines[place]) + random.choice((b"\n", b""))
        (run / name).write_bytes(b"".join(lines))
    elif name == "flags":
        rewrite(random, run / "flags-adarat.npz", damage_zip)
        if random.randrange(2):
            record = json.loads((run / "eval-adarat.json").read_text())
            record["flags_sha256"] = hashlib.sha256((run / "flags-adarat.npz").read_bytes()).hexdigest()
            (run / "eval-adarat.json").write_text(json.dumps(record))
    else:
        rewrite(random, run / name, damage_json)


def load_runs(folder: Path) -> None:
    """What reads records asks of them first."""
    for run in records.read_runs(folder):
        run.curve("loss")
        for record in run.evals.values():
            for name, result in record.results.items():
                record.numbers(name)
                [str(line) for line in said(result)]
            if not set(record.results) <= set(record.arrays):
                raise AssertionError("a result has no flags")


def make_receipt(folder: Path) -> None:
    arrays = {"clean": np.zeros((3, 3, 4, 4), np.uint8), "labels": np.arange(3), "flags/FGSM": np.ones(3, bool),
              "adversarial/FGSM": np.zeros((3, 3, 4, 4), np.float32)}
    meta = {"format": 1, "model": {"name": "small", "classes": 3}, "weights": {"file": "a.pt", "sha256": "0" * 64,
            "part": None}, "data": {}, "seed": 1, "state_sha256": "0" * 64, "plan": {}, "plan_sha256": "0" * 64,
            "evaluators": [{"name": "FGSM", "kind": "fgsm", "norm": "linf", "eps": 8 / 255, "n": 3, "robust": 3}],
            "arrays": {name: digest(array) for name, array in arrays.items()}}
    write_receipt(folder / "a.npz", meta, arrays)


def write_receipt(path: Path, meta: object, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, meta=np.array(json.dumps(meta)), **arrays)


def mutate_receipt(random: Random, folder: Path) -> None:
    """The file, or what it says, or an array with its right hash."""
    path = folder / "a.npz"
    if random.randrange(3) == 0:
        return rewrite(random, path, damage_zip)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    if random.randrange(2):
        meta = changed(random, meta)
    else:
        name = random.choice(sorted(arrays))
        array = arrays[name]
        arrays[name] = random.choice((array[:1], array[..., 0], array.astype(np.float64), array.astype("U3"),
                                      array.ravel(), array[:0], np.array(0)))
        meta["arrays"][name] = digest(arrays[name])
    write_receipt(path, meta, arrays)


def load_receipt(folder: Path) -> None:
    from common.evaluation.receipts import Changed

    try:
        meta, arrays = read_receipt(folder / "a.npz")
        check_counts(meta, arrays)
    except Changed:
        return                 # one line and exit status 1: what the reader is for


def mutate_csv(random: Random, folder: Path) -> None:
    path = folder / "a.csv"
    if random.randrange(2):
        return rewrite(random, path, damage)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    row = random.choice(lines)
    row[random.randrange(len(row))] = random.choice([str(value) for value in VALUES] + ["nan", '"', "a,b", "NA"])
    path.write_bytes("\n".join(",".join(line) for line in lines).encode(errors="replace"))


TARGETS = (
    Target("records", make_run, mutate_run, load_runs),
    Target("receipt", make_receipt, mutate_receipt, load_receipt),
    Target("reported", lambda folder: (folder / "a.csv").write_text(CSV), mutate_csv,
           lambda folder: reported.read(folder / "a.csv")),
)
