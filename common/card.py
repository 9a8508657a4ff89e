"""A checkpoint's papers: RobustBench's model_info and a model card, from its records alone.  No torch here."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from common.errors import UserError
from common.records import EvalRecord, RunRecord
from common.stats import wilson

THREATS = {"linf": "Linf", "l2": "L2"}
FIELDS = ("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture",
          "eps", "clean_acc", "reported", "autoattack_acc")


class Paper(NamedTuple):
    """What a model_info says of the paper whose method a run follows."""

    title: str
    link: str = ""
    venue: str = ""


class Judged(NamedTuple):
    """One result of a record and the record that it stands in."""

    record: EvalRecord
    result: Mapping[str, Any]


def judged(run: RunRecord, checkpoint: str) -> list[Judged]:
    """Every result on the weights `checkpoint` as they are now, of all records of the run."""
    digest = run.train["weights"][checkpoint]["sha256"]
    return [Judged(record, result) for record in run.evals.values() if record.record["weights_sha256"] == digest
            for result in record.results.values()]


def chosen(found: list[Judged]) -> tuple[Judged | None, Judged | None]:
    """The clean accuracy and the AutoAttack (the standard version, in float32) of the most images; None where none is.

    AutoAttack of several radii: the one nearest 8/255 in L-inf, else 128/255 in L2.
    """
    clean = [one for one in found if one.result["kind"] == "clean" and not one.record.record.get("changed_images")]
    attacks = [one for one in found if one.result["kind"] == "autoattack"]
    usual = {"linf": 8 / 255, "l2": 128 / 255}
    attacks.sort(key=lambda one: (one.result["norm"] != "linf",
                                  abs(one.result["eps"] - usual.get(one.result["norm"], 0)), -one.result["n"]))
    return max(clean, key=lambda one: one.result["n"], default=None), attacks[0] if attacks else None


def percent(result: Mapping[str, Any]) -> str:
    """An accuracy as RobustBench writes it: 84.92."""
    return f"{100 * result['robust'] / result['n']:.2f}"


def eps_text(norm: str, eps: float) -> str:
    """A radius as RobustBench writes it: 8/255 in L-inf, 0.5 in L2."""
    share = 255 * eps
    if norm == "linf" and abs(share - round(share)) < 1e-6:
        return f"{round(share)}/255"
    return f"{eps:.6g}"


def architecture(model: Mapping[str, Any]) -> str:
    """A network's name as papers write it: WideResNet-28-10, PreActResNet-18; an unusual width is named."""
    name = model["name"]
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)(-swish)?", name):
        found = f"WideResNet-{match[1]}-{match[2]}" + (" (swish)" if match[3] else "")
    elif match := re.fullmatch(r"(preact|pre)?resnet(\d+)(-.*)?", name):
        found = {"preact": "PreActResNet", "pre": "PreResNet", None: "ResNet"}[match[1]] + f"-{match[2]}"
        found += f" ({match[3][1:]})" if match[3] else ""
    else:
        found = name
    width = model.get("width")
    return found if width in (None, 64) else f"{found}, width {width}"


def model_info(run: RunRecord, checkpoint: str, paper: Paper) -> dict[str, Any]:
    """RobustBench's model_info; accuracies in percent as text.  UserError where clean or AutoAttack is not measured."""
    clean, attack = chosen(judged(run, checkpoint))
    missing = [what for what, one in (("clean accuracy", clean), ("AutoAttack", attack)) if one is None]
    if missing:
        raise UserError(f"{run.name}: no record has the {' and the '.join(missing)} of its {checkpoint} weights: "
                        f"python scripts/evaluate.py {run.folder} --plan standard", code="E-NOT-JUDGED")
    extra = "extra_fingerprint" in run.run["config"].get("data", {})
    note = (f"{run.run['method']} {run.run['variant']}, budget {run.run['budget']}, seed {run.run['seed']}; clean on "
            f"the first {clean.result['n']}, AutoAttack on the first {attack.result['n']} test images; not the paper's "
            "own checkpoint")
    return {"link": paper.link, "name": paper.title, "authors": "a reproduction", "additional_data": extra,
            "number_forward_passes": 1, "venue": paper.venue, "architecture": architecture(run.run["config"]["model"]),
            "dataset": run.run["config"].get("data", {}).get("protocol", run.run["dataset"]),
            "eps": eps_text(attack.result["norm"], attack.result["eps"]), "clean_acc": percent(clean.result),
            "reported": percent(attack.result), "autoattack_acc": percent(attack.result), "footnote": note}


def problems(info: Mapping[str, Any]) -> list[str]:
    """What RobustBench could not read in a model_info; empty if it can."""
    found = [f"{key} is missing" for key in FIELDS if key not in info]
    for key in ("clean_acc", "reported", "autoattack_acc"):
        if key in info and not (isinstance(info[key], str) and re.fullmatch(r"\d{1,3}\.\d{2}", info[key])):
            found.append(f"{key} is {info[key]!r}, not a percentage as text")
    if not isinstance(info.get("additional_data", False), bool):
        found.append("additional_data is neither true nor false")
    return found


def card(run: RunRecord, checkpoint: str, paper: Paper, *, file: str, file_sha256: str, state_sha256: str) -> str:
    """The model card in Markdown: what it is, how it was made, every measurement with its interval, how to load it."""
    made, config, weights = run.run, run.run["config"], run.train["weights"][checkpoint]
    kept, rows = {"width": None, "activation": None} | dict(config["model"]), []
    for one in judged(run, checkpoint):
        result = one.result
        low, high = wilson(result["robust"], result["n"])
        size = f"{result['norm']} {eps_text(result['norm'], result['eps'])}" if result["eps"] else ""
        rows.append(f"| {result['name']} | {size} | {result['n']} | {percent(result)} | {100 * low:.1f} to "
                    f"{100 * high:.1f} | {one.record.plan} |")
    network = "".join(f"--{key} {kept[key]} " for key in ("width", "activation") if kept[key] is not None)
    network = f"--model {kept.get('name', kept.get('builder'))} {network}"
    source = f" ({paper.venue}) {paper.link}".replace(" ()", "") if paper.link else ""
    head = ["| measured | threat | images | % | 95% interval | plan |", "|---|---|---|---|---|---|"]
    table = [*head, *rows] if rows else ["Not evaluated."]
    return "\n".join([
        f"# {made['run']}", "",
        f"{architecture(config['model'])} on {made['dataset']}: {made['method']} {made['variant']}, after "
        f"*{paper.title}*{source}. A reproduction, not the authors' checkpoint.", "",
        "## Training", "",
        f"- command: `{made['command']}`",
        f"- budget {made['budget']}, seed {made['seed']}, {run.train['epochs']} epochs, {run.train['steps']} steps, "
        f"{run.train['seconds'] / 60:.0f} minutes on {run.train['environment']['device']}",
        f"- weights: {checkpoint}; selected on: {run.train['selected_on'] or 'nothing'}",
        f"- quirks of the released code that were on: {', '.join(made['quirks']) or 'none'}",
        f"- data: {made['data'].get('source', made['data']['name'])}; fingerprints "
        f"{made['data']['train_fingerprint'][:12]} (training), {made['data']['test_fingerprint'][:12]} (test)",
        f"- commit {run.train['environment']['commit']}", "",
        "## Measured", "", *table, "",
        "Images in [0,1]; the normalisation, if there is one, is the network's first layer. AutoAttack is the "
        "standard version of the official attacks, judged in float32.", "",
        "## File", "",
        f"- `{file}`, sha256 `{file_sha256}`; its tensors `{state_sha256}`; made from `{weights['file']}`, sha256 "
        f"`{weights['sha256']}`",
        f"- `python scripts/evaluate.py {file} {network}--data {made['dataset']} --plan standard`", "",
        "Made for research on robustness; it withstands nothing beyond the threat that it was measured under.", ""])
