"""Export: safetensors, RobustBench's model_info and a model card, which give the checkpoint and its numbers back."""

import json

import pytest
import torch

from common.card import Paper, architecture, chosen, eps_text, model_info, problems
from common.checkpoint import load_weights, read_state, save_state
from common.errors import UserError
from common.evaluation import weights_sha256
from common.experiment import build_network
from common.files import sha256_of
from common.records import RunRecord, read_run
from common.safetensor_files import read_tensors, write_tensors
from common.tests.fabricate import fabricate
from scripts import export

MODEL = {"name": "small", "classes": 10, "channels": 3, "width": 8}
AUTOATTACK = {"AutoAttack": {"kind": "autoattack"}, "clean": {"norm": "linf", "eps": 0.0}}


@pytest.fixture
def made(tmp_path):
    """(folder of a run's records, its weights): what export reads."""
    torch.manual_seed(0)
    network = build_network(MODEL)
    file = tmp_path / "weights/adarat/cifar10/pgd-at_short_s1/last.pt"
    save_state(file, network.state_dict())
    folder = fabricate(tmp_path / "results", config={"model": MODEL}, weights=sha256_of(file), n=1000,
                       accuracies={"clean": 0.803, "AutoAttack": 0.401}, said=AUTOATTACK)
    return folder, file


def call(monkeypatch, folder, tmp_path, *words):
    monkeypatch.setattr("sys.argv", ["export.py", str(folder), "--out", str(tmp_path / "out"), "--weights",
                                     str(tmp_path / "weights"), *words])
    export.main()


def test_what_is_exported_gives_the_checkpoint_back(made, tmp_path, monkeypatch, capsys):
    call(monkeypatch, made[0], tmp_path)
    assert "read again: the same tensors" in capsys.readouterr().out
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [f"pgd-at_short_s1.{end}" for end in
                                                           ("json", "md", "safetensors")]
    exported = out / "pgd-at_short_s1.safetensors"
    state, again = read_state(made[1]), read_state(exported)
    assert set(state) == set(again) and all(torch.equal(state[name], again[name]) for name in state)
    network = build_network(MODEL)
    load_weights(network, exported)
    info = json.loads((out / "pgd-at_short_s1.json").read_text())
    assert info["clean_acc"] == "80.30" and info["autoattack_acc"] == "40.10" and info["eps"] == "8/255"
    assert info["architecture"] == "small, width 8" and info["additional_data"] is False
    assert "on the first 1000" in info["footnote"] and problems(info) == []
    card = (out / "pgd-at_short_s1.md").read_text()
    assert f"sha256 `{sha256_of(exported)}`" in card and weights_sha256(network) in card
    assert "| AutoAttack | linf 8/255 | 1000 | 40.10 | 37.1 to 43.2 | adarat |" in card
    assert "--model small --width 8 --data cifar10" in card and "momentum-reset" in card


def test_a_file_that_does_not_give_the_checkpoint_back_is_found(made, tmp_path, monkeypatch):
    def careless(path, tensors, said):
        return write_tensors(path, {name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
                                    for name, tensor in tensors.items()}, said)
    monkeypatch.setattr("common.safetensor_files.write_tensors", careless)
    with pytest.raises(UserError, match="does not give the network back"):
        call(monkeypatch, made[0], tmp_path)


def test_what_is_missing_is_one_line(made, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="has no checkpoint 'best': there are last"):
        call(monkeypatch, made[0], tmp_path, "--checkpoint", "best")
    made[1].write_bytes(b"x")
    with pytest.raises(UserError, match=r"last\.pt is not the file that train\.json names"):
        call(monkeypatch, made[0], tmp_path)
    made[1].unlink()
    with pytest.raises(UserError, match="are not here"):
        call(monkeypatch, made[0], tmp_path)
    run = read_run(made[0])
    with pytest.raises(UserError, match="is not trained to its end"):
        export.weights_of(RunRecord(run.folder, run.run, None, [], {}), "last", tmp_path)
    assert not (tmp_path / "out").exists()


def test_only_autoattack_itself_on_these_weights_is_reported(made, tmp_path):
    folder = fabricate(tmp_path / "other", config={"model": MODEL}, accuracies={"clean": 0.8, "AA (fast search)": 0.4},
                       said={"AA (fast search)": {"kind": "fast-autoattack"}})
    with pytest.raises(UserError, match="no record has the AutoAttack of its last weights"):
        model_info(read_run(folder), "last", Paper("t"))
    folder = fabricate(tmp_path / "third", config={"model": MODEL}, accuracies={"clean": 0.8, "AutoAttack": 0.4},
                       said=AUTOATTACK, judged="0" * 64)
    with pytest.raises(UserError, match="no record has the clean accuracy and the AutoAttack"):
        model_info(read_run(folder), "last", Paper("t"))


def test_of_several_radii_the_usual_one_is_taken(tmp_path):
    said = {f"AutoAttack eps={k}": {"kind": "autoattack", "eps": k / 255} for k in (2, 8, 16)}
    folder = fabricate(tmp_path, config={"model": MODEL}, said=said | {"clean": {"eps": 0.0}},
                       accuracies={"clean": 0.8, **dict.fromkeys(said, 0.5)})
    run = read_run(folder)
    assert chosen(export_judged(run))[1].result["name"] == "AutoAttack eps=8"


def export_judged(run):
    from common.card import judged
    return judged(run, "last")


@pytest.mark.parametrize(("model", "said"), [
    ({"name": "wrn-28-10-swish"}, "WideResNet-28-10 (swish)"), ({"name": "wrn-34-10"}, "WideResNet-34-10"),
    ({"name": "preactresnet18", "width": 64}, "PreActResNet-18"), ({"name": "resnet18", "width": 16},
                                                                  "ResNet-18, width 16"),
    ({"name": "resnet18-bottleneck"}, "ResNet-18 (bottleneck)"), ({"name": "vgg16"}, "vgg16")])
def test_architectures_are_called_as_papers_call_them(model, said):
    assert architecture(model) == said


def test_radii_and_what_robustbench_could_not_read():
    assert eps_text("linf", 8 / 255) == "8/255" and eps_text("l2", 0.5) == "0.5" and eps_text("linf", 0.3) == "0.3"
    assert problems({"clean_acc": 80.3, "additional_data": "no"})[-2:] == [
        "clean_acc is 80.3, not a percentage as text", "additional_data is neither true nor false"]


def test_a_damaged_or_missing_safetensors_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"hello")
    with pytest.raises(UserError, match="is no safetensors file, or damaged"):
        read_state(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_tensors(tmp_path / "y.safetensors")
