"""A run's folder: opened for one configuration, trained into, recorded.  Knows no paper.

results/<paper>/<dataset>/<run>/ gets the records, weights/<paper>/<dataset>/<run>/ the weights (not kept in git).
Of several processes (common.group) rank 0 writes and decides; all must see the same folders.
"""

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from common import determinism, group, locks, models, records
from common.changed import changed_files, last_started
from common.data import DataSet, hold_out, load
from common.engine import Engine
from common.environment import ROOT, begin, environment, portable, relative_command
from common.errors import UserError
from common.evaluation import Plan
from common.files import read_json, sha256_of, sweep, write_failure
from common.fit import TrainRecord

RESULTS, WEIGHTS, DATA = ROOT / "results", ROOT / "weights", ROOT / "data"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run of one paper: what it is called, what decides its numbers (`config`), and where its files are.

    config   every setting that decides the numbers, JSON-able, without paths and without the device; config["model"]
             is what `build_network` takes, config["data"] the data set's fingerprints
    needs    name of a run -> sha256 of the weights that were read of it
    """

    paper: str
    dataset: str
    run: str
    method: str
    variant: str
    budget: str
    seed: int
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    quirks: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    spec: str | None = None
    results: Path = RESULTS
    weights_root: Path = WEIGHTS

    @property
    def folder(self) -> Path:
        """Where the records go."""
        return records.folder_of(self.results, self.paper, self.dataset, self.run)

    @property
    def weights(self) -> Path:
        """Where the weights go."""
        return records.folder_of(self.weights_root, self.paper, self.dataset, self.run)

    @property
    def config_sha256(self) -> str:
        return records.config_sha256(self.config)

    def check_free(self) -> None:
        """Raise UserError if the folder holds a run of another configuration or on other files, naming what differs,
        or if a file is in the place of a folder.

        A run that make made from an older plan is no such case: `open` moves it out of the way.
        """
        for flag, folder in (("--results", self.folder), ("--weights", self.weights)):
            there = next((path for path in (folder, *folder.parents) if path.exists()), None)
            if there is not None and not there.is_dir():
                raise UserError(f"{flag}: {portable(str(there))} is a file, and a folder is needed there: name another "
                                "folder, or move the file away", code="E-OUT")
        there = self._other()
        if there is None or self._outdated(there):
            return
        other, ours = flat(there.get("config", {})), flat(portable(dict(self.config)))
        if told := changed_files(other, ours, self.data, self.needs, there.get("needs", {})):
            raise UserError(f"{portable(str(self.folder))} was started on other files, the last time on "
                            f"{last_started(self.folder / 'run.json')}: {'; '.join(told)}. Put the old ones back and "
                            "type the same command again, or give a run on the new ones another name with --run. "
                            "Nothing was changed", code="E-DATA-CHANGED")
        pairs = {key: (other.get(key, "unset"), ours.get(key, "unset")) for key in other.keys() | ours.keys()}
        names = sorted(key for key, (theirs, mine) in pairs.items() if theirs != mine)
        shown = "; ".join(f"{key} {pairs[key][0]!r} there, {pairs[key][1]!r} here" for key in names[:4])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise UserError(f"{portable(str(self.folder))} holds a run of another configuration ({shown}{more}): "
                        "give this one another name with --run, or move that folder away", code="E-RUN-OTHER-CONFIG")

    def _other(self) -> dict[str, Any] | None:
        """The run.json of another configuration that stands in the folder, or None."""
        path = self.folder / "run.json"
        there = records.read_record(path, "run") if path.exists() else None
        return None if there is None or there.get("config_sha256") == self.config_sha256 else there

    def _outdated(self, there: Mapping[str, Any]) -> bool:
        return self.spec is not None and there.get("spec_sha256") not in (None, self.spec)

    def _retire(self, there: Mapping[str, Any]) -> None:
        """Move records and weights of an older plan beside the weights, so that nothing is lost."""
        stem = f"{self.run}.before-{there['config_sha256'][:8]}"
        tries = (self.weights.with_name(stem if number == 1 else f"{stem}-{number}") for number in count(1))
        attic = next(path for path in tries if not (path / "records").exists())
        # The records last: a kill in between leaves run.json, so that the next call goes on with the move.
        for old, target in ((self.weights, attic / "weights"), (self.folder, attic / "records")):
            if old.exists():
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    old.rename(target)
                except OSError as error:
                    raise write_failure(target, error) from error
        print(f"{self.run}: its plan has changed; the older records and weights are in {portable(str(attic))}")

    def finished(self) -> bool:
        """Whether the run is trained, with this configuration, and its weights are still here."""
        crew = group.current()
        return crew.from_first(crew.leads and self._finished())

    def _finished(self) -> bool:
        path = self.folder / "train.json"
        if not path.exists():
            return False
        record = records.read_record(path, "train")
        files = [(self.weights / entry["file"], entry["sha256"]) for entry in record["weights"].values()]
        return (record["config_sha256"] == self.config_sha256
                and all(file.exists() and sha256_of(file) == digest for file, digest in files))

    def adopt(self) -> None:
        """Let the records of this finished run name the hash that make asks for, where it was trained by hand."""
        if not group.current().leads:
            return
        for kind, write in (("run", records.write_run), ("train", records.write_train)):
            record = records.read_record(self.folder / f"{kind}.json", kind)
            if self.spec is not None and record["spec_sha256"] != self.spec:
                write(self.folder, {**record, "spec_sha256": self.spec})

    def claim(self) -> None:
        """Keep every other process from training or evaluating this run until `close`; UserError (E-BUSY) where one
        is at it."""
        if group.current().leads:
            locks.take(lock_of(self.weights), portable(str(self.weights)))

    def open(self, network: nn.Module) -> None:
        """Claim the run and write run.json, which says what is to be trained; UserError if the folder holds another
        run, or another process works in it."""
        begin()
        crew = group.current()
        if crew.leads:
            self._open(network)
        crew.barrier()

    def _open(self, network: nn.Module) -> None:
        self.check_free()
        self.claim()
        self.check_free()                # another process may have been faster
        for folder in (self.folder, self.weights):
            sweep(folder)
        if (there := self._other()) is not None:
            self._retire(there)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        # Those of a network that does more than classify: no logit depends on them.
        beside = getattr(network, "beside_logits", 0)
        deterministic = self._deterministic()
        records.write_run(self.folder, {
            **self.identity, "method": self.method, "variant": self.variant, "budget": self.budget, "seed": self.seed,
            "config": dict(self.config), "config_sha256": self.config_sha256, "spec_sha256": self.spec,
            "quirks": list(self.quirks), "needs": dict(self.needs), "data": dict(self.data),
            "model": {**self.config["model"], "parameters": parameters,
                      **({"parameters_beside": beside} if beside else {})}, "command": self._command(),
            **({"deterministic": True} if deterministic else {})})

    def _deterministic(self) -> bool:
        """Whether this process and all that trained the run before it compute deterministically."""
        if not determinism.is_on():
            return False
        path = self.folder / "run.json"
        if path.exists() and not read_json(path).get("deterministic", False):
            print(f"note: {self.run} was begun without --deterministic, and its record will say so; to begin it anew, "
                  f"move {portable(str(self.folder))} and its weights away", file=sys.stderr)
            return False
        return True

    def _command(self) -> str:
        """What began the run: a command that goes on with it need not say its flags."""
        path = self.folder / "run.json"
        return records.read_record(path, "run")["command"] if path.exists() else relative_command()

    def close(self, trained: TrainRecord, engine: Engine, *, selected_on: str | None = None) -> None:
        """Write train.json: its presence says that training ended.  Others may then work in the folder."""
        crew = group.current()
        if crew.leads:
            self._close(trained, engine, selected_on)
            locks.free(lock_of(self.weights))
        crew.barrier()

    def _close(self, trained: TrainRecord, engine: Engine, selected_on: str | None) -> None:
        described = engine.describe()
        described["deterministic"] &= read_json(self.folder / "run.json").get("deterministic", False)
        records.write_train(self.folder, {
            **self.identity, "spec_sha256": self.spec, "config_sha256": self.config_sha256, "weights": trained.weights,
            "epochs": trained.epochs, "steps": trained.steps, "seconds": round(trained.seconds, 2),
            "selected_on": selected_on, "final": trained.final, "alarms": trained.alarms,
            "environment": {**environment(described["device_name"], engine.precision, described["torch_threads"]),
                            "engine": described}})

    @property
    def identity(self) -> dict[str, Any]:
        return {"paper": self.paper, "dataset": self.dataset, "run": self.run}


def lock_of(weights: Path, plan: Plan | None = None) -> Path:
    """The lock of the run whose weights are in the folder, or of its evaluation by a plan."""
    return weights.with_name(f".{weights.name}{f'.{plan.name}' if plan else ''}.lock")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: leaf for key, inner in value.items()
            for name, leaf in flat(inner, f"{prefix}.{key}" if prefix else key).items()}


def load_data(spec: str, data_dir: str | None, *, n_train: int | None = None, held_out: float = 0.0) -> DataSet:
    """The data set that a user names, from the repository's data/ unless told otherwise; the first n_train images.

    held_out: this share of the training images takes the place of the test images, which are then not looked at.
    """
    with group.current().machine_by_machine():
        data = load(spec, data_dir=Path(data_dir) if data_dir else DATA).take(train=n_train)
    if not held_out:
        return data
    train, held = hold_out(data.train, size=max(1, round(held_out * len(data.train))))
    return replace(data, train=train, test=held, source=f"{data.source}; held-out training images as test")


def build_network(description: Mapping[str, Any]) -> nn.Module:
    """The network that config["model"] describes: {"name", "classes", ...} for `common.models.build`, or
    {"builder": "PAPER.network:build", ...} for a network that only one paper has.  Any other builder is a UserError:
    the description may stand in a record of anybody's, and what it names would be run.  So are settings that are
    lacking or that the network does not have.
    """
    options = dict(description)
    builder = options.pop("builder", None)
    if builder is None:
        build = models.build
    else:
        package, _, function = str(builder).partition(".")
        if function != "network:build" or not (ROOT / package / "network.py").is_file():
            raise UserError(f"a record says that {builder} builds the network; it is none of this repository's and was "
                            f"not run: where you trust it, name it yourself with --model {builder}", code="E-BUILDER")
        build = importlib.import_module(f"{package}.network").build
    try:
        inspect.signature(build).bind(**options)
    except TypeError as error:
        raise UserError(f"a record's description of its network is not whole ({error}): restore the record from git, "
                        "or train the run again", code="E-RECORD") from error
    return build(**options)
