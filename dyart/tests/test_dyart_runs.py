"""The runs of DyART's tables: the released protocol at budget full, flags that train.py knows, and the table."""

import dataclasses

import pytest

from common.environment import ROOT
from common.errors import UserError
from common.records import read_run, read_runs
from common.report import build
from common.reported import read
from common.runs import check, eval_spec, spec_hashes
from dyart.flags import parse, settings_of
from dyart.plans import plan_named
from dyart.runs import BUDGETS, DATA, ORIGINAL, TABLE, method_named, passes, plan_of_run, runs
from dyart.settings import Settings
from dyart.tests.dyart_records import CURVE, record, shifted

EVERY = ("DyART", "AT", "TRADES", "MART", "DyART-GN", "AT-GN", "TRADES-GN", "MART-GN")
# The table of scripts in the paper's notes: epochs, lr, schedule, batch, r0*255, alpha, lam, clip.
FULL = {
    ("cifar10", "dyart"): (200, 0.1, "cosinew", 256, 16, 3, 1000, 0.1),
    ("cifar10", "dyart-gn"): (100, 0.1, "step", 256, 16, 8, 400, None),
    ("cifar10-extra", "dyart"): (800, 0.1, "cosinew", 512, 16, 3, 800, 0.1),
    ("tiny-imagenet", "dyart"): (100, 0.1, "cosinew", 256, 32, 5, 500, 1),
    ("tiny-imagenet", "dyart-gn"): (100, 0.05, "cosinew", 256, 20, 3, 500, None)}


def planned(dataset="cifar10", budget="short", **more):
    """Name without budget and seed -> run; one seed."""
    found = runs(dataset=dataset, budget=budget, seeds=(1,), **more)
    check(found)
    return {run.name.removesuffix(f"_{budget}_s1"): run for run in found}


def settings(run) -> Settings:
    return settings_of(parse([*run.argv, *run.place, "--run", run.name, "--spec", "hash"]))


@pytest.mark.parametrize(("dataset", "name"), FULL)
def test_full_is_the_released_protocol(dataset, name):
    methods = None if dataset == "cifar10-extra" else ("DyART", "DyART-GN")
    found = settings(planned(dataset, "full", methods=methods)[name])
    assert (found.epochs, found.lr, found.scheduler, found.batch_size, round(255 * found.h_prime_r0, 6),
            found.h_prime_alpha, found.lam_robust, found.clip_grad) == FULL[dataset, name]
    assert (found.temperature, found.iter_FAB, found.last_epoch) == (5, 20, found.epochs)
    assert found.model == ("preactresnet18" if dataset == "tiny-imagenet" else "wrn-28-10-swish")
    assert found.data == DATA[dataset] and found.n_train is found.n_epoch_test is found.width is None


@pytest.mark.parametrize(("dataset", "epochs"), [("cifar10", 200), ("tiny-imagenet", 100)])
def test_full_baselines_are_the_released_ones(dataset, epochs):
    found = planned(dataset, "full")
    assert list(found) == ["clean", "dyart", "at", "trades", "mart"]
    for name, beta in (("at", -1), ("trades", 6), ("mart", 6)):
        one, run = settings(found[name]), found[name]
        assert (one.epochs, one.scheduler, one.batch_size, one.clip_grad) == (epochs, "cosinew", 256, None)
        assert (one.beta, one.mart, one.method) == (beta, name == "mart", run.method)
        assert "--pretrained" not in run.argv and run.needs == ()                   # from scratch


@pytest.mark.parametrize(("dataset", "used"), [("cifar10", 11), ("cifar10-extra", 11), ("tiny-imagenet", 21)])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_burn_in_is_trained_as_far_as_it_is_used(dataset, used, budget):
    run = planned(dataset, budget)["clean"]
    found = settings(run)
    assert (found.method, found.scheduler, found.epochs) == ("clean", "step", 2 * used)
    assert found.last_epoch == used <= found.epochs // 2                            # the rate has not fallen yet
    assert found.snapshots == (used - 1,) and found.observe == 0
    assert run.plans == () and run.needs == ()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("dataset", ORIGINAL)
def test_every_run_is_what_its_flags_say(dataset, budget):
    found = planned(dataset, budget, methods=None if dataset == "cifar10-extra" else EVERY)
    for name, run in found.items():
        one, args = settings(run), parse([*run.argv, *run.place])
        assert (one.method, one.variant, one.seed, args.budget) == (run.method, run.variant, run.seed, run.budget)
        assert args.dataset_name == dataset and run.script == "dyart/train.py" and not args.final_test
        if run.method == "DyART":
            assert args.pretrained == "auto" and run.needs == (run.name.replace("dyart", "clean"),)
        if run.method != "clean":
            plan, = run.plans
            names = [evaluator.name for evaluator in plan_named(plan.plan, one).evaluators]
            assert names == [column.evaluator for column in TABLE.columns] and plan.checkpoint == "best"
            assert one.observe > 0 and (run.method, run.variant) in TABLE.labels()
            assert plan.place[:2] == ("--data", "digits" if budget == "smoke" else DATA[dataset])
        assert name in {run.name.rsplit("_", 2)[0] for run in runs(dataset=dataset, budget=budget, methods=(
            (run.method + "-GN" * (run.variant == "gn")),))}


def test_plans_say_how_many_images():
    assert planned("cifar10", "short")["at"].plans[0].plan == "paper-dyart-1000-100"
    assert planned("cifar10", "gpu")["at"].plans[0].plan == "paper-dyart-10000-1000"
    assert planned("cifar10", "full")["at"].plans[0].plan == "paper-dyart"


def test_methods_are_chosen_by_name():
    assert list(planned()) == ["clean", "dyart", "at"]
    assert list(planned(methods=("mart", "AT"))) == ["at", "mart"]                   # no burn-in without DyART
    assert list(planned(methods=("dyart_gn", "AT"))) == ["at", "clean-gn", "dyart-gn"]
    assert list(planned(methods=("clean",))) == ["clean"]
    assert list(planned("cifar10-extra", "full")) == list(planned("cifar10-extra", "smoke")) == ["clean", "dyart"]
    assert [run.name for run in runs(dataset="cifar10", budget="short", seeds=(2, 5), methods=("AT",))] == [
        "at_short_s2", "at_short_s5"]
    assert method_named("DYART-gn") == ("DyART", "gn")


@pytest.mark.parametrize(("words", "said"), [
    ({"dataset": "cifar100"}, "no data set 'cifar100' at budget short: there are cifar10, cifar10-extra"),
    ({"budget": "quick"}, "at budget quick: .* at smoke, short, gpu, full"),
    ({"methods": ("PGD",)}, "unknown method 'PGD': there are clean, DyART, AT, TRADES, MART .and -GN"),
    ({"dataset": "cifar10-extra", "methods": ("AT",)}, "unknown method 'AT': there are clean, DyART on cifar10-extra"),
    ({"dataset": "cifar10-extra", "methods": ("DyART-GN",)}, "unknown method 'DyART-GN'"),
    ({"extra": "a.npz"}, "EXTRA=a.npz: cifar10 trains on no additional images; cifar10-extra does")])
def test_what_there_is_not_is_one_clear_line(words, said):
    with pytest.raises(UserError, match=said):
        runs(**{"dataset": "cifar10", "budget": "short"} | words)


def test_where_the_additional_images_come_from():
    def given(budget, **more):
        run = planned("cifar10-extra", budget, **more)["dyart"]
        words = [*run.argv, *run.place]
        return words[words.index("--aux-data-filename") + 1], spec_hashes(list(planned(
            "cifar10-extra", budget, **more).values()))[0][run.name]

    files = [given("short"), given("short", data_dir="/far"), given("short", extra="x.npz")]
    assert [name for name, _ in files] == ["data/cifar10_ddpm.npz", "/far/cifar10_ddpm.npz", "x.npz"]
    assert len({sha for _, sha in files}) == 1                                      # where a file lies decides nothing
    rest = given("short", extra="rest")
    assert rest[0] == "rest" and rest[1] != files[0][1]
    assert given("smoke")[0] == "rest" and given("smoke", extra="x.npz")[0] == "x.npz"
    assert "--aux-data-filename" not in " ".join(planned("cifar10-extra", "full")["clean"].place)
    assert "--aux-data-filename" not in " ".join(planned("cifar10", "full")["dyart"].place)


def test_data_and_device_are_no_part_of_the_spec():
    usual, told = planned(), planned(data="npz:c.npz", data_dir="d", device="cpu")
    assert spec_hashes(list(usual.values())) == spec_hashes(list(told.values()))
    assert usual["at"].place == ("--data", "cifar10s", "--dataset_name", "cifar10")
    assert told["at"].place == ("--data", "npz:c.npz", "--dataset_name", "cifar10", "--data_dir", "d",
                                "--device", "cpu")
    assert told["at"].plans[0].place == ("--data", "npz:c.npz", "--data_dir", "d", "--device", "cpu")
    assert eval_spec(usual["at"].plans[0], "t")["checkpoint"] == "best"


def test_what_it_costs():
    short = BUDGETS["short"]
    assert passes("DyART", dataclasses.replace(short, correct=0.0)) == pytest.approx(4 / 3)     # nothing to search
    # All images: 20 iterations of a forward pass, one back to the image, another forward pass; the checks; the point.
    assert passes("DyART", dataclasses.replace(short, correct=1.0)) == pytest.approx(4 / 3 + 20 + 2 / 3 + 1)
    assert passes("AT", short) == pytest.approx(10 * 2 / 3 + 1 + 1 / 3)
    assert passes("clean", short) == 1
    for dataset in ("cifar10", "tiny-imagenet"):
        full = planned(dataset, "full")
        assert full["dyart"].cost.total_gflop > full["trades"].cost.total_gflop > full["at"].cost.total_gflop
        assert full["at"].cost.total_gflop > 20 * full["clean"].cost.total_gflop
        assert planned(dataset, "gpu")["dyart"].cost.total_gflop < 0.1 * full["dyart"].cost.total_gflop
    ratio = planned("tiny-imagenet", methods=("AT",))["at"].cost.gflop / planned(methods=("AT",))["at"].cost.gflop
    assert ratio == 4                                                               # four times the pixels


def test_a_plan_takes_its_radius_from_the_record(tmp_path):
    run = read_run(record(tmp_path, "AT")).run
    run["config"]["attack_eps"] = 4 / 255
    plan = plan_of_run("paper-dyart-100-20", run)
    assert [(one.name, one.n) for one in plan.evaluators[:3]] == [("clean", 100), ("PGD-40", 100),
                                                                 ("AutoAttack eps=2", 20)]
    assert plan.evaluators[1].eps == pytest.approx(4 / 255) and plan.evaluators[4].eps == pytest.approx(8 / 255)
    run["quirks"] = ["one-restart-aa"]
    assert not any(one.name.startswith("AutoAttack") for one in plan_of_run("paper-dyart", run).evaluators)
    with pytest.raises(UserError, match="unknown plan"):
        plan_of_run("paper-adarat", run)


# -- the table -------------------------------------------------------------------------------------------------------

def table_of(results, dataset="cifar10", budget="short"):
    known = read(ROOT / "results" / "reported" / "dyart.csv")
    built = build(TABLE, read_runs(results), known, dataset, budget)
    main = {row[0]: dict(zip(built.grids[0].header, row, strict=True)) for row in built.grids[0].rows}
    return built, main


def test_dyart_is_compared_with_each_baseline_image_by_image(tmp_path):
    for seed in (1, 2):
        record(tmp_path, "DyART", seed=seed, accuracies=shifted(0.05))
        record(tmp_path, "AT", seed=seed, accuracies=CURVE)
    record(tmp_path, "clean")
    record(tmp_path, "DyART", variant="gn", accuracies=shifted(0.1))
    built, main = table_of(tmp_path)
    assert main["DyART"]["clean (n=1000)"] == "75.00 ± 0.00" and main["AT"]["seeds"] == "1, 2"
    assert main["DyART"]["AutoAttack 8/255 (n=200)"] == "45.00 ± 0.00"
    assert main["DyART (group norm)"]["seeds"] == "1" and "burn-in" not in " ".join(main)
    compared = {row[:2]: row[2:] for row in built.grids[1].rows}
    assert {key[0] for key in compared} == {"DyART − AT", "DyART (group norm) − DyART"}
    assert compared["DyART − AT", "AutoAttack 8/255"][:3] == ("200", "1, 2", "+5.00 ± 0.00")
    assert compared["DyART − AT", "PGD-40"][3:5] == ("50, 50", "0, 0")              # images gained, lost


def test_dyarts_reported_network_stands_beside_additional_data_only(tmp_path):
    record(tmp_path, "DyART", dataset="cifar10-extra", accuracies=CURVE)
    record(tmp_path, "DyART", accuracies=CURVE)
    record(tmp_path, "DyART", dataset="tiny-imagenet", accuracies=CURVE)
    extra, plain = (table_of(tmp_path, dataset)[1] for dataset in ("cifar10-extra", "cifar10"))
    assert " / 93.69 (r1)" in extra["DyART"]["clean (n=1000)"]
    assert " / 63.89 (r2)" in extra["DyART"]["AutoAttack 8/255 (n=200)"]
    assert not any("63.89" in cell for column, cell in extra["DyART"].items() if "8/255" not in column)
    assert "/" not in plain["DyART"]["clean (n=1000)"] and "47.63" in plain["AT"]["AutoAttack 8/255 (n=200)"]
    tiny = table_of(tmp_path, "tiny-imagenet")[1]
    assert "17.92" in tiny["AT"]["AutoAttack 8/255 (n=200)"] and tiny["AT"]["AutoAttack 2/255 (n=200)"] == "—"


def test_every_reported_number_may_stand_in_a_table():
    for one in read(ROOT / "results" / "reported" / "dyart.csv"):
        names = [ours for ours, theirs in TABLE.reported_datasets.items() if theirs == one.dataset]
        assert one.model in {model for name in names for model in TABLE.reported_models[name]}
        assert any(one.method == method for row in TABLE.rows for method, _ in row.reported), one.method
        assert one.metric in ("clean", "AA") and one.eps == TABLE.reported_eps and 0 < float(one.value) < 100
