"""The flags of train_cifar_ra.py and train_cifar_wa.py: the released defaults, ours, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from rpat.sota_flags import main, parser, settings_of
from rpat.sota_plans import full_name, plan_named
from rpat.sota_settings import SotaSettings, settings_of_run

SOTAS = Path(__file__).parents[1] / "sotas"
TRAINING = ("clean-forward", "half-inputs", "train-mode-attack", "wa-train-mode")


def settings(line="", method="RPAT++"):
    return settings_of(method, parser(method).parse_args(line.split()))


def test_the_released_defaults():
    found = settings()
    assert found == SotaSettings(quirks=TRAINING) and found.method == "RPAT++"
    # rpat.md, the table of part 2's flags
    assert (found.model, found.norm, found.attack, found.eval_attack) == ("preactresnet18", "linf", "pgd", "pgd")
    assert (found.seed, found.chkpt_iters, found.warmup_epochs) == (0, 10, 105)
    assert (found.batch_size, found.epochs, found.stage1, found.stage2) == (128, 200, 100, 150)
    assert (found.epsilon, found.attack_iters, found.restarts) == (8, 10, 1)
    assert (found.stronger_epsilon, found.stronger_attack_iters) == (10, 12)
    assert (found.pgd_alpha, found.decay_rate, found.cutmix_alpha, found.cutmix_beta) == (2, 0.999, 1, 1)
    assert (found.l1, found.l2, found.lr_max, found.lr_factor) == (0, 0, 0.1, 1.5)
    assert (found.beta, found.beta_factor, found.lr_schedule, found.reg_schedule) == (1, 1.5, "piecewise", "dependent")
    assert not any((found.val, found.cutmix, found.stronger_attack, found.stronger_eval, found.use_reg_schedule,
                    found.eval_train_robust))
    args = parser("ReBAT").parse_args([])
    assert (args.resume, args.width_factor) == (0, 10) and settings(method="ReBAT").method == "ReBAT"
    assert not any((args.eval, args.eval_last_only, args.eval_best_only, args.eval_online))


def test_the_seeds_command_parses():
    line = ("--fname first --model PreActResNet18 --norm l_2 --epsilon 128 --pgd-alpha 15 --epochs 200 "
            "--num-classes 100")
    args = parser("RPAT++").parse_args(line.split())
    found = settings_of("RPAT++", args)
    assert (args.fname, args.num_classes, found.norm, found.epochs) == ("first", 100, "l2", 200)
    assert found.eps == pytest.approx(128 / 255) and found.step_size == pytest.approx(15 / 255)


@pytest.mark.parametrize(("word", "ours"), [
    ("PreActResNet18", "preactresnet18"), ("WideResNet", "wrn-34-10"), ("VGG16", "vgg16"), ("MobileNet", "mobilenet"),
    ("WideResNet --width-factor 4", "wrn-34-4"), ("small", "small")])
def test_networks(word, ours):
    assert settings(f"--model {word}").model == ours


@pytest.mark.parametrize(("line", "budget", "name"), [
    ("--seed 1", "short", "rpatpp_short_s1"), ("", "full", "rpatpp_full_s0"),
    ("--norm l_2 --epsilon 128", "full", "rpatpp-l2_full_s0"), ("--cutmix", "full", "rpatpp-cutmix_full_s0"),
    ("--cutmix --norm l_2 --epsilon 128 --model WideResNet", "gpu", "rpatpp-cutmix-l2-wrn-34-10_gpu_s0")])
def test_names_of_runs(line, budget, name):
    assert settings(line).run_name(budget) == name
    assert settings(line, "ReBAT").run_name(budget) == name.replace("rpatpp", "rebat")


def test_snapshots_follow_the_epochs_done():
    assert settings("--epochs 25").snapshots == (9, 19)
    assert settings("--chkpt-iters 0").snapshots == ()


def test_scale_schedule_and_selection():
    found = settings("--epochs 20 --scale_schedule")
    assert (found.stage1, found.stage2, found.warmup_epochs) == (10, 15, 11)
    assert settings("--epochs 20").warmup_epochs == 105
    assert settings().selection == {} and settings().judged_part == "test"
    assert settings("--val").selection == {"average": "best", "model": "best-online"}
    assert settings("--val").judged_part == "val"
    chosen = settings("--quirks default,test-selected")
    assert chosen.selection == settings("--val").selection and chosen.judged_part == "test"


def test_settings_come_back_from_a_record():
    found = settings("--norm l_2 --epsilon 128 --val --quirks none --model VGG16 --n_train 500")
    config = {**found.config(), "precision": "fp32", "model": {"name": "vgg16", "classes": 10}, "data": {}}
    assert settings_of_run(config) == found


@pytest.mark.parametrize(("line", "said"), [
    ("--epsilon 8/255", "write 8"), ("--epsilon 0.0314", "write 8.007"), ("--pgd-alpha 2/255", "write 2"),
    ("--pgd-alpha 0.0078", "counted in 255ths"), ("--epsilon 8.5", "no whole number"), ("--epsilon 0", "above 0"),
    ("--epsilon 128", "--norm l_2"), ("--norm l_2 --epsilon 2000", "too large for l2"),
    ("--stronger-attack --stronger-epsilon 128", "--stronger-epsilon 128"), ("--norm l_1", "l_1"),
    ("--num-classes 20", "--data"), ("--quirks bottleneck-resnet18", "unknown"), ("--cutmix-alpha 0", "above 0"),
    ("--lr-schedule step", "step"), ("--batch-size 0", "at least 1"), ("--decay-rate 2", "from 0 to 1"),
    ("--l2 -1", "negative"), ("--warm-up-epochs 3", "--warmup-epochs"), ("--fname a/b", "cannot name"),
    ("--eval --resume 3", "--resume goes on"), ("--load-folder x", "--eval too")])
def test_what_is_refused_in_one_line(line, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main("ReBAT", line.split())
    printed = capsys.readouterr().err
    assert caught.value.code == 2 and said in printed and printed.count("\n") == 1


def test_a_radius_of_l_infs_size_in_l2_warns(capsys):
    assert settings("--norm l_2").epsilon == 8
    assert "128/255 is usual" in capsys.readouterr().err
    settings("--norm l_2 --epsilon 128")
    settings("--stronger-epsilon 128")                                   # unused without --stronger-attack
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("script", ["train_cifar_ra.py", "train_cifar_wa.py"])
def test_the_scripts_run_from_their_folder_and_need_no_torch_for_their_flags(script):
    def run(*words, **options):
        return subprocess.run((sys.executable, *words), capture_output=True, text=True, timeout=60, **options)
    done = run(script, "--help", cwd=SOTAS)
    assert done.returncode == 0 and "--warmup-epochs" in done.stdout
    done = run("-X", "importtime", f"rpat/sotas/{script}", "--epsilon", "8/255", cwd=SOTAS.parents[1])
    assert done.returncode == 2 and "write 8" in done.stderr and "| torch" not in done.stderr


# -- plans -----------------------------------------------------------------------------------------------------------

def test_the_papers_plan_takes_the_runs_norm_and_radius():
    plan = plan_named("paper-sotas-1000-200", settings("--norm l_2 --epsilon 128 --pgd-alpha 15"))
    clean, pgd, attack = plan.evaluators
    assert plan.name == "paper-sotas-1000-200" and plan.chunk == 100
    assert [evaluator.name for evaluator in plan.evaluators] == ["clean", "PGD-20", "AutoAttack"]
    assert (clean.n, pgd.n, attack.n) == (1000, 1000, 200)
    assert (pgd.norm, pgd.eps, pgd.step_size, pgd.steps, pgd.restarts) == ("l2", 128 / 255, 15 / 255, 20, 1)
    assert (attack.kind, attack.norm, attack.eps) == ("autoattack", "l2", 128 / 255)
    whole = plan_named("paper-sotas", settings())
    assert {evaluator.n for evaluator in whole.evaluators} == {None} and whole.evaluators[2].norm == "linf"
    assert [evaluator.n for evaluator in plan_named("paper-sotas-50", settings()).evaluators] == [50, 50, 50]


def test_measuring_quirks_have_evaluators_and_records_of_their_own():
    quirks = ("aa-l2-fixed", "pgd20-is-pgd10")
    name = full_name("paper-sotas-10", (*TRAINING, *quirks), "average", chosen=True)
    assert name == "paper-sotas-10-pgd20-is-pgd10-aa-l2-fixed-last"
    assert full_name("paper-sotas-aa-l2-fixed", quirks, "best", chosen=True) == "paper-sotas-aa-l2-fixed-pgd20-is-pgd10"
    _, pgd, attack = plan_named(name, settings("--norm l_2 --epsilon 128 --pgd-alpha 15")).evaluators
    assert (pgd.name, pgd.norm, pgd.steps, pgd.eps) == ("released PGD-20 last", "linf", 10, 128 / 255)
    _, pgd, attack = plan_named("paper-sotas-10-aa-l2-fixed", settings()).evaluators
    assert (pgd.name, pgd.steps) == ("PGD-20", 20)
    assert (attack.name, attack.norm, attack.eps) == ("AutoAttack L2", "l2", 8 / 255)
    half = plan_named(full_name("paper-sotas-10", ("half-test-inputs",), "best", chosen=True), settings())
    assert half.half_inputs and [each.name for each in half.evaluators] == ["clean half", "PGD-20 half",
                                                                            "AutoAttack half"]


def test_another_search_keeps_its_place_at_the_end_of_the_name():
    name = full_name("paper-sotas-10-5-fast", ("half-test-inputs",), "average", chosen=True)
    assert name == "paper-sotas-10-5-half-test-inputs-last-fast"
    plan = plan_named(name, settings())
    assert plan.name == name and plan.half_inputs
    assert [(each.name, each.n) for each in plan.evaluators] == [
        ("clean half last", 10), ("PGD-20 half last", 10), ("AA (fast search) half last", 5)]
    assert full_name("paper-sotas-10-e9-fast", (), "average", chosen=True) == "paper-sotas-10-e9-fast"


@pytest.mark.parametrize(("chosen", "ends"), [
    (True, {"best": "", "average": "-last", "best-online": "-online", "last": "-online-last", "9": "-e9"}),
    (False, {"average": "", "last": "-online", "9": "-e9"})])
def test_each_checkpoint_has_a_record_and_evaluators_of_its_own(chosen, ends):
    for checkpoint, end in ends.items():
        name = full_name("paper-sotas-10", (), checkpoint, chosen=chosen)
        assert name == f"paper-sotas-10{end}"
        plan = plan_named(name, settings())
        assert plan.name == name and plan.evaluators[0].name == f"clean{end.replace('-', ' ')}"
    assert full_name("paper-sotas-10-e9", (), "average", chosen=chosen) == "paper-sotas-10-e9"
    with pytest.raises(UserError, match="unknown plan 'paper-sota'"):
        plan_named("paper-sota", settings())
