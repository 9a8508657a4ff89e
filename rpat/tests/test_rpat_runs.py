"""The runs of RPAT's tables: the released protocol at budget full, flags that the scripts know, costs, the table."""

import csv
import dataclasses
import io

import pytest

from common.environment import ROOT
from common.errors import UserError
from common.records import read_run, read_runs
from common.report import build
from common.reported import read
from common.runs import check, eval_spec, spec_hashes
from rpat import flags, plans, sota_flags, sota_plans
from rpat.runs import TABLE, plan_of_run, runs
from rpat.runs_budgets import BUDGETS, PART_ONE, STANDARD, TARGETS, UNFIT, shape_of
from rpat.runs_cost import after_epoch, passes
from rpat.settings import Settings, folder_name, run_name
from rpat.sota_settings import SotaSettings
from rpat.tests.rpat_records import moved, record

ALL = [(dataset, budget) for dataset in TARGETS for budget in BUDGETS if (budget, dataset) not in UNFIT]


def planned(dataset="cifar10", budget="short", **more):
    """Name without budget and seed -> run; one seed."""
    found = runs(dataset=dataset, budget=budget, seeds=(1,), **more)
    check(found)
    return {run.name.removesuffix(f"_{budget}_s1"): run for run in found}


def settings(run) -> tuple[Settings | SotaSettings, object]:
    argv = [*run.argv, *run.place, "--run", run.name, "--spec", "hash"]
    if run.method in ("ReBAT", "RPAT++"):
        args = sota_flags.parser(run.method).parse_args(argv)
        return sota_flags.settings_of(run.method, args), args
    args = flags.parse(argv)
    return flags.settings_of(args), args


@pytest.mark.parametrize(("dataset", "norm", "threat"), [
    ("cifar10", "Linf", (8, 2)), ("cifar100", "Linf", (8, 2)), ("tiny-imagenet", "Linf", (8, 2)),
    ("cifar10-l2", "L2", (128, 15)), ("cifar100-l2", "L2", (128, 15))])
def test_full_is_the_released_protocol(dataset, norm, threat):
    found = planned(dataset, "full")
    assert [(run.method, run.variant) for run in found.values()] == [
        (method, variant) for method in PART_ONE for variant in ("plain", "rpat")]
    for run in found.values():
        one, _ = settings(run)
        usual = Settings(seed=1, val=True, quirks=one.quirks, dataset=TARGETS[dataset].data, mode=one.mode, RA=one.RA,
                         distance=norm, epsilon=threat[0] / 255, alpha=threat[1] / 255, consistency=one.consistency)
        assert one == usual and (one.method, one.variant) == (run.method, run.variant)
        assert one.quirks == ("bottleneck-resnet18", "trades-third-pass")
        assert [plan.plan for plan in run.plans] == ["paper-rpat", "paper-rpat-last", "perception-rpat"]
        assert [plan.checkpoint for plan in run.plans] == ["best", "last", "best"]


@pytest.mark.parametrize(("dataset", "sizes"), [("cifar10-sotas", (8, 2)), ("cifar100-sotas", (8, 2)),
                                                ("cifar10-l2-sotas", (128, 15)), ("cifar10-wrn-sotas", (8, 2))])
def test_full_of_part_two_is_the_released_protocol(dataset, sizes):
    found, target = planned(dataset, "full"), TARGETS[dataset]
    wide = dataset == "cifar10-wrn-sotas"
    assert [(run.method, run.variant) for run in found.values()] == [
        ("ReBAT", "plain"), ("RPAT++", "plain"), ("ReBAT", "cutmix"), ("RPAT++", "cutmix")][:4 if wide else 2]
    for run in found.values():
        one, args = settings(run)
        assert one == SotaSettings(method=run.method, seed=1, val=True, quirks=one.quirks, norm=target.norm,
                                   epsilon=sizes[0], pgd_alpha=sizes[1], cutmix=run.variant == "cutmix",
                                   model="wrn-34-10" if wide else "preactresnet18")
        assert args.num_classes == (100 if "100" in dataset else 10)
        assert [plan.plan for plan in run.plans] == ["paper-sotas", "paper-sotas-last"]
        assert [plan.checkpoint for plan in run.plans] == ["best", "average"]


@pytest.mark.parametrize(("dataset", "budget"), ALL)
def test_every_run_is_what_its_flags_say(dataset, budget):
    target = TARGETS[dataset]
    found = planned(dataset, budget, methods=target.known)
    assert len(found) == (2 * len(PART_ONE) + len(STANDARD) if target.part == 1 else 4)
    for run in found.values():
        one, args = settings(run)
        named = one.run_name(budget) if target.part == 2 else run_name(one.method, one.variant, budget, 1, one.marks)
        assert (one.method, one.variant, one.seed, args.budget) == (run.method, run.variant, run.seed, run.budget)
        assert run.name == named and args.dataset_name == dataset and not args.final_test and one.val
        assert (run.method, run.variant) in TABLE.labels() and dataset.startswith(folder_name(target.data, target.norm))
        plan_named = plans.plan_named if target.part == 1 else sota_plans.plan_named
        for plan, suffix in zip(run.plans, ("", " last"), strict=False):
            names = [evaluator.name for evaluator in plan_named(plan.plan, one).evaluators]
            wanted = [column.evaluator + suffix for column in TABLE.columns if not column.formula]
            assert names == [name for name in wanted if target.part == 1 or "PGD-10" not in name]
            assert plan.place[:2] == ("--data", "digits" if budget == "smoke" else target.data)
        for plan in run.plans[2:]:
            assert [evaluator.name for evaluator in plan_named(plan.plan, one).evaluators] == [
                "perception PGD-20", "perception noise"]
        if budget in ("short", "gpu"):
            stages = (one.stage1, one.warmup_epochs) if target.part == 2 else (one.epochs // 2,)
            assert one.epochs < 20 and max(stages) < one.epochs and (target.part == 2 or one.scale_schedule)


def test_each_table_of_the_paper_has_its_target():
    norms = {name: (target.data, target.norm, target.part, target.model) for name, target in TARGETS.items()}
    assert len(set(norms.values())) == len(TARGETS) == 10
    makefile = (ROOT / "Makefile").read_text()
    for word in ("cifar10", "cifar100", "tiny-imagenet", "$(one)-l2", "$(one)-sotas"):
        assert f"$(call reproduce,rpat,{word})" in makefile
    assert {name for name in TARGETS if name.endswith("-sotas")} == {
        f"{one}-sotas" for one in ("cifar10", "cifar100", "cifar10-l2", "cifar100-l2", "cifar10-wrn")}


def test_plans_say_how_many_images():
    def stems(dataset, budget):
        return {plan.plan for run in planned(dataset, budget).values() for plan in run.plans}

    assert stems("cifar10", "short") == {"paper-rpat-1000-100", "paper-rpat-1000-100-last", "perception-rpat-1000"}
    assert stems("cifar100", "short") == {"paper-rpat-1000-50", "paper-rpat-1000-50-last", "perception-rpat-1000"}
    assert stems("tiny-imagenet", "short") == {"paper-rpat-1000-50", "paper-rpat-1000-50-last",
                                               "perception-rpat-1000"}
    assert stems("cifar10", "gpu") == {"paper-rpat-10000-500", "paper-rpat-10000-500-last", "perception-rpat"}
    assert stems("cifar10-sotas", "short") == {"paper-sotas-1000-50", "paper-sotas-1000-50-last"}


def test_methods_are_chosen_by_name():
    assert list(planned()) == ["pgd-at", "pgd-at-rpat"]
    assert list(planned("cifar10-l2")) == ["pgd-at-l2", "pgd-at-rpat-l2"]
    assert list(planned("cifar10-sotas")) == ["rebat", "rpatpp"]
    assert list(planned(methods=("mart", "CE_RAND", "ce"))) == ["mart", "mart-rpat", "ce", "ce-rand"]
    assert list(planned(methods=("consistency_at",))) == ["consistency-at", "consistency-at-rpat"]
    assert list(planned("cifar10-sotas", methods=("rpat++-cutmix", "ReBAT"))) == ["rebat", "rpatpp-cutmix"]
    assert list(planned("cifar10", "smoke"))[:2] == ["pgd-at-small", "pgd-at-rpat-small"]
    assert [run.name for run in runs(dataset="cifar10-sotas", budget="short", seeds=(2, 5), methods=("rebat",))] == [
        "rebat_short_s2", "rebat_short_s5"]


@pytest.mark.parametrize(("words", "said"), [
    ({"dataset": "mnist"}, "no data set 'mnist' at budget short: there are cifar10, cifar100, tiny-imagenet"),
    ({"budget": "quick"}, "at budget quick: .* at smoke, short, gpu, full"),
    ({"dataset": "cifar10-wrn-sotas", "budget": "gpu"}, "there are smoke and full"),
    ({"methods": ("ReBAT",)}, "unknown method 'ReBAT': there are PGD-AT, .*; the other part's are in cifar10-sotas"),
    ({"dataset": "cifar10-sotas", "methods": ("PGD-AT",)}, "there are ReBAT, RPAT\\+\\+, .* part's are in cifar10")])
def test_what_there_is_not_is_one_clear_line(words, said):
    with pytest.raises(UserError, match=said):
        runs(**{"dataset": "cifar10", "budget": "short"} | words)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar10-sotas"])
def test_data_and_device_are_no_part_of_the_spec(dataset):
    usual, told = planned(dataset), planned(dataset, data="npz:c.npz", data_dir="d", device="cpu")
    assert spec_hashes(list(usual.values())) == spec_hashes(list(told.values()))
    first, second = next(iter(usual.values())), next(iter(told.values()))
    assert first.place == ("--dataset_name", dataset)
    assert second.place == ("--data", "npz:c.npz", "--dataset_name", dataset, "--data_dir", "d", "--device", "cpu")
    assert first.plans[0].place == ("--data", "cifar10")
    assert second.plans[1].place == ("--data", "npz:c.npz", "--data_dir", "d", "--device", "cpu")
    assert eval_spec(first.plans[0], "t")["checkpoint"] == "best"


# -- cost ------------------------------------------------------------------------------------------------------------

def test_what_an_image_costs():
    attack = 10 * 2 / 3                                       # of a forward pass and one back to the image
    assert passes("PGD-AT", "plain") == pytest.approx(attack + 1)
    assert passes("PGD-AT", "rpat") == pytest.approx(attack + 3)                           # x', mid, x
    assert passes("TRADES", "plain") == pytest.approx(attack + 2 + 2 / 3)                  # p(x) before, x once more
    assert passes("TRADES", "rpat") - passes("TRADES", "plain") == pytest.approx(1)        # mid
    assert passes("MART", "rpat") == pytest.approx(attack + 3)
    for variant in ("plain", "rpat"):
        assert passes("Consistency-AT", variant) == pytest.approx(2 * passes("PGD-AT", variant))
    assert passes("ce", "plain") == passes("ce_rand", "plain") == 1
    assert passes("ReBAT", "plain") == pytest.approx(attack + 1 / 3 + 1 + 1 / 3 + 95 / 200 / 3)
    assert passes("RPAT++", "plain") - passes("ReBAT", "plain") == pytest.approx(95 / 200 / 3)


def test_what_a_run_costs():
    short = shape_of("cifar10", "short")
    per_image = 8.0                                           # x, 10 steps, x, mid, x'
    assert after_epoch(TARGETS["cifar10"], short) == pytest.approx(2 * 256 * per_image)
    assert after_epoch(TARGETS["cifar10"], dataclasses.replace(short, n_epoch_test=None)) == pytest.approx(
        11_000 * per_image)
    plain, rpat = planned()["pgd-at"].cost, planned()["pgd-at-rpat"].cost
    assert plain.images == 50_000 and rpat.passes - plain.passes == pytest.approx(2)
    assert plain.passes == pytest.approx(10 * 2 / 3 + 1 + 2 * 256 * per_image / 5000)
    full = planned("cifar10", "full", methods=("PGD-AT",))["pgd-at"].cost
    assert full.gflop / plain.gflop == 16 and full.images == 200 * 49_000
    judged = planned()["pgd-at"].plans
    assert judged[0].cost == judged[1].cost
    assert judged[0].cost.passes == pytest.approx(1000 * (1 / 3 + 30 * 2 / 3) + 100 * 1500)
    hour = sum(run.cost.total_gflop + sum(plan.cost.total_gflop for plan in run.plans)
               for run in planned("cifar10", "gpu").values()) / 40_000
    assert 1200 < hour < 1800                                 # half an hour at the rate that make_rules assumes


# -- plans and the table ---------------------------------------------------------------------------------------------

def test_a_plan_takes_the_run_from_its_record(tmp_path):
    one = settings(planned("cifar10-l2")["pgd-at-rpat-l2"])[0]
    run = read_run(record(tmp_path, "PGD-AT", config={**one.config(), "model": {"name": one.model}})).run
    plan = plan_of_run("paper-rpat-100-20-last", run)
    assert [(each.name, each.n) for each in plan.evaluators][::3] == [("clean last", 100), ("AutoAttack last", 20)]
    assert (plan.evaluators[3].norm, plan.evaluators[3].eps) == ("l2", 128 / 255)
    two = settings(planned("cifar10-sotas")["rpatpp"])[0]
    run = read_run(record(tmp_path, "RPAT++", config={**two.config(), "model": {"name": two.model}})).run
    assert [each.name for each in plan_of_run("paper-sotas-100", run).evaluators] == ["clean", "PGD-20", "AutoAttack"]
    with pytest.raises(UserError, match="unknown plan"):
        plan_of_run("paper-rpat", run)


def table_of(results, dataset="cifar10"):
    known = read(ROOT / "results" / "reported" / "rpat.csv")
    built = build(TABLE, read_runs(results), known, dataset, "short")
    return built, {row[0]: dict(zip(built.grids[0].header, row, strict=True)) for row in built.grids[0].rows}


def test_best_and_last_weights_have_rows_of_their_own(tmp_path):
    for seed in (1, 2):
        record(tmp_path, "PGD-AT", seed=seed, accuracies=moved(), last=moved(0.02, -0.05))
        record(tmp_path, "PGD-AT", variant="rpat", seed=seed, accuracies=moved(0.01, 0.02), last=moved(0.03, -0.02))
    built, main = table_of(tmp_path)
    assert list(main)[:2] == ["PGD-AT", "PGD-AT + RPAT"] and "TRADES, last epoch" not in main
    assert main["PGD-AT"]["AutoAttack (n=200)"] == "40.00 ± 0.00 / 46.74 (r3)"
    last = main["PGD-AT + RPAT, last epoch"]
    assert (last["clean (n=1000)"], last["AutoAttack (n=200)"]) == ("73.00 ± 0.00", "38.00 ± 0.00")
    assert (last["weights"], main["PGD-AT"]["weights"]) == ("last", "PGD-10 on held-out training images")
    assert main["PGD-AT"]["mean (n=200)"] == "55.00 ± 0.00 / 64.83 (r4)"                   # 70 and 40
    assert main["PGD-AT"]["NRR (n=200)"] == "50.91 ± 0.00 / 59.78 (r5)"
    compared = {row[:2]: row[2:] for row in built.grids[1].rows}
    assert compared["PGD-AT + RPAT − PGD-AT", "AutoAttack"][:3] == ("200", "1, 2", "+2.00 ± 0.00")
    assert compared["PGD-AT + RPAT, last epoch − PGD-AT, last epoch", "PGD-20"][3:5] == ("30, 30", "0, 0")
    assert {key[1] for key in compared} == {"clean", "PGD-10", "PGD-20", "AutoAttack"}


def test_part_two_stands_beside_its_own_table_and_l2_beside_l2(tmp_path):
    for dataset in ("cifar10-sotas", "cifar10-l2-sotas"):
        for method in ("ReBAT", "RPAT++"):
            record(tmp_path, method, dataset=dataset, accuracies=moved())
    record(tmp_path, "ReBAT", dataset="cifar10-wrn-sotas", variant="cutmix", accuracies=moved())
    record(tmp_path, "PGD-AT", dataset="cifar10-l2", accuracies=moved())
    built, main = table_of(tmp_path, "cifar10-sotas")
    assert " / 51.0 (" in main["RPAT++"]["AutoAttack (n=200)"] and main["ReBAT"]["PGD-10"] == "—"
    assert {row[0] for row in built.grids[1].rows} == {"RPAT++ − ReBAT"}
    assert " / 71.26 (" in table_of(tmp_path, "cifar10-l2-sotas")[1]["RPAT++"]["AutoAttack (n=200)"]
    assert " / 55.64 (" in table_of(tmp_path, "cifar10-wrn-sotas")[1]["ReBAT (CutMix)"]["AutoAttack (n=200)"]
    assert " / 66.36 (" in table_of(tmp_path, "cifar10-l2")[1]["PGD-AT"]["AutoAttack (n=200)"]


def test_the_list_of_reported_numbers_is_rpats_own():
    path = ROOT / "results" / "reported" / "rpat.csv"
    listed = read(path)
    lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert len(listed) == len(lines) - 1 == len(set(listed)) == 299
    assert {one.paper for one in listed} == {"RPAT"}
    for table in ("Table 1", "Table 2", "Table 3", "Table 4"):
        found = {(row.method, row.variant) for dataset in TARGETS for row in TABLE.rows for one in listed
                 if one.table == table and one.dataset == TABLE.reported_datasets[dataset]
                 and one.model in TABLE.reported_models[dataset]
                 and one.eps == TABLE.reported_sizes.get(dataset, TABLE.reported_eps)
                 and any(one.method == method and variant in ("*", one.variant) for method, variant in row.reported)}
        assert len(found) == (8 if table < "Table 3" else 2 if table == "Table 3" else 4)


def test_runs_need_no_torch(run_without_torch):
    code = "from rpat.runs import runs\nprint(len(runs(dataset='cifar10', budget='full')))"
    assert run_without_torch(code) == "8\n"
