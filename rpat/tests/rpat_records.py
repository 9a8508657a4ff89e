"""Records of RPAT runs that never were, for the tests of what reads them."""

from pathlib import Path

import numpy as np

from common.records import append_metrics, config_sha256, folder_of, write_eval, write_run, write_train
from common.tests.fabricate import DATA, MADE
from rpat.settings import run_name
from rpat.sota_settings import METHODS as PART_TWO

ACCURACIES = {"clean": 0.7, "PGD-10": 0.46, "PGD-20": 0.44, "AutoAttack": 0.4}
PAIRS = ("clean-adversarial", "clean-middle", "middle-adversarial")


def moved(clean: float = 0.0, robust: float = 0.0) -> dict[str, float]:
    """ACCURACIES, clean and the attacked ones shifted."""
    return {name: value + (clean if name == "clean" else robust) for name, value in ACCURACIES.items()}


def record(results: Path, method: str, *, variant: str = "plain", seed: int = 1, budget: str = "short",
           dataset: str = "cifar10", accuracies: dict[str, float] | None = None, last: dict[str, float] | None = None,
           n: int = 1000, attacked: int = 200, epochs: int = 0, perceived: int = 0, fooled: float = 0.6,
           config: dict[str, object] | None = None) -> Path:
    """One finished run; evaluations of its best and of its last weights if `accuracies`, `last` are given, perception
    of `perceived` images (the fooled ones move `fooled` times as far), metrics of `epochs`.

    Images that withstand an attack withstand the weaker ones, and among the first `attacked` the shares are the same.
    """
    two = method in PART_TWO
    name = run_name(PART_TWO.get(method, method), variant, budget, seed)
    folder = folder_of(results, "rpat", dataset, name)
    kept = ("last", "average", "best", "best-online") if two else ("last", "best")
    weights = {key: {"file": f"{key}.pt", "sha256": (key * 10)[:64]} for key in kept}
    config = {"seed": seed, "epochs": 10, "epsilon": 8 / 255, "alpha": 2 / 255, "data": {"protocol": "cifar10"},
              "model": {"name": "small"}, **(config or {})}
    identity = {"paper": "rpat", "dataset": dataset, "run": name, "spec_sha256": None}
    write_run(folder, {**identity, "method": method, "variant": variant, "budget": budget, "seed": seed,
                       "config": config, "config_sha256": config_sha256(config), "quirks": ["trades-third-pass"],
                       "needs": {}, "data": DATA, "model": {"name": "small", "parameters": 1},
                       "command": "python rpat/benchmarks/train.py"})
    for row in curves(epochs, seed, "_wa" if two else "", variant == "rpat" or method == "RPAT++", fooled):
        append_metrics(folder / "metrics.jsonl", row)
    write_train(folder, {**identity, "config_sha256": config_sha256(config), "weights": weights, "epochs": 10,
                         "steps": 400, "seconds": 600.0, "selected_on": "PGD-10 on held-out training images",
                         "final": {}, "environment": MADE})

    def judged(plan: str, checkpoint: str, flags: dict[str, np.ndarray], arrays=None) -> None:
        rows = [{"name": key, "kind": key.split()[0].lower(), "norm": "linf", "eps": 0.1, "settings": {},
                 "robust": int(found.sum()), "n": len(found), "seconds": 1.0} for key, found in flags.items()]
        write_eval(folder, {**identity, "plan": plan, "plan_sha256": "e" * 64, "chunk": 100, "checkpoint": checkpoint,
                            "weights_sha256": weights[checkpoint]["sha256"], "data": DATA, "seed": 1, "results": rows,
                            "environment": MADE, "command": "python -m scripts.evaluate"},
                   flags, np.arange(max(map(len, flags.values())), dtype=np.int64), arrays)

    stem = f"paper-{'sotas' if two else 'rpat'}-{n}-{attacked}"
    for values, suffix, checkpoint in ((accuracies, "", "best"), (last, " last", "average" if two else "last")):
        if values:
            judged(stem + suffix.replace(" ", "-"), checkpoint, flags_of(values, suffix, n, attacked, seed, two))
    if perceived:
        generator = np.random.default_rng([seed, len(name)])
        found = {f"perception {what}": moves(generator, perceived, share, fooled)
                 for what, share in (("PGD-20", 0.45), ("noise", 0.7))}
        judged(f"perception-rpat-{perceived}", "best", {key: one["defended"] == 1 for key, one in found.items()}, found)
    return folder


def flags_of(values: dict[str, float], suffix: str, n: int, attacked: int, seed: int, two: bool
             ) -> dict[str, np.ndarray]:
    """Evaluator -> flags; part 2 has no PGD-10."""
    generator = np.random.default_rng(seed)
    weak = np.concatenate([generator.permutation(count) / count for count in (attacked, n - attacked) if count])
    return {key + suffix: (weak < value - 1e-9)[:attacked if key == "AutoAttack" else n]
            for key, value in values.items() if key != "PGD-10" or not two}


def moves(generator: np.random.Generator, n: int, share: float, fooled: float) -> dict[str, np.ndarray]:
    """Numbers per image as evaluator perception-... finds them: a share is defended."""
    defended = (generator.permutation(n) < share * n).astype(np.float32)
    whole = generator.gamma(2, 0.3, n) * np.where(defended == 1, 1, fooled)
    parts = {pair: whole * factor for pair, factor in zip(PAIRS, (1, 0.3, 0.27), strict=True)}
    return {pair: values.astype(np.float32) for pair, values in parts.items()} | {"defended": defended}


def curves(epochs: int, seed: int, average: str, rpat: bool, fooled: float) -> list[dict[str, float]]:
    """Metrics of a plausible training."""
    noise, rows = np.random.default_rng(seed).normal(0, 0.008, (epochs, 2)), []
    for epoch in range(1, epochs + 1):
        clean = 0.7 - 0.4 * np.exp(-epoch / 3) + 0.02 * rpat + noise[epoch - 1, 0]
        robust = 0.42 - 0.3 * np.exp(-epoch / 3) - 0.004 * epoch + 0.01 * rpat + noise[epoch - 1, 1]
        row = {"epoch": epoch, f"val{average}_clean_accuracy": clean, f"val{average}_pgd_accuracy": robust,
               "n_val": 256}
        if not average:
            row |= {f"test_mse_{group}_{pair}": factor * share * (0.8 - 0.6 * np.exp(-epoch / 4)) * (1 - 0.2 * rpat)
                    for group, factor in (("defended", 1.0), ("fooled", fooled))
                    for pair, share in zip(PAIRS, (1, 0.3, 0.27), strict=True)} | {"n_test": 250}
        rows.append({key: float(value) if key[:2] != "n_" and key != "epoch" else value for key, value in row.items()})
    return rows
