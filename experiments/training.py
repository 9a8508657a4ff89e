"""One training run of AdaRAT's barrier on RPAT's loss, by RPAT's recipe: settings in, records and weights out."""

import argparse
from pathlib import Path
from typing import Any

import torch

from adarat.limits import from_base_run
from adarat.method import Ratio
from common.engine import Engine
from common.experiment import RESULTS, WEIGHTS, Experiment, build_network
from common.seeds import fold
from experiments.flags import METHOD, VARIANT
from experiments.method import BarrierOnPerception
from experiments.runs import run_name
from rpat.flags import dataset_folder
from rpat.method import Perception
from rpat.settings import Settings
from rpat.training import SELECTED_ON, describe_network, load_images, make_batches, run_training, training_attack


def train(settings: Settings, args: argparse.Namespace) -> None:
    """Train as `settings` and the barrier's flags say; `args` says where things are and on what they run."""
    engine = Engine.choose(args.device, args.precision, deterministic=args.deterministic)
    images = load_images(settings, args)
    folder, budget = dataset_folder(args, settings.norm), args.budget or "custom"
    roots = {"results": Path(args.results) if args.results else RESULTS,
             "weights_root": Path(args.weights) if args.weights else WEIGHTS}
    up_lim, down_lim = args.up_lim, args.down_lim
    if args.limits_from:
        up_lim, down_lim = from_base_run(roots["results"] / "adarat" / folder / args.limits_from)
    barrier = {"up_lim": up_lim, "down_lim": down_lim, "tao": args.tao, "ratio_beta": args.ratio_beta,
               **({"limits_from": args.limits_from} if args.limits_from else {})}
    described = images.data.describe()
    config: dict[str, Any] = {
        **settings.config(), **barrier, "precision": engine.precision, "model": describe_network(settings, images.data),
        "data": {"protocol": settings.dataset,
                 **{key: described[key] for key in ("train_fingerprint", "test_fingerprint", "n_train")},
                 **({"validation_fingerprint": images.validation.fingerprint} if images.validation else {})}}
    experiment = Experiment(paper="experiments", dataset=folder, run=args.run or run_name(budget, settings.seed),
                            method=METHOD, variant=VARIANT, budget=budget, seed=settings.seed, config=config,
                            data=described, quirks=settings.quirks, spec=args.spec, **roots)
    experiment.check_free()
    if experiment.finished():
        experiment.adopt()
        print(f"{experiment.run} is already trained")
        return
    torch.manual_seed(fold(settings.seed, "init"))
    network = build_network(config["model"])
    batches = make_batches(settings, images.data.train.to(engine.device), engine)
    experiment.open(network)
    print(f"{experiment.run}: RPAT's loss behind AdaRAT's barrier (floor {down_lim}, ceiling {up_lim}) on "
          f"{described['source']}, {config['model']['name']}, {settings.epochs} epochs, {engine.precision} on "
          f"{engine.describe()['device_name']}")
    method = BarrierOnPerception(
        training_attack(settings),
        Ratio("adarat", args.ratio_beta, settings.epsilon, up_lim, down_lim, args.tao),
        Perception(settings.lam, settings.RA_ip_rate, settings.RA_start))
    trained = run_training(settings, experiment, network, images, batches, engine, method=method)
    selected = settings.selects and SELECTED_ON[settings.selects].format(settings.n_iters)
    experiment.close(trained, engine, selected_on=selected)
