"""The masking page: silent on a plain network, and each sign there where its cause is planted."""

import copy
import json

import pytest
import torch
from torch import nn

from common import masking_plot, masking_words
from common.data.splits import Split, to_float
from common.evaluation.masking import measure, whole
from common.masking_words import signs

EPS = 0.03


class Around(nn.Module):
    def __init__(self, inner, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x):
        return self.after(self.inner(self.before(x)))


@pytest.fixture
def split(tiny) -> Split:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return Split(images, tiny(to_float(images)).argmax(1))


def look(model, split, **changes):
    return measure(model, split, **{"norm": "linf", "eps": EPS, "n": 40, "queries": 300, "grid": 5, "seed": 1,
                                    "device": torch.device("cpu")} | changes)


def there(found):
    return {sign.what for sign in signs(found) if sign.there}


def test_a_plain_network_shows_no_sign(tiny, split):
    found = look(tiny, split)
    assert json.loads(json.dumps(found)) == found
    assert there(found) == set() and "None of 11 signs" in masking_words.verdict(found)
    robust = [entry["robust"] for entry in found["by_eps"].values()]
    assert robust == sorted(robust, reverse=True) and found["whole"]["robust"] == 0
    assert found["clean"]["robust"] == 40 > found["fgsm"]["robust"] and found["noise"]["robust"] > robust[2]
    assert found["by_eps"]["1"] == found["by_steps"]["20"]
    assert found["margins"]["attacked"][2] < found["margins"]["clean"][2]
    assert found["surface"]["steeper"] == found["surface"]["n"] == 8
    assert [len(row) for row in found["surface"]["values"]] == [5] * 5


def test_the_same_seed_gives_the_same_page_and_the_network_is_left_alone(tiny, split):
    before = copy.deepcopy(tiny.state_dict())
    assert look(tiny, split, n=10) == look(tiny, split, n=10) != look(tiny, split, n=10, seed=2)
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_a_gradient_that_is_hidden_shows(tiny, split):
    found = there(look(Around(tiny, before=lambda x: (16 * x).round() / 16).eval(), split))
    assert {"the input gradient is exactly zero", "a ball that holds the grey image leaves images standing",
            "Square, which sees no gradient, breaks images that PGD-50 does not"} <= found


def test_a_network_that_no_gradient_reaches_has_a_page_too(tiny, split):
    found = look(Around(tiny, before=lambda x: x.detach()).eval(), split, n=12, queries=20)
    assert found["gradients"] == {"cross_entropy": 12, "margin": 12}
    assert "signs of masked gradients: the true robust accuracy may be lower" in masking_words.verdict(found)


def test_logits_that_saturate_show(tiny, split):
    found = there(look(Around(tiny, after=lambda z: 1e5 * z).eval(), split))
    assert {"the logits are so large that cross-entropy saturates", "the input gradient is exactly zero"} <= found


@pytest.mark.parametrize(("change", "what"), [
    (lambda found: found["by_eps"]["4"].update(robust=40), "a larger ball leaves more images standing"),
    (lambda found: found["by_steps"]["10"].update(robust=40), "more steps leave more images standing"),
    (lambda found: found["by_steps"]["20"].update(robust=found["by_steps"]["50"]["robust"] + 5),
     "20 steps are not enough"),
    (lambda found: found["by_steps"]["50"].update(loss=0.0), "the loss after 50 steps is below that after 5"),
    (lambda found: found["fgsm"].update(robust=0), "FGSM breaks more than PGD-20"),
    (lambda found: found["noise"].update(robust=0), "noise breaks as many as one step along the gradient"),
    (lambda found: found["square"].update(beyond=9),
     "Square, which sees no gradient, breaks images that PGD-50 does not"),
    (lambda found: found["surface"].update(steeper=3), "the loss does not rise along its own gradient"),
    (lambda found: found["whole"].update(robust=20), "a ball that holds the grey image leaves images standing")])
def test_each_sign_hangs_on_its_numbers(tiny, split, change, what):
    found = look(tiny, split, queries=30, eps=0.01)
    assert there(found) == set()
    change(found)
    assert what in there(found)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms(tiny, split, norm):
    found = look(tiny, split, norm=norm, eps={"l2": 0.4, "l1": 3.0}[norm], n=20, queries=50)
    robust = [entry["robust"] for entry in found["by_eps"].values()]
    assert robust == sorted(robust, reverse=True) and robust[-1] < robust[0] and found["whole"]["robust"] == 0
    x = to_float(split.images)
    assert whole(norm, x) == pytest.approx({"l2": 0.5 * 192 ** 0.5, "l1": 96}[norm])


def test_the_page_says_all_and_draws(tiny, split, tmp_path):
    found = look(tiny, split, queries=30)
    text = masking_words.page("Masked gradients? x", found, figure="x.png", notes=["from here"])
    assert text.startswith("# Masked gradients? x\n\nFirst 40 test images, linf, eps 0.03 (7.65/255), seed 1. None")
    assert "- from here\n" in text and "![curves](x.png)" in text and "| Square alone, 30 queries |" in text
    assert text.count("| no |") == 11
    for sign in signs(found):
        assert sign.what in text
    path = masking_plot.draw(found, tmp_path / "x.png")
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 20_000
