"""What commands share: which flags were typed, which run is meant, and where its data are."""

import json

import pytest

from common import commands
from common.errors import UserError
from common.flags import Parser


def parser() -> Parser:
    parse = Parser(prog="x.py")
    parse.add_argument("--lr", type=float, default=0.1)
    parse.add_argument("--deep", action="store_true")
    parse.add_argument("-d", "--data", default="digits")
    return parse


def test_what_was_typed_is_known_even_where_it_is_the_default():
    args, typed = commands.parse_typed(parser, ["--lr", "0.1", "-d", "cifar10"])
    assert typed == {"lr": 0.1, "data": "cifar10"} and (args.lr, args.data, args.deep) == (0.1, "cifar10", False)
    assert commands.parse_typed(parser, ["--deep"])[1] == {"deep": True} and commands.parse_typed(parser, [])[1] == {}


def test_flags_without_effect_are_named(capsys):
    commands.note_unused({"b": 1, "a": 2, "c": 3}, {"b"})
    assert "no effect: --a, --c" in capsys.readouterr().err
    commands.note_unused({"b": 1}, {"b"})
    assert capsys.readouterr().err == ""


def make_run(root, command="python p/train.py --lr 0.3 --data npz:a.npz", **more):
    folder = root / "results/p/digits/a_run"
    folder.mkdir(parents=True)
    run = {"schema": 1, "paper": "p", "dataset": "digits", "run": "a_run", "command": command, "method": "AT",
           "variant": "plain", "budget": "custom", "seed": 1, "config": {"model": {"name": "small"}},
           "config_sha256": "0", "spec_sha256": None, "quirks": [], "needs": {}, "model": {},
           "data": {"name": "digits", "test_fingerprint": "0", "train_fingerprint": "0"}, **more}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_a_run_is_found_by_its_folder_and_by_that_of_its_weights(tmp_path, monkeypatch):
    folder, weights = make_run(tmp_path), tmp_path / "weights/p/digits/a_run"
    weights.mkdir(parents=True)
    assert commands.run_folder(str(folder)) == folder and commands.run_folder(str(weights)) == folder
    monkeypatch.chdir(tmp_path)
    assert commands.run_folder("weights/p/digits/a_run").resolve() == folder
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert commands.run_folder("results/p/digits/a_run") == folder
    assert commands.run_folder("weights/p/digits/a_run") == folder
    for text in ("results/p/digits/another", str(tmp_path)):
        with pytest.raises(UserError, match=r"is no run of this repository \(because\)"):
            commands.run_folder(text, "because")


def test_an_unfinished_run_goes_on_under_its_name_where_it_is(tmp_path, monkeypatch):
    folder = make_run(tmp_path)
    begun = ["--lr", "0.3", "--data", "npz:a.npz"]
    named = ["--run", "a_run", "--dataset_name", "digits"]
    elsewhere = ["--results", str(tmp_path / "results"), "--weights", str(tmp_path / "weights")]
    assert commands.unfinished(str(folder), "p", "p/train.py", "eval") == [*begun, *elsewhere, *named]
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    assert commands.unfinished(str(folder), "p", "p/train.py", "eval") == [*begun, *named]
    for paper, script in (("q", "p/train.py"), ("p", "p/other.py")):
        with pytest.raises(UserError, match="is no run of"):
            commands.unfinished(str(folder), paper, script, "eval")
    (folder / "train.json").write_text("{}")
    with pytest.raises(UserError, match=r"nothing to resume; evaluate it: bash e\.sh .*a_run$"):
        commands.unfinished(str(folder), "p", "p/train.py", "bash e.sh")


def test_data_of_a_record_are_found_here(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    assert commands.found_data("cifar10", "x") == "cifar10"
    (tmp_path / "pictures").mkdir()
    assert commands.found_data("folder:pictures?size=8", "x") == f"folder:{tmp_path / 'pictures'}?size=8"
    with pytest.raises(UserError, match=r"trained on digits, given as --data npz:a\.npz, which is not here"):
        commands.found_data("npz:a.npz", "digits")


def test_which_checkpoint():
    kept = {"last": {}, "best": {}}
    assert commands.chosen_checkpoint({"run": "r"}, kept, None, "best") == "best"
    assert commands.chosen_checkpoint({"run": "r"}, kept, "last", "best") == "last"
    with pytest.raises(UserError, match="r has no checkpoint '7': there are last, best"):
        commands.chosen_checkpoint({"run": "r"}, kept, "7", "best")
