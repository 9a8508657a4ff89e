"""Export a run's checkpoint for others: python scripts/export.py results/PAPER/DATA/RUN --out FOLDER

Writes RUN.safetensors, RUN.json (RobustBench's model_info) and RUN.md (a model card), then reads all of them again: the
same tensors, the same logits, the same numbers.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.card import Paper, card, model_info, problems
from common.environment import ROOT, portable
from common.errors import UserError, exit_cleanly
from common.files import read_json, sha256_of, write_json, write_text
from common.flags import Parser
from common.records import RunRecord, read_run

PAPERS = {
    "adarat": Paper("Reconcile Accuracy and Robustness by Adaptive Ratio Adversarial Training"),
    "dyart": Paper("Exploring and Exploiting Decision Boundary Dynamics for Adversarial Robustness",
                   "https://arxiv.org/abs/2302.03015", "ICLR 2023"),
    "rpat": Paper("Facilitating Smooth Perception Change for Accuracy-Robustness Trade-Off in Adversarial Training",
                  "https://arxiv.org/abs/2508.02186", "ICCV 2025"),
    "brainreg": Paper("A Brain-Inspired Regularizer for Adversarial Robustness", "https://arxiv.org/abs/2410.03952"),
}


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python scripts/export.py", description=__doc__.splitlines()[0].split(":")[0] + ".")
    parse.add_argument("run", type=Path, help="results/PAPER/DATA/RUN")
    parse.add_argument("--out", type=Path, required=True, help="the folder for the three files")
    parse.add_argument("--checkpoint", default="last", help="last, best, average, ...")
    parse.add_argument("--weights", type=Path, default=ROOT / "weights", help="folder of the weights of runs")
    return parse


def weights_of(run: RunRecord, checkpoint: str, weights: Path) -> Path:
    """The run's file of weights; UserErrors: not trained, no such weights, not here, not the recorded ones."""
    if run.train is None:
        raise UserError(f"{run.name} is not trained to its end: type its command again: {run.run['command']}",
                        code="E-NOT-TRAINED")
    if checkpoint not in run.train["weights"]:
        raise UserError(f"{run.name} has no checkpoint {checkpoint!r}: there are {', '.join(run.train['weights'])}",
                        code="E-RUN-CHECKPOINT")
    entry = run.train["weights"][checkpoint]
    file = weights / run.run["paper"] / run.run["dataset"] / run.name / entry["file"]
    if not file.exists():
        raise UserError(f"the weights {portable(str(file))} are not here (weights are not kept in git): train the run "
                        f"again: {run.run['command']}", code="E-WEIGHTS-MISSING")
    if sha256_of(file) != entry["sha256"]:
        raise UserError(f"{portable(str(file))} is not the file that train.json names: train the run again",
                        code="E-WEIGHTS-CHANGED")
    return file


def export(run: RunRecord, checkpoint: str, weights: Path, out: Path) -> list[Path]:
    """Write and check the three files; their paths."""
    file, paper = weights_of(run, checkpoint, weights), PAPERS.get(run.run["paper"], Paper(run.run["method"]))
    info = model_info(run, checkpoint, paper)
    if found := problems(info):
        raise ValueError(f"model_info of {run.name}: " + "; ".join(found))

    from common.checkpoint import load_weights
    from common.evaluation import weights_sha256
    from common.experiment import build_network
    from common.safetensor_files import write_tensors
    network = build_network(run.run["config"]["model"]).eval()
    load_weights(network, file)
    state = weights_sha256(network)
    paths = [out / f"{run.name}.{suffix}" for suffix in ("safetensors", "json", "md")]
    digest = write_tensors(paths[0], network.state_dict(), {
        "model": json.dumps(run.run["config"]["model"], sort_keys=True), "run": run.name, "state_sha256": state})
    write_json(paths[1], info)
    write_text(paths[2], card(run, checkpoint, paper, file=paths[0].name, file_sha256=digest, state_sha256=state))
    check(paths, network, run, info, digest)
    return paths


def check(paths: list[Path], network, run: RunRecord, info: dict, digest: str) -> None:
    """UserError if what stands in the files is not what was exported: tensors, logits, numbers."""
    import torch

    from common.checkpoint import load_weights
    from common.evaluation import weights_sha256
    from common.experiment import build_network
    again = build_network(run.run["config"]["model"]).eval()
    load_weights(again, paths[0])
    channels, *size = run.run["data"].get("image_shape", [run.run["config"]["model"].get("channels", 3), 32, 32])
    x = torch.rand(4, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alike = torch.equal(network(x), again(x))
    if weights_sha256(again) != weights_sha256(network) or not alike:
        raise UserError(f"{paths[0]} does not give the network back: remove it and export again", code="E-WRITE")
    if read_json(paths[1]) != info or digest not in paths[2].read_text(encoding="utf-8"):
        raise UserError(f"{paths[1]} or {paths[2]} is not what was written: export again", code="E-WRITE")


def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    for path in export(read_run(args.run), args.checkpoint, args.weights, args.out):
        print(portable(str(path)))
    print("read again: the same tensors, the same logits on 4 images, the same numbers")


if __name__ == "__main__":
    exit_cleanly(main)
