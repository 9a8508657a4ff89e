"""What a command that looks into a network opens: the network with its weights, the test images, the device."""

import argparse
from typing import NamedTuple

from torch import nn

from common.checkpoint import load_weights
from common.data.grey import in_grey
from common.data.splits import Split
from common.engine import Engine
from common.environment import portable
from common.errors import UserError
from common.evaluation import subject
from common.evaluation.judging import judged
from common.evaluation.plans import Plan
from common.evaluation.preflight import check_data, examine, fits
from common.experiment import load_data
from common.files import sha256_of
from common.records import read_record


class Opened(NamedTuple):
    """name: of the run, file or function; said: a line on where it comes from."""

    name: str
    network: nn.Module
    test: Split
    engine: Engine
    said: str

    def findings(self, plan: Plan) -> list[str]:
        """What the preflight says of the network, without refusing; UserError where the plan cannot run at all."""
        device = self.engine.device
        with judged(self.network.to(device), device) as network:
            classes = fits(network, self.test, plan, device)
            return [str(finding) for finding in examine(network, self.test, plan, device, classes)]


def open_subject(args: argparse.Namespace) -> Opened:
    """What the flags of `subject.add_subject_flags` and `subject.add_network_flags` name."""
    found = subject.find(args.subject, args.checkpoint)
    engine = Engine.choose(args.device, "fp32")
    if found.folder is not None:
        return open_run(found, args, engine)
    if args.data is None:
        raise UserError("--data: say on which data set (cifar10, ..., npz:FILE, folder:DIR); only a run of ours knows",
                        code="E-FLAG-MISSING")
    data = load_data(args.data, args.data_dir)
    model = {"builder": found.function} if found.function else subject.model_of_flags(
        args, data.image_shape[0], data.classes)
    network = subject.built(model, trusted=True)
    said = str(load_weights(network, found.file, part=args.part)) if found.file else found.function
    name = found.file.stem if found.file else found.function.replace(":", "-")
    return Opened(name, engine.place(network.eval()), data.test, engine, f"{portable(said)}; {data.source}")


def open_run(found: subject.Subject, args: argparse.Namespace, engine: Engine) -> Opened:
    """A run of ours, its recorded weights and data."""
    run = read_record(found.folder / "run.json", "run")
    kept = read_record(found.folder / "train.json", "train")["weights"]
    if found.checkpoint not in kept:
        raise UserError(f"{run['run']} has no checkpoint {found.checkpoint!r}: there are {', '.join(kept)}",
                        code="E-RUN-CHECKPOINT")
    file = args.weights / run["paper"] / run["dataset"] / run["run"] / kept[found.checkpoint]["file"]
    if not file.exists():
        raise UserError(f"the weights {portable(str(file))} are not here (weights are not kept in git): train the run "
                        f"again: {run['command']}", code="E-WEIGHTS-MISSING")
    if sha256_of(file) != kept[found.checkpoint]["sha256"]:
        raise UserError(f"{portable(str(file))} is not the file that train.json names: train the run again",
                        code="E-WEIGHTS-CHANGED")
    usual = run["config"].get("data", {}).get("protocol", run["dataset"])
    data = load_data((args.data or usual).replace("{}", usual), args.data_dir)
    if run["config"]["model"].get("channels") == 1:
        data = in_grey(data)
    check_data(data.describe(), run["data"], "the data set that the run was trained on")
    network = subject.built(run["config"]["model"])
    load_weights(network, file)
    said = f"{portable(str(found.folder))}, {found.checkpoint} weights, sha256 {sha256_of(file)[:12]}; {data.source}"
    return Opened(run["run"], engine.place(network.eval()), data.test, engine, said)
