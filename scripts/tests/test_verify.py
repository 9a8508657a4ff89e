"""Receipts: judged again to the last image; a changed pixel, flag or weight is found."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.checkpoint import read_state, save_state
from common.data.digits import load_digits
from common.data.splits import Split
from common.environment import ROOT
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate, harness, receipts
from common.models import build
from scripts import evaluate as command
from scripts import verify

PLAN, N = "quick-30", 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, ...) with weights.pt and its receipt.npz on the digits, as the command writes them."""
    folder = tmp_path_factory.mktemp("receipt")
    torch.manual_seed(0)
    network = build("small", classes=10, channels=1, width=8)
    data = load_digits().train
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(60):
        part = torch.randperm(len(data), generator=torch.Generator().manual_seed(step))[:64]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(data.images[part] / 255), data.labels[part]).backward()
        optimiser.step()
    save_state(folder / "weights.pt", network.eval().state_dict())
    before = sys.argv
    sys.argv = ["evaluate.py", str(folder / "weights.pt"), "--model", "small", "--width", "8", "--data", "digits",
                "--device", "cpu", "--plan", PLAN, "--eps", "0.05", "--receipt", str(folder / "receipt.npz"),
                "--out", str(folder / "record.json")]
    try:
        command.main()
    finally:
        sys.argv = before
    return folder


def check(monkeypatch, capsys, *words):
    """(exit status, what was said)."""
    monkeypatch.setattr("sys.argv", ["verify.py", *map(str, words)])
    status = verify.main()
    said = capsys.readouterr()
    return status, said.out + said.err


def changed(made, tmp_path, change, honest=False):
    """The receipt after `change(arrays, meta)`; honest: its hashes are made to fit."""
    with np.load(made / "receipt.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    change(arrays, meta)
    if honest:
        meta["arrays"] = {name: receipts.digest(array) for name, array in arrays.items()}
    np.savez(tmp_path / "other.npz", meta=np.array(json.dumps(meta)), **arrays)
    return tmp_path / "other.npz"


def test_a_function_that_a_receipt_names_is_run_only_if_the_user_names_it(made, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_maker.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
        "from common.models import build\ndef network():\n    return build('small', classes=10, channels=1, width=8)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = changed(made, tmp_path, lambda arrays, meta: meta.update(model={"builder": "my_maker:network"}))
    for words in ((), ("--model", "my_maker:other")):
        with pytest.raises(UserError, match=r"a record says that my_maker:network builds .* was not run") as caught:
            check(monkeypatch, capsys, path, "--weights", made / "weights.pt", *words)
        assert caught.value.code == "E-BUILDER" and not (tmp_path / "imported").exists()
    assert check(monkeypatch, capsys, path, "--weights", made / "weights.pt", "--model", "my_maker:network")[0] == 0


def test_a_receipt_is_judged_again(made, monkeypatch, capsys):
    status, said = check(monkeypatch, capsys, made / "receipt.npz", "--weights", made / "weights.pt",
                         "--data", "digits")
    record = json.loads((made / "record.json").read_text())
    assert status == 0 and f"{made / 'receipt.npz'}: whole" in said
    for result in record["results"]:
        assert f"  {result['name']}: {result['robust']} of {result['n']}, every image judged again" in said
    robust = [result["robust"] / result["n"] for result in record["results"]]
    assert 0.1 < robust[-1] < robust[0]
    with np.load(made / "receipt.npz") as stored:
        assert stored["adversarial/PGD-20"].dtype == np.float32 and stored["adversarial/PGD-20"].shape == (N, 1, 8, 8)
        apart = np.abs(stored["adversarial/PGD-20"] - stored["clean"] / 255).max()
    assert 0.04 < apart < 0.0501
    assert sorted(path.name for path in made.iterdir()) == ["receipt.npz", "record.json", "weights.pt"]


def pixel(name):
    def change(arrays, meta):
        arrays[name] = arrays[name].copy()
        arrays[name].flat[3] += arrays[name].dtype.type(1) if arrays[name].dtype == np.uint8 else 1e-6
    return change


def far(arrays, meta):
    arrays["adversarial/PGD-20"] = arrays["adversarial/PGD-20"].copy()
    arrays["adversarial/PGD-20"][0] = 0.5


def back_to_clean(arrays, meta):
    arrays["adversarial/PGD-20"] = (arrays["clean"] / 255).astype(np.float32)


def one_more(arrays, meta):
    flags = arrays["flags/PGD-20"] = arrays["flags/PGD-20"].copy()
    flags[np.flatnonzero(~flags)[0]] = True
    next(each for each in meta["evaluators"] if each["name"] == "PGD-20")["robust"] += 1


@pytest.mark.parametrize(("change", "honest", "said"), [
    (pixel("adversarial/PGD-20"), False, "adversarial/PGD-20 is not what was written"),
    (pixel("clean"), False, "clean is not what was written"),
    (pixel("clean"), True, "are not the first test images of that data set"),
    (far, True, "farther than eps"), (back_to_clean, True, "PGD-20: "), (one_more, False, "flags/PGD-20 is not what"),
    (one_more, True, "PGD-20: 1 verdicts of 30 are others"),
    (lambda arrays, meta: meta["evaluators"][0].update(robust=30), False, "clean: 30 of 30 is said, the flags have"),
    (lambda arrays, meta: arrays.pop("labels"), False, "and names"),
    (lambda arrays, meta: meta.update(state_sha256="0"), False, "the weights are not those of the receipt")])
def test_what_changed_is_found(made, tmp_path, monkeypatch, capsys, change, honest, said):
    path = changed(made, tmp_path, change, honest)
    status, text = check(monkeypatch, capsys, path, "--weights", made / "weights.pt", "--data", "digits")
    assert status == 1 and text.startswith("changed: ") and said in text and text.count("\n") == 1


def test_a_changed_weight_is_found(made, tmp_path, monkeypatch, capsys):
    state = read_state(made / "weights.pt")
    next(iter(state.values())).view(-1)[0] += 1e-6
    save_state(tmp_path / "w.pt", state)
    status, text = check(monkeypatch, capsys, made / "receipt.npz", "--weights", tmp_path / "w.pt")
    assert status == 1 and "is not the file of weights that the receipt names" in text


def test_a_damaged_file_and_none_at_all(made, tmp_path):
    content = (made / "receipt.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:len(content) // 2])
    (tmp_path / "other.npz").write_bytes(b"hello")
    np.savez(tmp_path / "array.npz", x=np.zeros(3))
    verified = [subprocess.run((sys.executable, ROOT / "scripts" / "verify.py", tmp_path / "cut.npz"),
                               capture_output=True, text=True)]
    assert verified[0].returncode == 1 and verified[0].stderr.startswith("changed: ")
    for name in ("none.npz", "other.npz", "array.npz"):
        with pytest.raises((UserError, receipts.Changed)):
            receipts.read_receipt(tmp_path / name)


def test_an_interrupted_evaluation_makes_up_for_the_images_it_lacks(tiny, tmp_path):
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, tiny(images / 255).argmax(1))
    plan = Plan("p", (Evaluator("PGD", "pgd", eps=0.01, step_size=0.003, steps=3),), chunk=8)
    given = {"seed": 1, "device": "cpu", "work": tmp_path, "progress": False}
    first, = evaluate(tiny, split, plan, **given)
    keeper = receipts.Keeper(tmp_path, "key")
    again, = evaluate(tiny, split, plan, keeper=keeper, **given)
    kept = torch.from_numpy(keeper.collect("PGD", 3))
    assert first.flags.tolist() == again.flags.tolist() == (tiny(kept).argmax(1) == split.labels).tolist()
    assert 0 < first.robust < 20 and not receipts.Keeper(tmp_path, "another").has("PGD", 0)
    keeper.clear()
    assert not list(tmp_path.glob("kept-*"))
    with pytest.raises(UserError, match="no receipt can be given"):
        evaluate(tiny, split, Plan("p", plan.evaluators, test_crop=True), keeper=keeper, **given)


def test_the_harness_keeps_what_fooled_the_network(tiny):
    assert harness.keeps_images("autoattack") and not harness.keeps_images("clean")
    assert receipts.digest(np.zeros(3, np.float32)) != receipts.digest(np.zeros(3, np.int32))
