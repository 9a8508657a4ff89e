"""Records of runs that never were, for the tests of everything that reads records."""

from pathlib import Path
from typing import Any

import numpy as np

from common.records import append_metrics, config_sha256, folder_of, write_eval, write_run, write_train

DATA = {"name": "cifar10", "source": "torchvision", "train_fingerprint": "a" * 64, "test_fingerprint": "b" * 64,
        "n_train": 5000, "n_test": 10000, "classes": 10}
MADE = {"commit": "c" * 40, "dirty": False, "python": "3.11.7", "torch": "2.11.0", "device": "cpu",
        "precision": "bf16", "threads": 2, "processor": "a processor", "started": "2026-01-01T00:00:00+00:00"}


def result(name: str, robust: int, n: int, **settings: Any) -> dict[str, Any]:
    return {"name": name, "kind": name.split("-")[0], "norm": "linf", "eps": 8 / 255, "settings": settings,
            "robust": robust, "n": n, "survivors": {"clean": n}, "seconds": 1.5}


def fabricate(results: Path, *, method: str = "PGD-AT", variant: str = "plain", seed: int = 1, budget: str = "short",
              paper: str = "adarat", dataset: str = "cifar10", config: dict[str, Any] | None = None,
              metrics: list[dict[str, Any]] | None = None, accuracies: dict[str, float] | None = None,
              n: int = 200, weights: str = "d" * 64, judged: str | None = None, spec: str | None = None,
              data: dict[str, Any] | None = None, plan: str = "adarat", said: dict[str, dict[str, Any]] | None = None
              ) -> Path:
    """Write one finished run and, if `accuracies` (evaluator -> fraction) are given, its evaluation on n images.

    said: evaluator -> what its result says instead of the usual.
    """
    name = "-".join([method.lower(), *([variant] if variant != "plain" else [])]) + f"_{budget}_s{seed}"
    folder = folder_of(results, paper, dataset, name)
    config = {"seed": seed, "epochs": 10, "up_lim": 1.1, "down_lim": 0.4, "tao": 0.01, "model": {"name": "resnet18"},
              **(config or {})}
    identity = {"paper": paper, "dataset": dataset, "run": name, "spec_sha256": spec}
    write_run(folder, {**identity, "method": method, "variant": variant, "budget": budget, "seed": seed,
                       "config": config, "config_sha256": config_sha256(config), "quirks": ["momentum-reset"],
                       "needs": {}, "data": data or DATA, "model": {"name": "resnet18", "parameters": 701466},
                       "command": "python adarat/train/PGD_AT/train_cifar10.py"})
    for row in metrics or []:
        append_metrics(folder / "metrics.jsonl", row)
    write_train(folder, {**identity, "config_sha256": config_sha256(config),
                         "weights": {"last": {"file": "last.pt", "sha256": weights}}, "epochs": 10, "steps": 400,
                         "seconds": 600.0, "selected_on": None, "final": (metrics or [{}])[-1], "environment": MADE})
    if accuracies:
        generator = np.random.default_rng([seed, *method.encode(), *variant.encode()])
        flags = {}
        for key, accuracy in accuracies.items():
            flags[key] = np.zeros(n, np.bool_)
            flags[key][generator.permutation(n)[:round(accuracy * n)]] = True
        write_eval(folder, {**identity, "plan": plan, "plan_sha256": "e" * 64, "checkpoint": "last",
                            "weights_sha256": judged or weights, "data": data or DATA, "seed": 1, "chunk": 100,
                            "results": [{**result(key, int(kept.sum()), n), **(said or {}).get(key, {})}
                                        for key, kept in flags.items()],
                            "environment": MADE, "command": "python -m scripts.evaluate"},
                   flags, np.arange(n, dtype=np.int64))
    return folder


def curves(epochs: int, *, seed: int = 1, shift: float = 0.0, barrier: bool = False) -> list[dict[str, Any]]:
    """Metrics of a plausible training: clean accuracy keeps rising, robust accuracy peaks and falls."""
    generator, rows = np.random.default_rng(seed), []
    for epoch in range(1, epochs + 1):
        t = epoch / epochs
        clean_loss = 2.2 * np.exp(-3 * t) + 0.5 + 0.02 * generator.standard_normal()
        row = {"epoch": epoch, "step": 40 * epoch, "lr": 0.1, "loss": 2.0 - t, "clean_loss": clean_loss,
               "test_clean_accuracy": 0.8 - 0.5 * np.exp(-4 * t) + 0.01 * generator.standard_normal(),
               "test_pgd_accuracy": 0.5 - 0.3 * np.exp(-6 * t) - (0.1 - shift) * t * t
               + 0.008 * generator.standard_normal(), "n_validation": 1000, "seconds": 30.0}
        if barrier:
            gated = clean_loss >= 0.77
            row |= {"gated": float(gated), "barrier": 0.0 if gated else max(
                0.0, float(np.tan(np.pi / 2 * (clean_loss - 0.4) / 0.7))) ** 1.01}
        rows.append({key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()})
    return rows
