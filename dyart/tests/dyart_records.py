"""Records of DyART runs that never were, for the tests of what reads them."""

import json
from pathlib import Path

import numpy as np

from common.records import append_metrics, config_sha256, folder_of, write_eval, write_run, write_train
from common.tests.fabricate import DATA, MADE
from dyart.runs import EPSILONS
from dyart.settings import METHODS, run_name

ATTACKS = ("clean", "PGD-40", *(f"AutoAttack eps={eps}" for eps in EPSILONS))
CURVE = {"clean": 0.7, "PGD-40": 0.44, "AutoAttack eps=2": 0.6, "AutoAttack eps=4": 0.52, "AutoAttack eps=8": 0.4,
         "AutoAttack eps=12": 0.25, "AutoAttack eps=16": 0.12}


def shifted(shift: float) -> dict[str, float]:
    return {name: value + shift for name, value in CURVE.items()}


def record(results: Path, method: str, *, variant: str = "plain", seed: int = 1, budget: str = "short",
           dataset: str = "cifar10", accuracies: dict[str, float] | None = None, n: int = 1000, attacked: int = 200,
           epochs: int = 0, images: int = 0, needs: bool | None = None) -> Path:
    """One finished run; its evaluation if `accuracies` are given, metrics of `epochs`, dynamics of `images`.

    Images that withstand an attack withstand the weaker ones, and among the first `attacked` the shares are the same.
    """
    name = run_name(method, variant, budget, seed)
    folder = folder_of(results, "dyart", dataset, name)
    weights = {key: {"file": f"{key}.pt", "sha256": key * 10} for key in ("last", "average", "best")}
    config = {"seed": seed, "epochs": 10, "attack_eps": 8 / 255, "attack_step": 2 / 255, "attack": "linf-pgd",
              "pretrained": f"hash of seed {seed}", "data": {"protocol": "cifar10"}, "model": {"name": "small"}}
    needed = method == "DyART" if needs is None else needs
    identity = {"paper": "dyart", "dataset": dataset, "run": name, "spec_sha256": None}
    write_run(folder, {**identity, "method": method, "variant": variant, "budget": budget, "seed": seed,
                       "config": config, "config_sha256": config_sha256(config), "quirks": ["scalar-alpha"],
                       "needs": {f"clean_{budget}_s{seed}": "f" * 64} if needed else {}, "data": DATA,
                       "model": {"name": "small", "parameters": 1}, "command": "python dyart/train.py"})
    for row in curves(epochs, seed, shift=0.02 * METHODS.index(method) - 0.04 * (variant == "gn")):
        append_metrics(folder / "metrics.jsonl", row)
    write_train(folder, {**identity, "config_sha256": config_sha256(config), "weights": weights, "epochs": 10,
                         "steps": 400, "seconds": 600.0, "selected_on": "validation", "final": {}, "environment": MADE})
    if images:
        dynamics(folder, images, range(epochs + 1), seed, method)
    if accuracies:
        generator = np.random.default_rng(seed)
        weak = np.concatenate([generator.permutation(count) / count for count in (attacked, n - attacked)])
        flags = {key: (weak < value - 1e-9)[:attacked if key.startswith("Auto") else n]
                 for key, value in accuracies.items()}
        rows = [{"name": key, "kind": key.split()[0].lower(), "norm": "linf", "eps": 0.1, "settings": {},
                 "robust": int(kept.sum()), "n": len(kept), "seconds": 1.0} for key, kept in flags.items()]
        write_eval(folder, {**identity, "plan": f"paper-dyart-{n}-{attacked}", "plan_sha256": "e" * 64, "chunk": 100,
                            "checkpoint": "best", "weights_sha256": weights["best"]["sha256"], "data": DATA, "seed": 1,
                            "results": rows, "environment": MADE, "command": "python -m scripts.evaluate"},
                   flags, np.arange(n, dtype=np.int64))
    return folder


def curves(epochs: int, seed: int, shift: float = 0.0) -> list[dict[str, float]]:
    """Metrics of a plausible training."""
    noise = np.random.default_rng(seed).normal(0, 0.008, (epochs, 2))
    return [{"epoch": epoch, "val_clean_accuracy": float(0.7 - 0.4 * np.exp(-epoch / 3) + shift + noise[epoch - 1, 0]),
             "val_robust_accuracy": float(0.42 - 0.3 * np.exp(-epoch / 3) + shift - 0.004 * epoch
                                          + noise[epoch - 1, 1]),
             "n_val": 256, "n_test": 256} for epoch in range(1, epochs + 1)]


def dynamics(folder: Path, images: int, epochs: range, seed: int, method: str) -> None:
    """dynamics.npz as dyart/observe.py writes it: margins grow, AT's small ones are pushed down more often."""
    generator = np.random.default_rng([seed, len(method)])
    radius = np.abs(generator.normal(0, 1, (len(epochs), images))) * (2 + np.array(epochs)[:, None]) / 255
    wrong = generator.random((len(epochs), images)) < 0.6 - 0.03 * np.array(epochs)[:, None]
    lost = ~wrong & (generator.random(radius.shape) < 0.02)
    push = 0.4 if method == "DyART" else -0.2
    speed = generator.normal(push * np.exp(-radius * 255 / 6), 0.4, radius.shape) / 255
    speed[wrong | lost | (generator.random(radius.shape) < 0.1)] = np.nan
    radius[wrong], radius[lost] = 0, np.nan
    np.savez_compressed(folder / "dynamics.npz", epoch=np.array(epochs), radius=radius.astype(np.float32),
                        speed=speed.astype(np.float32), positions=np.arange(images), lr=np.full(len(epochs), 0.1),
                        about=np.array(json.dumps({"method": method, "norm": "linf"})))
