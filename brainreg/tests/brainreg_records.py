"""Records of brainreg runs that never were, for the tests of what reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from brainreg import plans
from brainreg.runs_budgets import SOURCE_SEED, TARGETS, shape_of
from brainreg.runs_variants import variants
from brainreg.settings import run_name
from common.evaluation.plans import Evaluator, Plan
from common.records import config_sha256, folder_of, write_eval, write_run, write_train
from common.tests.fabricate import DATA, MADE

SOURCE = "5" * 64                              # sha256 of the weights that give FGSM's images
CLEAN = 0.9


def record(results: Path, word: str, *, dataset: str = "mnist", budget: str = "short", seed: int = 0, gain: float = 0.0,
           n: int = 200, boundary: int = 10, small: int | None = None, autoattack: int = 0, corrupted: int = 0,
           similar: int = 0, judged: bool = True, config: dict[str, Any] | None = None) -> Path:
    """One finished run of METHODS' `word`; robustness falls with the strength, more slowly with `gain`.

    The plan of the paper on n images (boundary: its images), small-eps on `small`, corruptions on `corrupted`, each if
    it is asked for; similarities of `similar` images.
    """
    variant = variants(TARGETS[dataset], shape_of(dataset, budget))[word]
    settings = replace(variant.settings, seed=seed)
    name = run_name(settings, budget)
    folder = folder_of(results, "brainreg", dataset, name)
    weights = {key: {"file": f"{key}.pt", "sha256": (key * 32)[:64]} for key in ("last", "best")}
    # Validation images are drawn by the seed, so the training images differ.
    data = DATA | {"name": dataset, "train_fingerprint": f"{seed:064d}"}
    told = {**settings.config(), "low": 0.0, "high": 1.0, "model": {"name": settings.archi},
            "data": {"protocol": settings.task, "train_fingerprint": data["train_fingerprint"]}, **(config or {})}
    identity = {"paper": "brainreg", "dataset": dataset, "run": name, "spec_sha256": None}
    run = {**identity, "method": settings.method, "variant": settings.variant, "budget": budget, "seed": seed,
           "config": told, "config_sha256": config_sha256(told), "quirks": ["init-forward", "pair-bn"],
           "needs": {} if seed == SOURCE_SEED else {"source": SOURCE}, "data": data,
           "model": {"name": settings.archi, "parameters": 1}, "command": "python brainreg/train.py"}
    write_run(folder, run)
    write_train(folder, {**identity, "config_sha256": config_sha256(told), "weights": weights, "epochs": 10,
                         "steps": 790, "seconds": 100.0, "selected_on": "least cross-entropy on validation images",
                         "final": {}, "environment": MADE})

    def evaluate(plan: Plan) -> None:
        generator, flags, arrays, rows = np.random.default_rng(seed), {}, {}, []
        weak = {count: generator.permutation(count) / count for count in {one.n for one in plan.evaluators}}
        for one in plan.evaluators:
            flags[one.name] = weak[one.n] < accuracy(one, gain) - 1e-9
            more = {}
            if one.kind == "boundary":
                numbers = generator.gamma(4, (0.7 + 2 * gain) * 1e-3, one.n).astype(np.float32)
                arrays[one.name] = {"mean_square": numbers}
                more = {"values": {"mean_square": {"median": float(np.median(numbers))}, "failed": 0}}
            rows.append({"name": one.name, "kind": one.kind, "norm": one.norm, "eps": one.eps, "n": one.n, **more,
                         "settings": dict(one.settings), "robust": int(flags[one.name].sum()), "seconds": 1.0})
        write_eval(folder, {**identity, "plan": plan.name, "plan_sha256": "e" * 64, "checkpoint": "best", "chunk": 100,
                            "weights_sha256": weights["best"]["sha256"], "data": data, "seed": seed, "results": rows,
                            "environment": MADE, "command": "python -m scripts.evaluate"},
                   flags, np.arange(max(weak), dtype=np.int64), arrays)

    names = [f"paper-brainreg-{n}-{boundary}" if judged else "", f"small-eps-{small}-{autoattack}" if small else "",
             f"corruptions-brainreg-{corrupted}" if corrupted else ""]
    for plan in filter(None, names):
        evaluate(plans.plan_of_run(plan, run))
    if similar:
        np.savez_compressed(folder / "similarities.npz", **matrices(similar, settings.reg_thresh, seed))
    return folder


def accuracy(one: Evaluator, gain: float) -> float:
    """Of an evaluator: lower the stronger it is."""
    if one.kind == "corruption":
        return CLEAN - gain / 2 - (0.12 - 0.1 * gain) * one.setting("severity")
    top = {"pgd": 0.3, "autoattack": 0.25, "transferred-fgsm": 0.3}.get(one.kind, 0.4)
    return max(0.1, (CLEAN - gain / 4) * np.exp(-one.eps / (top * (1 + 3 * gain))))


def matrices(count: int, threshold: float, seed: int) -> dict[str, np.ndarray]:
    """What brainreg.observe writes, made up: after training the network's similarities are near the targets."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, 6)) + 2 * generator.choice([-1, 1], size=(count, 1))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pixel = vectors @ vectors.T
    target = (pixel > threshold).astype(float) - (pixel < -threshold)
    noise = [0.08 * (one + one.T) for one in generator.normal(size=(2, count, count))]
    found = {"pixel": pixel, "target": target, "before": np.clip(0.5 + 0.3 * pixel + noise[0] / 2, -1, 1),
             "after": np.clip(0.8 * target + noise[1], -1, 1)}
    return {"positions": np.arange(count)} | {key: value.astype(np.float32) for key, value in found.items()}
