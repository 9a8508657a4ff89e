"""Every script's flags, frozen: names, defaults and what they turn into; and what a user can get wrong."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import adarat.train
import common.environment
from adarat import flags
from adarat.runs import method_named
from adarat.settings import QUIRKS, defaults
from common.environment import ROOT
from common.errors import UserError
from common.flags import Parser, add_run_flags

FOLDERS = {"ST": ["ST"], "PGD-AT": ["PGD_AT", "PGD-AT"], "FAT": ["FAT"], "DAT": ["DAT"], "TRADES": ["TRADES"],
           "KD-AT": ["KD_AT", "KD-AT"], "IAD": ["IAD"], "Generalist": ["Generalist"]}
SCRIPTS = [(method, folder, dataset, f"train_{dataset}.py") for method, folders in FOLDERS.items()
           for folder in folders for dataset in ("cifar10", "cifar100")]
SCRIPTS.append(("Generalist", "Generalist", "cifar10", "traiin_cifar10.py"))

EIGHT, TWO = 8 / 255, 2 / 255
SHARED = {"dataset_path": "../../data", "epoch": 120, "batch_size": 128, "step_num": 10, "drop_last": False,
          "learning_rate": 0.1, "epsilon": EIGHT, "step_size": TWO}
RATIO = {"FixRAT": False, "AdaRAT": False, "tao": 0.01}
DISTILLS = {"teacher_robust_name": "PGD_AT.pth", "teacher_standard_name": "ST.pth", "ce": 0.25, "teacher_robust": 0.5,
            "teacher_standard": 0.25}
GENERALIST = {"num_steps": 10, "loss_fn": "cent", "norm": "Linf", "resume": False, "ablation": "", "epoch": 120,
              "learning_rate": 0.1}
# The paper file's tables of defaults and flags, method by method.
TABLE = {
    ("ST", "cifar10"): {**SHARED},
    ("ST", "cifar100"): {**SHARED},
    ("PGD-AT", "cifar10"): {**SHARED, **RATIO, "beta": 0.04, "up_lim": 1.1, "down_lim": 0.4},
    ("PGD-AT", "cifar100"): {**SHARED, **RATIO, "beta": 0.05, "up_lim": 1.5, "down_lim": 0.7},
    ("FAT", "cifar10"): {**SHARED, **RATIO, "beta": 0.04, "up_lim": 1.1, "down_lim": 0.4},
    ("FAT", "cifar100"): {**SHARED, **RATIO, "beta": 0.05, "up_lim": 1.5, "down_lim": 0.7},
    ("DAT", "cifar10"): {**SHARED, **RATIO, "beta": 0.04, "up_lim": 1.1, "down_lim": 0.4, "FOSC_control_epoch": 60,
                         "FOSC_max": 0.3},
    ("DAT", "cifar100"): {**SHARED, **RATIO, "beta": 0.05, "up_lim": 1.5, "down_lim": 0.7, "FOSC_control_epoch": 60,
                          "FOSC_max": 0.3},
    ("TRADES", "cifar10"): {**SHARED, **RATIO, "beta": 0.03, "up_lim": 1.5, "down_lim": 0.7, "lamda": 6},
    ("TRADES", "cifar100"): {**SHARED, **RATIO, "beta": 0.04, "up_lim": 2.3, "down_lim": 1.2, "lamda": 6},
    ("KD-AT", "cifar10"): {**SHARED, **RATIO, **DISTILLS, "beta": 0.04, "up_lim": 0.8, "down_lim": 0.2},
    ("KD-AT", "cifar100"): {**SHARED, **RATIO, **DISTILLS, "beta": 0.05, "up_lim": 1.4, "down_lim": 0.8},
    ("IAD", "cifar10"): {**SHARED, **RATIO, **DISTILLS, "beta": 0.04, "up_lim": 0.8, "down_lim": 0.2, "begin": 60,
                         "b": 0.1},
    ("IAD", "cifar100"): {**SHARED, **RATIO, **DISTILLS, "beta": 0.05, "up_lim": 1.8, "down_lim": 0.4, "begin": 60,
                          "b": 0.1, "step_num": 100},
    ("Generalist", "cifar10"): {**GENERALIST, **RATIO, "beta": 0.04, "up_lim": 1.3, "down_lim": 0.5, "epsilon": 0.031,
                                "step_size": 0.007, "arch": "resnet18", "dataset": "cifar10"},
    ("Generalist", "cifar100"): {**GENERALIST, **RATIO, "beta": 0.04, "up_lim": 2.0, "down_lim": 0.8, "epsilon": EIGHT,
                                 "step_size": TWO, "arch": "WRN34", "dataset": "cifar100"},
}
OPTIONS = {
    "shared": {"--dataset_path", "--epoch", "--batch_size", "--step_num", "--drop_last", "--learning_rate", "--epsilon",
               "--step_size", "--class_num"},
    "ratio": {"--FixRAT", "--AdaRAT", "--beta", "--up_lim", "--down_lim", "--tao"},
    "TRADES": {"--lamda"}, "DAT": {"--FOSC_control_epoch", "--FOSC_max"},
    "KD-AT": {"--teacher_robust_name", "--teacher_standard_name", "--ce", "--teacher_robust", "--teacher_standard"},
    "Generalist": {"--epochs", "--lr", "--step-size", "--arch", "--dataset", "--num_classes", "--device", "--loss_fn",
                   "--norm", "--num-steps", "--resume", "--out-dir", "--data-dir", "--model-dir", "--ablation",
                   "--epsilon"}}
OPTIONS["IAD"] = OPTIONS["KD-AT"] | {"--begin", "--b"}


def options(parse):
    return {option for action in parse._actions for option in action.option_strings}


def run_flags():
    """Ours, which every script has beside the original's."""
    parse = Parser()
    add_run_flags(parse)
    return options(parse) | {"--scale_schedule", "--augment", "--limits_from"}


def parsed(method, dataset, *argv):
    args = flags.parser(method, dataset).parse_args(argv)
    return args, flags.settings_of(method, dataset, args)


@pytest.mark.parametrize(("method", "dataset"), TABLE)
def test_the_flags_of_a_script_are_the_originals(method, dataset):
    expected = set(OPTIONS["Generalist"]) if method == "Generalist" else OPTIONS["shared"] | OPTIONS.get(method, set())
    if method != "ST":
        expected |= OPTIONS["ratio"]
    there = options(flags.parser(method, dataset))
    assert expected <= there
    assert there - expected <= run_flags()
    assert run_flags() <= there


@pytest.mark.parametrize(("method", "dataset"), TABLE)
def test_the_defaults_are_the_released_ones(method, dataset):
    args, settings = parsed(method, dataset)
    for name, value in TABLE[method, dataset].items():
        found = getattr(settings if hasattr(settings, name) and name != "dataset" else args, name)
        assert found == value and isinstance(found, bool) == isinstance(value, bool), name
    assert settings.batch_size == 128 and settings.seed == 1 and settings.variant == "plain"
    assert settings.model == {"cifar10": "resnet18", "cifar100": "wrn-34-10"}[dataset]
    assert (settings.crop, settings.flip) == (4, True)
    assert settings.quirks == ("attack-train-bn", "clean-pass", "iad-steps", "momentum-reset", "st-wd")
    decay = {"cifar10": (5e-4, 5e-4), "cifar100": (7e-4, 5e-4)}[dataset]
    assert (settings.weight_decay, settings.standard_weight_decay) == decay
    assert settings == adarat.train.as_released(settings)


def test_quirks_move_the_defaults():
    assert parsed("IAD", "cifar100", "--quirks", "none")[1].step_num == 10
    assert parsed("IAD", "cifar100", "--quirks", "none", "--step_num", "7")[1].step_num == 7
    assert parsed("ST", "cifar100", "--quirks", "none")[1].standard_weight_decay == 7e-4
    assert parsed("ST", "cifar100", "--quirks", "all")[1].quirks == tuple(sorted(QUIRKS))
    assert "test-crop" in parsed("ST", "cifar10", "--quirks", "default,test-crop")[1].quirks


GIVEN = {"--epoch": ("epoch", "3", 3), "--batch_size": ("batch_size", "32", 32), "--step_num": ("step_num", "4", 4),
         "--learning_rate": ("learning_rate", "0.02", 0.02), "--epsilon": ("epsilon", "4/255", 4 / 255),
         "--step_size": ("step_size", "0.01", 0.01), "--beta": ("beta", "0.2", 0.2), "--up_lim": ("up_lim", "3", 3.0),
         "--down_lim": ("down_lim", "0.3", 0.3), "--tao": ("tao", "0.5", 0.5), "--lamda": ("lamda", "2", 2),
         "--FOSC_control_epoch": ("FOSC_control_epoch", "9", 9), "--FOSC_max": ("FOSC_max", "0.7", 0.7),
         "--ce": ("ce", "0.1", 0.1), "--teacher_robust": ("teacher_robust", "0.6", 0.6),
         "--teacher_standard": ("teacher_standard", "0.3", 0.3), "--begin": ("begin", "0", 0), "--b": ("b", "2", 2.0),
         "--epochs": ("epoch", "7", 7), "--lr": ("learning_rate", "0.5", 0.5), "--step-size": ("step_size", "0.1", 0.1),
         "--model": ("model", "small", "small"), "--width": ("width", "16", 16), "--seed": ("seed", "4", 4),
         "--n_train": ("n_train", "9", 9), "--n_epoch_test": ("n_epoch_test", "8", 8),
         "--hold_out": ("hold_out", "0.2", 0.2)}


@pytest.mark.parametrize(("method", "dataset"), TABLE)
def test_a_given_flag_reaches_the_settings(method, dataset):
    there = options(flags.parser(method, dataset))
    for option, (name, text, value) in GIVEN.items():
        if option in there:
            assert getattr(parsed(method, dataset, option, text)[1], name) == value, option
    for option in sorted(there & {"--FixRAT", "--AdaRAT", "--drop_last", "--scale_schedule"}):
        for text, value in (("True", True), ("False", False), ("false", False), ("0", False), ("1", True)):
            assert getattr(parsed(method, dataset, option, text)[1], option[2:]) is value


def test_false_means_false_and_adarat_needs_fixrat():
    for argv, variant in (([], "plain"), (["--FixRAT", "True"], "fixrat"), (["--AdaRAT", "True"], "plain"),
                          (["--FixRAT", "True", "--AdaRAT", "True"], "adarat"),
                          (["--FixRAT", "True", "--AdaRAT", "False"], "fixrat"),
                          (["--FixRAT", "False", "--AdaRAT", "True"], "plain")):
        assert parsed("PGD-AT", "cifar10", *argv)[1].variant == variant
    settings = parsed("PGD-AT", "cifar10", "--augment", "False")[1]
    assert (settings.crop, settings.flip) == (0, False)
    assert parsed("Generalist", "cifar10", "--resume", "False")[0].resume is False


def test_a_scaled_schedule_keeps_its_proportions():
    settings = parsed("IAD", "cifar10", "--epoch", "30", "--scale_schedule", "True")[1]
    assert [settings.at(epoch) for epoch in (60, 90, 110, 50, 0)] == [15, 22, 28, 12, 0]
    assert parsed("IAD", "cifar10", "--epoch", "30")[1].at(60) == 60
    assert parsed("IAD", "cifar10", "--epoch", "2", "--scale_schedule", "True")[1].at(10) == 1


# --- the scripts ---

@pytest.fixture
def started(monkeypatch):
    """Start a script in its own folder; what training was asked for comes back instead of being done."""
    def start(folder, script, *argv):
        asked = []
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", [script, *argv])
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(adarat.train, "train", lambda settings, args: asked.append((settings, args)))
            with pytest.raises(SystemExit) as end:
                runpy.run_path(script, run_name="__main__")
        assert end.value.code == 0
        return asked[0]
    return start


@pytest.mark.parametrize(("method", "folder", "dataset", "script"), SCRIPTS)
def test_each_script_trains_its_method_on_its_data_set(started, method, folder, dataset, script):
    settings, _ = started(ROOT / "adarat/train" / folder, script)
    assert (settings.method, settings.dataset, settings.variant) == (method, dataset, "plain")
    if method != "ST":
        settings, _ = started(ROOT / "adarat/train" / folder, script, "--FixRAT", "True", "--AdaRAT", "True")
        assert settings.variant == "adarat"


def test_there_are_no_other_scripts():
    found = {path.relative_to(ROOT / "adarat/train").as_posix() for path in (ROOT / "adarat/train").rglob("*.py")}
    assert found == {f"{folder}/{script}" for _, folder, _, script in SCRIPTS}


# The commands of the original's README, with the folder that it changes into.
README = [("PGD-AT", "train_cifar10.py", (), "plain"), ("PGD-AT", "train_cifar10.py", ("--FixRAT", "True"), "fixrat"),
          ("PGD-AT", "train_cifar10.py", ("--FixRAT", "True", "--AdaRAT", "True"), "adarat"),
          ("ST", "train_cifar10.py", (), "plain"),
          ("PGD-AT", "train_cifar100.py", ("--FixRAT", "True", "--AdaRAT", "True"), "adarat")]


@pytest.mark.parametrize(("folder", "script", "argv", "variant"), README)
def test_the_commands_of_the_original_readme(started, folder, script, argv, variant):
    settings, _ = started(ROOT / "adarat/train" / folder, script, *argv)
    assert (settings.method, settings.variant) == (folder, variant)
    assert settings == adarat.train.as_released(settings)


def test_the_readmes_first_command_makes_the_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common.environment, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT / "adarat")
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            runpy.run_path("make_dir.py", run_name="__main__")
        assert end.value.code == 0
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*/*/*")}
    assert found == {"results/adarat/cifar10", "results/adarat/cifar100", "weights/adarat/cifar10",
                     "weights/adarat/cifar100"}
    assert set(capsys.readouterr().out.split()) == found


def script_process(*argv, folder="PGD-AT"):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, *argv], cwd=ROOT / "adarat/train" / folder, env=environment,
                          capture_output=True, text=True, timeout=300)


def test_help_from_the_scripts_own_folder():
    done = script_process("train_cifar10.py", "--help")
    assert done.returncode == 0 and not done.stderr
    assert "--AdaRAT" in done.stdout and "(default: 0.04)" in done.stdout


@pytest.mark.parametrize(("method", "dataset"), TABLE)
def test_help_explains_every_flag(method, dataset):
    text = flags.parser(method, dataset).format_help()
    assert all(option in text for option in options(flags.parser(method, dataset)))
    assert all(action.help for action in flags.parser(method, dataset)._actions)


# --- mistakes ---

def test_a_mistake_is_one_line_and_status_2_and_writes_nothing(tmp_path):
    places = ("--results", str(tmp_path / "r"), "--weights", str(tmp_path / "w"))
    done = script_process("train_cifar10.py", "--epsilon", "8", *places)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == ("error: argument --epsilon: '8' is larger than the whole range of a pixel: images are in "
                           "[0,1], write 8/255 (see train_cifar10.py --help) [E-FLAG-VALUE]\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("argv", "message"), [
    (["--epsilon", "16/0"], "argument --epsilon: '16/0' divides by zero"),
    (["--epsilon", "-0.03"], "argument --epsilon: '-0.03' is negative"),
    (["--epsilon=-8/255"], "argument --epsilon: '-8/255' is negative"),
    (["--epsilon", "nan"], "'nan' is not finite"),
    (["--epsilon", "eight"], "'eight' is no number and no fraction such as 8/255"),
    (["--step_size", "2"], "argument --step_size: '2' is larger than the whole range of a pixel"),
    (["--FixRAt", "True"], "unknown flag --FixRAt: did you mean --FixRAT?"),
    (["--Fix", "True"], "unknown flag --Fix"),
    (["--zzz"], "unknown flag --zzz (see train_cifar10.py --help)"),
    (["stray"], "unknown flag stray"),
    (["--quirks", "momentum-rest"], "--quirks momentum-rest: unknown; there are aa-ten-steps,"),
    (["--AdaRAT", "maybe"], "argument --AdaRAT: 'maybe' is neither True nor False"),
    (["--FixRAT", "True", "--AdaRAT", "True", "--down_lim", "1.1"], "--down_lim 1.1 must be below --up_lim 1.1"),
    (["--FixRAT", "True", "--AdaRAT", "True", "--up_lim", "0.2"], "--down_lim 0.4 must be below --up_lim 0.2"),
    (["--FixRAT", "True", "--epsilon", "0"], "--epsilon 0 with --FixRAT True: the ratio term is beta/epsilon"),
    (["--epoch", "0"], "argument --epoch: '0' must be at least 1"),
    (["--epoch", "1.5"], "argument --epoch: '1.5' is no whole number"),
    (["--learning_rate", "0"], "argument --learning_rate: '0' must be above 0"),
    (["--hold_out", "1"], "argument --hold_out: '1' must be at least 0 and below 1"),
    (["--run", "../other"], "argument --run: '../other' cannot name a run"),
    (["--precision", "fp16"], "argument --precision: invalid choice: 'fp16'"),
    (["--device", "gpu7", "--data", "digits"], "--device gpu7 is no device"),
    (["--data", "cifar11"], "unknown data set 'cifar11': did you mean cifar10?"),
    (["--data", "digits", "--class_num", "100"], "--class_num 100 does not fit digits, which has 10 classes"),
    (["--data", "digits", "--model", "resnet19"], "there is no model 'resnet19' (did you mean resnet18?)"),
    (["--data", "digits", "--model", "wrn-34-10", "--width", "4"], "wrn-34-10 takes no width"),
    (["--data", "digits", "--n_train", "5000"], "5000"),
    (["--data", "digits", "--n_train", "64", "--model", "small", "--plan", "paper"], "unknown plan 'paper'"),
    (["--data", "digits", "--n_train", "64", "--model", "small", "--plan", "paper-adarat-9000"],
     "wants 9000 images, the test set has 400"),
    (["--data", "digits", "--n_train", "64", "--model", "small", "--epsilon", "0", "--plan", "paper-adarat-20"],
     "eps must be above 0"),
])
def test_mistakes(tmp_path, capsys, argv, message):
    with pytest.raises(SystemExit) as end:
        flags.main("PGD-AT", "cifar10", [*argv, "--results", str(tmp_path / "r"), "--weights", str(tmp_path / "w")])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and message in said.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "argv", "message"), [
    ("ST", ["--FixRAT", "True"], "unknown flag --FixRAT"),
    ("Generalist", ["--batch_size", "64"], "unknown flag --batch_size"),
    ("Generalist", ["--dataset", "cifar100"], "--dataset cifar100: this script is for cifar10; start train_cifar100"),
    ("Generalist", ["--arch", "smallcnn"], "argument --arch: invalid choice: 'smallcnn'"),
    ("Generalist", ["--data", "digits", "--resume", "True"], "generalist_custom_s1 is not trained to its end"),
])
def test_mistakes_with_other_scripts(tmp_path, capsys, method, argv, message):
    with pytest.raises(SystemExit) as end:
        flags.main(method, "cifar10", [*argv, "--results", str(tmp_path / "r"), "--weights", str(tmp_path / "w")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["KD-AT", "IAD"])
def test_a_missing_teacher_is_named_with_the_command_that_makes_it(tmp_path, capsys, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    places = ["--data", "digits", "--results", "r", "--weights", "w"]
    with pytest.raises(SystemExit) as end:
        flags.main(method, "cifar100", places)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert f"the robust teacher of {method} is missing: there is neither a file PGD_AT.pth nor" in said
    assert "pgd-at_custom_s1/last.pt" in said and "python adarat/train/PGD-AT/train_cifar100.py" in said
    Path("PGD_AT.pth").write_bytes(b"not looked at yet")
    with pytest.raises(SystemExit):
        flags.main(method, "cifar100", [*places, "--teacher_standard_name", "mine"])
    said = capsys.readouterr().err
    assert "the standard teacher" in said and "neither a file mine nor" in said and "mine/last.pt" in said
    assert "python adarat/train/ST/train_cifar100.py" in said
    assert {path.name for path in tmp_path.iterdir()} == {"PGD_AT.pth"}


def test_methods_are_found_however_they_are_spelled():
    assert [method_named(word) for word in ("pgd_at", "PGD-AT", "Kd-At", "generalist")] == [
        "PGD-AT", "PGD-AT", "KD-AT", "Generalist"]
    with pytest.raises(UserError, match=r"unknown method 'PGDAT': there are ST, PGD-AT, FAT"):
        method_named("PGDAT")
    with pytest.raises(ValueError, match="SAT"):
        flags.main("SAT", "cifar10", [])
    assert set(defaults("ST", "cifar10")) == {"model"}
