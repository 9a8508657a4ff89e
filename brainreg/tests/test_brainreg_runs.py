"""The runs behind the paper's figures: the released protocol at budget full, flags that the script knows, the table."""

import csv
import dataclasses
import io

import pytest

from brainreg import flags, plans
from brainreg.runs import TABLE, plan_of_run, runs
from brainreg.runs_budgets import BUDGETS, SOURCE_SEED, TARGETS, shape_of
from brainreg.runs_cost import passes
from brainreg.runs_variants import variants
from brainreg.settings import SOURCES, Settings, run_name, usual
from brainreg.tests.brainreg_records import SOURCE, record
from common.environment import ROOT
from common.errors import UserError
from common.records import read_run, read_runs
from common.report import build
from common.reported import read
from common.runs import check, spec_hashes
from scripts.make_rules import Folders, rules
from scripts.make_rules import plan_steps as steps_of

ROWS = {"mnist": ("mnist", "fashion-mnist"), "fashion-mnist": ("fashion-mnist", "mnist"),
        "cifar10": ("cifar10", "cifar100", "imagenet"), "cifar100": ("cifar100", "cifar10", "imagenet")}
EPOCHS = {"mnist": 20, "fashion-mnist": 20, "cifar10": 40, "cifar100": 60}
ALL = [(dataset, budget) for dataset in TARGETS for budget in BUDGETS]


def planned(dataset="mnist", budget="short", seeds=(0,), **more):
    found = runs(dataset=dataset, budget=budget, seeds=seeds, **more)
    check(found)
    return found


def words(found):
    """Names without budget and seed."""
    return [run.name.rpartition("_")[0].rpartition("_")[0] for run in found]


def settings(run) -> Settings:
    return flags.settings_of(flags.parse([*run.argv, *run.place, "--run", run.name, "--spec", "hash"]))


@pytest.mark.parametrize("dataset", TARGETS)
def test_full_is_the_released_protocol_with_the_papers_alpha_and_threshold(dataset):
    asked = ("unregularised", *ROWS[dataset])
    source, base, *regularised = planned(dataset, "full", methods=asked)
    assert [run.seed for run in (source, base)] == [SOURCE_SEED, 0]
    common = {"task": dataset, "epoch_num": EPOCHS[dataset], "quirks": ("init-forward", "pair-bn"),
              "archi": "resnet34" if dataset == "cifar100" else "resnet18"}
    assert settings(source) == Settings(**common, seed=SOURCE_SEED) and settings(base) == Settings(**common)
    for run, images in zip(regularised, ROWS[dataset], strict=True):
        alpha, threshold = {("mnist", "mnist"): (4, 0.2), ("fashion-mnist", "mnist"): (10, 0.4)}.get(
            (dataset, images), (10, 0.8))
        assert settings(run) == Settings(**common, reg_data=images, reg_alpha=alpha, reg_thresh=threshold)
        assert [plan.plan for plan in run.plans][:2] == ["paper-brainreg", "small-eps-10000-1000"]
    assert len({run.seed for run in runs(dataset=dataset, budget="full")} - {SOURCE_SEED}) == 7


@pytest.mark.parametrize(("dataset", "budget"), ALL)
def test_every_run_is_what_its_flags_say(dataset, budget):
    known = variants(TARGETS[dataset], shape_of(dataset, budget))
    found = planned(dataset, budget, methods=tuple(known))
    assert len(found) == len(known) + 1 > 40
    for run in found:
        one = settings(run)
        if run.seed == 0:
            wanted = next(each.settings for each in known.values() if each.key == (run.method, run.variant))
            assert one == dataclasses.replace(wanted, quirks=one.quirks, precision=one.precision)
        assert run_name(one, budget) == run.name and (one.method, one.variant) == (run.method, run.variant)
        assert (run.method, run.variant) in TABLE.labels()
        assert "--attack False" in " ".join(run.argv)           # make judges by itself
        for judgement in run.plans:
            assert judgement.checkpoint == "best" and plans.plan_named(judgement.plan, one, source=SOURCE)


def test_every_network_is_attacked_from_one_that_is_not_itself():
    found = planned("mnist", seeds=(0, 1), methods=("unregularised", "mnist"))
    source, *others = found
    assert source.name == f"unregularised_short_s{SOURCE_SEED}" and not source.plans and not source.needs
    assert words(others) == ["unregularised", "mnist"] * 2
    for run in others:
        assert run.needs == (source.name,) and run.plans[0].reads == ((source.name, "best"),)
        assert run.argv[run.argv.index("--transfer_id") + 1] == source.name
    assert TABLE.sources == (SOURCE_SEED,)
    with pytest.raises(UserError, match=f"SEEDS={SOURCE_SEED}: that seed's network gives the images of transferred"):
        runs(dataset="mnist", budget="short", seeds=(1, SOURCE_SEED))


def test_a_source_whose_weights_are_gone_is_trained_again_for_an_evaluation(tmp_path):
    found = planned("mnist", methods=("mnist",))
    hashes, folders = spec_hashes(found), Folders("brainreg", "mnist")
    for run in found:
        path = tmp_path / folders.record(run.name)
        path.parent.mkdir(parents=True)
        weights = tmp_path / folders.weights(run.name) / "best.pt"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"w")
        digest = "50e721e49c013f00c62cf59f2163542a9d8df02464efeb615d31051b0fddc326"
        path.write_text(f'{{"spec_sha256": "{hashes[0][run.name]}", '
                        f'"weights": {{"best": {{"file": "best.pt", "sha256": "{digest}"}}}}}}')
    assert [bool(step.why) for step in steps_of(found, folders, tmp_path)][:2] == [False, False]
    (tmp_path / folders.weights(found[0].name) / "best.pt").unlink()
    first, *_ = steps_of(found, folders, tmp_path)
    assert first.run.seed == SOURCE_SEED and "mnist_short_s0, paper-brainreg-1000-100 needs them" in first.why


def test_autoattack_is_of_the_first_seed_whatever_seeds_are_asked_for():
    def small(**more):
        return {run.seed: run.plans[1].plan for run in planned(methods=("unregularised",), **more)[1:]}

    assert small(seeds=(0, 2)) == {0: "small-eps-500-20", 2: "small-eps-500-0"}
    assert small(seeds=(2,)) == {2: "small-eps-500-0"}
    gpu = planned("cifar10", "gpu", methods=("unregularised",))[1]
    assert [plan.plan for plan in gpu.plans] == ["paper-brainreg-10000-200", "small-eps-1000-200",
                                                 "corruptions-brainreg-1000"]


def test_methods_name_rows_and_ablations():
    def asked(*methods, dataset="cifar10", budget="full"):
        return [word.replace("-resnet34", "") for word in words(planned(dataset, budget, methods=methods))[1:]]

    assert asked("imagenet", "unregularised") == ["unregularised", "imagenet"]
    assert asked("N") == ["cifar10", "cifar10-n100", "cifar10-n1000"]
    assert asked("imagenet-k") == ["imagenet", "imagenet-k4", "imagenet-k8", "imagenet-k32"]
    assert asked("Thresholds", dataset="mnist") == ["mnist", "mnist-th0.4", "mnist-th0.6", "mnist-th0.8"]
    assert asked("ranges", dataset="cifar100") == [
        "cifar100", *(f"cifar100-{kind}" for kind in ("low", "high", "positive", "negative", "double0.1"))]
    assert asked("plain", "imagenet-plain") == ["cifar10-plain", "imagenet-plain"]
    assert asked("FashionMNIST-N", "fashion_mnist-k4", dataset="mnist") == [
        f"fashion-mnist{mark}" for mark in ("", "-n100", "-n1000", "-k4")]
    assert asked("N", budget="smoke") == ["cifar10-n100"]
    for word in ("PGD-AT", "cifar10-k3", "svhn-N"):
        with pytest.raises(UserError, match=f"unknown method '{word}': there are unregularised; cifar10, .*10-n1000,"):
            asked(word)


@pytest.mark.parametrize(("dataset", "budget", "said"), [
    ("svhn", "short", "no data set 'svhn' at budget short: there are mnist, fashion-mnist, cifar10, cifar100 at smoke"),
    ("mnist", "quick", "at budget quick: .* at smoke, short, gpu, full")])
def test_what_there_is_not_is_one_clear_line(dataset, budget, said):
    with pytest.raises(UserError, match=said):
        runs(dataset=dataset, budget=budget)


def test_imagenet_runs_where_its_images_are_or_where_it_is_asked_for(tmp_path, capsys):
    assert "imagenet" not in words(planned("cifar10", data_dir=str(tmp_path)))
    assert f"cifar10 regularised on ImageNet is left out: there is no {tmp_path}/imagenet; METHODS=imagenet" in (
        capsys.readouterr().err)
    assert "imagenet" in words(planned("cifar10", data_dir=str(tmp_path), methods=("imagenet",)))
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet.npz").touch()
    for place in ({"data_dir": str(tmp_path)}, {"data": f"npz:{tmp_path}/{{}}.npz"}):
        assert words(planned("cifar10", **place))[1:] == ["unregularised", "cifar10", "cifar100", "imagenet"]
    assert capsys.readouterr().err == ""


def test_data_and_device_are_no_part_of_the_spec_and_braces_are_quoted():
    where = {"data": "npz:my dir/{}.npz", "data_dir": "d", "device": "cpu"}
    usual_, told = planned("mnist"), planned("mnist", **where)
    assert spec_hashes(usual_) == spec_hashes(told)
    first, regularised = told[0], told[2]
    assert first.place == ("--data", "npz:my dir/{}.npz", "--dataset_name", "mnist", "--data_dir", "d", "--device",
                           "cpu")
    assert regularised.plans[0].place == ("--data", "npz:my dir/mnist.npz", "--data_dir", "d", "--device", "cpu")
    text = rules(steps_of(told, Folders("brainreg", "mnist")), Folders("brainreg", "mnist"), "short")
    assert text.count("--data 'npz:my dir/{}.npz' ") == len(told)
    assert text.count("--data 'npz:my dir/mnist.npz' ") == sum(len(run.plans) for run in told)


def test_the_smallest_budget_is_of_digits_alone():
    for run in planned("cifar10", "smoke"):
        assert "--data digits" in " ".join(run.place)
        assert ("--reg_images digits" in " ".join(run.place)) == (run.method == "regularised")


# -- cost ------------------------------------------------------------------------------------------------------------

def test_what_an_image_costs():
    plain = Settings(task="cifar10")
    assert passes(plain) == 1
    own = dataclasses.replace(plain, reg_data="cifar100", reg_alpha=10)
    assert passes(own) == pytest.approx(1.5)                              # 32 images of pairs beside 64
    assert passes(dataclasses.replace(own, reg_batch_size=4)) == pytest.approx(1.125)
    assert passes(dataclasses.replace(own, reg_data="imagenet")) == pytest.approx(1 + 0.5 * 36 * 64 / 32 ** 2)
    short = [run.cost for run in planned("mnist", methods=("unregularised", "mnist"))[1:]]
    assert all(cost.images == 50_000 for cost in short)
    assert short[1].passes - short[0].passes == pytest.approx(0.5)
    assert short[0].passes == pytest.approx(1 + 11 * (1000 + 1000 + 1200) / 3 / 50_000)
    for dataset in TARGETS:
        total = sum(run.cost.total_gflop + sum(plan.cost.total_gflop for plan in run.plans)
                    for run in runs(dataset=dataset, budget="short"))
        assert total / 146 < 3600                                         # 700 images/s at width 16 and 32 pixels


# -- plans and the table ---------------------------------------------------------------------------------------------

def test_a_plan_takes_the_run_from_its_record(tmp_path):
    run = read_run(record(tmp_path, "mnist")).run
    found = plan_of_run("paper-brainreg-100-10", run).evaluators
    assert [(one.name, one.n) for one in found][::10] == [("clean", 100), ("Gaussian 0.5", 100), ("Uniform 0.5", 100),
                                                          ("SaltPepper 0.3", 100), ("TransferredFGSM 0.5", 100)]


@pytest.mark.parametrize("dataset", TARGETS)
def test_every_column_is_measured(dataset):
    names = {one.name for plan in ("paper-brainreg", "small-eps") for one in plans.plan_named(
        plan, Settings(task=dataset), source=SOURCE).evaluators}
    columns = TABLE.special_columns[dataset]
    assert {name for column in columns for name in column.over or (column.evaluator,)} == names
    assert [len(column.over) for column in columns if column.over] == [10, 10, 10, 10, 5]


def table_of(results, dataset="mnist"):
    listed = read(ROOT / "results" / "reported" / "brainreg.csv")
    built = build(TABLE, read_runs(results), listed, dataset, "short")
    main = {row[0]: dict(zip(built.grids[0].header, row, strict=True)) for row in built.grids[0].rows}
    return built, main, {row[:2]: row[2:] for row in built.grids[1].rows}


def test_ours_beside_the_curves_that_were_read_off(tmp_path):
    for seed in (0, 1):
        for word, gain in (("unregularised", 0), ("mnist", 0.2)):
            record(tmp_path, word, seed=seed, gain=gain, small=100, autoattack=20 if seed == 0 else 0)
    record(tmp_path, "unregularised", seed=SOURCE_SEED, judged=False)
    built, main, compared = table_of(tmp_path)
    base, ours = main["unregularised"], main["regularised on MNIST"]
    assert base["seeds"] == "0, 1" and ours["weights"] == "least cross-entropy on validation images"
    assert base["Gaussian 0.5 (n=200)"] == "26.00 ± 0.00 / 12.24 (r1)"
    assert ours["Gaussian 0.278 (n=200)"].endswith(" / 88.14 (r1)") and "/" not in ours["uniform 0.278 (n=200)"]
    assert ours["clean (n=200)"] == "85.00 ± 0.00"                         # MNIST's curve begins at 0.17
    assert "[" in ours["AutoAttack 0.1 (n=20)"] and "±" in ours["PGD-20 0.1 (n=100)"]
    assert main["regularised on MNIST, targets S^pixel"]["Gaussian 0.5 (n=200)"] == "— / 16.73 (r1)"
    difference = compared["regularised on MNIST − unregularised", "Gaussian 0.5"]
    assert difference[1:3] == ("0, 1", "+13.00 ± 0.00") and difference[3:5] == ("26, 26", "0, 0")
    assert compared["regularised on MNIST − unregularised", "Gaussian, mean"][3:] == ("—", "—", "—")
    assert ("regularised on MNIST − unregularised", "boundary, median x1e-3") not in compared
    notes = "\n".join(built.grids[0].notes)
    assert "Gaussian, mean: mean of the accuracies under Gaussian 0, Gaussian 0.0556, " in notes
    assert "times 1000." in notes and "digitised from raster figure, +-0.003" in notes and "read off" in notes


def test_boundary_medians_are_means_over_the_repeats_beside_the_posters(tmp_path):
    for word in ("unregularised", "cifar10", "imagenet-n1000", "cifar10-high"):
        folder = record(tmp_path, word, dataset="cifar10", gain=0.1)
    _, main, _ = table_of(tmp_path, "cifar10")
    column = "boundary, median x1e-3 (n=10)"
    told = {label: main[label][column].partition(" / ")[2] for label in main}
    assert told["unregularised"] == "2.79+-0.13 (r3)" and told["regularised on CIFAR-10"].startswith("5.98+-0.62")
    assert told["regularised on ImageNet, N = 1,000"].startswith("8.53") and told["regularised on ImageNet"]
    assert told["regularised on CIFAR-10, S_high"].startswith("5.31")
    results = read_run(folder).evals["paper-brainreg-200-10"].results.values()
    mean, each = plans.boundary_medians(results)
    assert len(each) == 5 and main["regularised on CIFAR-10, S_high"][column].startswith(f"{1000 * mean:.2f} / ")
    assert main["unregularised"]["clean (n=200)"].endswith(" / 87.93 (r1)")
    assert main["regularised on CIFAR-10"]["clean (n=200)"].endswith(" / 83.78 (r4)")           # of the FGSM curve


def test_a_resnet34s_numbers_stand_beside_a_resnet34_alone(tmp_path):
    record(tmp_path, "unregularised", dataset="cifar100")
    record(tmp_path, "imagenet", dataset="cifar100")
    _, main, compared = table_of(tmp_path, "cifar100")
    assert main["regularised on ImageNet, ResNet-34"]["Gaussian 0.1 (n=200)"].endswith(" / 11.79 (r1)")
    assert set(main) == {"unregularised, ResNet-34", "regularised on ImageNet, ResNet-34",
                         "regularised on ImageNet, targets S^pixel, ResNet-34"}
    assert {key[0] for key in compared} == {"regularised on ImageNet, ResNet-34 − unregularised, ResNet-34"}


def test_the_list_of_reported_numbers_is_whole_and_used():
    path = ROOT / "results" / "reported" / "brainreg.csv"
    listed = read(path)
    lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert len(listed) == len(lines) - 1 == len(set(listed)) == 499
    used = {name for row in TABLE.rows for name in row.reported}
    left = {one.method for one in listed if (one.method, one.variant) not in used
            and one.metric not in ("alpha", "Th") and not one.dataset.startswith("CIFAR-10-C")}
    # k, whose unit is in doubt, and one curve that the poster shows twice.
    assert {name.rpartition(" ")[2][:2] for name in left} == {"k=", "sl"} and len(left) == 9
    told = {(one.dataset.replace(" ", ""), one.metric): float(one.value) for one in listed
            if one.metric in ("alpha", "Th")}
    ours = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST",
            "imagenet": "ImageNet"}
    assert told == {(f"{ours[task]}-{ours[source]}", what): value for task, target in TARGETS.items()
                    for source in target.sources
                    for what, value in zip(("alpha", "Th"), usual(task, source), strict=True)}
    assert set(SOURCES.values()) == set(ours)


def test_targets_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for name in TARGETS:
        assert f"\nreproduce-brainreg-{name}: $(READY) ## " in makefile
        assert f"$(call reproduce,brainreg,{name})" in makefile


def test_runs_need_no_torch(run_without_torch):
    code = "from brainreg.runs import runs\nprint(len(runs(dataset='mnist', budget='full')))"
    assert run_without_torch(code) == "22\n"
