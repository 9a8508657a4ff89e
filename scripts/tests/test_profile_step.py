"""python -m scripts.profile_step: what counts for which part, and the record.  No timing is asserted."""

import json
import time

import pytest
import torch

from common.errors import UserError
from scripts import profile_step as tool

CPU = torch.device("cpu")
ALWAYS = {"data", "training, forward", "training, backward", "optimiser", "other processes", "rest"}
ATTACK = {"attack, forward and steps", "attack, backward"}


def run(tmp_path, *flags):
    """The record and its text."""
    assert tool.main(["--device", "cpu", "--model", "small", "--width", "4", "--batch", "4", "--steps", "2", "--rounds",
                      "1", *flags, "--out", str(tmp_path)]) == 0
    written, = tmp_path.glob("*-profile-*.json")
    return json.loads(written.read_text()), written.with_suffix(".md").read_text()


@pytest.mark.parametrize(("method", "parts"), [
    ("pgd-training", ATTACK), ("rpat++", ATTACK | {"other networks", "average"}), ("dyart-step", ATTACK),
    ("brainreg-step", set())])
def test_every_part_of_a_step_is_there(method, parts, tmp_path):
    # Of DyART's few images some must be learnt by heart, or nothing is searched.
    more = ("--width", "8", "--batch", "16") if method == "dyart-step" else ()
    record, text = run(tmp_path, "--method", method, *more)
    assert set(record["parts"]) == ALWAYS | parts and all(seconds > 0 for seconds in record["parts"].values())
    assert all(name in text for name in record["parts"]) and method in text
    assert record["operators"][0]["seconds"] == max(each["seconds"] for each in record["operators"])
    assert "convolution, forward" in text and len(record["step_seconds"]) == 1
    assert str(tmp_path) not in text


def test_a_trace_is_written_on_request(tmp_path):
    run(tmp_path, "--trace", str(tmp_path / "trace.json"))
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_what_is_inside_counts_for_the_inner_part():
    clock = tool.Clock(CPU)
    with clock("outer"):
        time.sleep(0.02)
        for _ in range(2):
            with clock("inner"):
                time.sleep(0.05)
    assert clock.seconds["inner"] >= 0.1 and 0.02 <= clock.seconds["outer"] < clock.seconds["inner"]


def test_the_clock_is_taken_away_again():
    plain = torch.autograd.grad
    with pytest.raises(KeyError), tool.gradients_timed(tool.Clock(CPU)):
        assert torch.autograd.grad is not plain
        raise KeyError
    assert torch.autograd.grad is plain


@pytest.mark.parametrize(("name", "words"), [
    ("aten::convolution_backward", "convolution, backward"), ("aten::mkldnn_convolution", "convolution, forward"),
    ("sm90_xmma_dgrad_implicit_gemm_bf16", "convolution, backward"), ("aten::native_batch_norm", "batch norm"),
    ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution, forward"), ("aten::addmm", "matrix products"),
    ("aten::threshold_backward", "ReLU, pooling"), ("aten::_foreach_add_", "optimiser, average"),
    ("aten::copy_", "copies, casts"), ("aten::uniform_", "random numbers"),
    ("aten::sign", "others: elementwise, losses"),
    ("cudnn::bn_fw_tr_1C11_kernel_NCHW", "batch norm"), ("aten::_local_scalar_dense", "waits for the device")])
def test_kinds_of_operators(name, words):
    assert tool.kind(name) == words


@pytest.mark.parametrize("flags", [("--method", "fgsm"), ("--precision", "fp8"), ("--device", "abacus"), ("--fast",)])
def test_a_wrong_flag_is_one_line_and_writes_nothing(flags, tmp_path):
    with pytest.raises(UserError):
        tool.main([*flags, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
