"""The preflight: a network with one planted bug per code, and what is nearly one and passes."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.data.splits import Split, to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, evaluate, preflight
from common.evaluation.codes import CODES, REFUSING, Finding, checked, decide
from common.evaluation.kinds import unusual_size
from common.evaluation.preflight import Stored, check_data
from common.evaluation.probes import probe
from common.models import Normalise, build

EPS = 0.01
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
ATTACKS = Plan("p", (Evaluator("clean", "clean"), Evaluator("FGSM", "fgsm", eps=EPS)))


class Around(nn.Module):
    """A network with something before and after it."""

    def __init__(self, inner, before=None, after=None):
        super().__init__()
        self.inner = inner
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.inner(self.before(x)))


class Do(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Stubborn(nn.Module):
    """eval() does not reach it."""

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return x


class Restless(nn.Module):
    """Switches its network to train mode whenever it is called."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner.train()(x)


def by_batch(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return network


@pytest.fixture
def split(tiny) -> Split:
    """60 images with the contrast of photographs (a deviation of 0.25), nearly all classified correctly."""
    noise = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (255 * (0.48 + 0.25 * noise)).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        labels = tiny(to_float(images)).argmax(1)
    labels[::10] = (labels[::10] + 1) % 10
    return Split(images, labels)


def codes(model, x, y=None, **options):
    y = torch.arange(len(x)) % 10 if y is None else y
    return [finding.code for finding in probe(model, x, y, **options)]


def refused(model, split, folder, plan=ATTACKS, **options):
    """The code that the evaluation is refused with, before a file is written."""
    with pytest.raises(UserError) as caught:
        evaluate(model, split, plan, seed=1, device="cpu", work=folder, progress=False, **options)
    assert "\n" not in str(caught.value) and not list(folder.iterdir())
    return str(caught.value).split(":")[0]


# --- nothing is wrong ---

def test_a_sound_network_passes_and_is_left_as_it_was(tinybn, split):
    state = {name: value.clone() for name, value in tinybn.state_dict().items()}
    x = to_float(split.images[:16])
    assert codes(tinybn.eval(), x, split.labels[:16]) == []
    assert all(torch.equal(value, state[name]) for name, value in tinybn.state_dict().items())
    assert not any(module.training for module in tinybn.modules())


@pytest.mark.parametrize("wrap", [
    lambda net: Around(net, before=Normalise(MEAN, STD)), lambda net: Around(net, before=Do(lambda x: 255 * x)),
    lambda net: Around(net, before=Do(lambda x: 2 * x - 1)), lambda net: Around(net, after=nn.LogSoftmax(1)),
    lambda net: Around(net, after=Do(lambda z: z.abs())),
    lambda net: Around(net, after=Do(lambda z: 1e-4 * z + 3))])
def test_what_only_looks_like_a_mistake_passes(tiny, split, wrap):
    assert codes(wrap(tiny).eval(), to_float(split.images[:16])) == []


def test_every_network_of_ours_passes_with_and_without_normalisation(split):
    torch.manual_seed(0)
    x = to_float(split.images[:6])
    for name in ("small", "resnet18", "preactresnet18", "mobilenet"):
        for normalise in (None, (MEAN, STD)):
            assert codes(build(name, classes=10, width=8, normalise=normalise).eval(), x) == [], name


# --- one planted bug per code ---

BUGS = {
    "E-MODE": [lambda net: Around(net, before=Stubborn()).eval(), lambda net: Restless(net).eval()],
    "E-SOFTMAX": [lambda net: Around(net.eval(), after=nn.Softmax(1)).eval(),
                  lambda net: Around(net.eval(), after=Do(lambda z: 10 * z.softmax(1))).eval()],
    "E-NORMALISED-TWICE": [lambda net: Around(nn.Sequential(Normalise(MEAN, STD), net), Normalise(MEAN, STD)).eval()],
    "E-GRADIENT": [lambda net: Around(net, before=Do(lambda x: x.detach())).eval(),
                   lambda net: Around(net, before=Do(lambda x: (8 * x).round() / 8)).eval(),
                   lambda net: Around(net, before=Do(lambda x: (x - x).sqrt() + x)).eval(),
                   lambda net: Around(net, after=Do(lambda z: z / 0)).eval()],
    "E-RANDOM": [lambda net: Around(net, before=Do(lambda x: x + 0.01 * torch.randn_like(x))).eval(),
                 lambda net: Around(net, after=Do(lambda z: F.dropout(z, 0.3, training=True))).eval()],
    "E-BATCH": [lambda net: by_batch(net).eval(),
                lambda net: Around(net, before=Do(lambda x: x - x.mean(0))).eval()],
}


@pytest.mark.parametrize(("code", "bug"), [(code, bug) for code, bugs in BUGS.items() for bug in bugs])
def test_a_bug_in_the_network_is_refused_by_its_code_and_can_be_allowed(tinybn, split, tmp_path, code, bug):
    model = bug(tinybn.eval())
    x = to_float(split.images[:16])
    assert codes(model, x) == [code]
    assert refused(model, split, tmp_path) == code
    if code in ("E-SOFTMAX", "E-RANDOM", "E-NORMALISED-TWICE", "E-BATCH"):
        results = evaluate(model, split, ATTACKS, seed=1, device="cpu", work=tmp_path, progress=False, allow=(code,))
        assert [result.n for result in results] == [60, 60]


def test_a_network_left_in_train_mode_is_refused_as_it_is_handed_over(tinybn, split):
    before = tinybn[1].running_mean.clone()
    found = probe(tinybn.train(), to_float(split.images[:8]), split.labels[:8])
    assert [finding.code for finding in found] == ["E-MODE"] and "call eval()" in found[0].text
    assert torch.equal(tinybn[1].running_mean, before)


def test_statistics_that_move_are_put_back(tinybn, split):
    before = tinybn[1].running_mean.clone()
    assert codes(Restless(tinybn).eval(), to_float(split.images[:8])) == ["E-MODE"]
    assert torch.equal(tinybn[1].running_mean, before)


@pytest.mark.parametrize(("change", "said"), [
    (lambda x: 255 * x, "divide them by 255"), (lambda x: x / 255, "divided by 255 twice"),
    (lambda x: 2 * x - 1, "put the normalisation inside"), (Normalise(MEAN, STD), "put the normalisation inside")])
def test_images_out_of_range(tiny, split, change, said):
    x = change(to_float(split.images[:16]))
    found = probe(tiny, x, split.labels[:16])
    assert found[0].code == "E-RANGE" and said in found[0].text


def test_normalised_images_for_a_network_that_normalises(tiny, split):
    x = Normalise(MEAN, STD)(to_float(split.images[:16]))
    assert codes(nn.Sequential(Normalise(MEAN, STD), tiny).eval(), x) == ["E-NORMALISED-TWICE"]


def test_images_of_zeros_and_ones_are_no_bytes(tiny, split, tmp_path):
    assert refused(tiny, Split((split.images > 100).to(torch.uint8), split.labels), tmp_path) == "E-RANGE"


def test_logits_that_saturate_the_cross_entropy_warn(tiny, split, tmp_path, capsys):
    loud = Around(tiny, after=Do(lambda z: 1e6 * z)).eval()
    assert codes(loud, to_float(split.images[:16]), tiny(to_float(split.images[:16])).argmax(1)) == ["W-GRADIENT"]
    evaluate(loud, split, ATTACKS, seed=1, device="cpu", work=tmp_path)
    assert "warning: W-GRADIENT" in capsys.readouterr().err


def test_attacks_without_gradients_need_none(tiny, split, tmp_path):
    masked = Around(tiny, before=Do(lambda x: x.detach())).eval()
    plan = Plan("p", (Evaluator("noise", "uniform-noise", eps=EPS),))
    assert evaluate(masked, split, plan, seed=1, device="cpu", work=tmp_path, progress=False)[0].n == 60


# --- radius, classes, shape ---

@pytest.mark.parametrize(("norm", "eps", "warns"), [
    ("linf", 0.031, "is 7.905/255: if 8/255 is meant"), ("linf", 0.0314, "8/255"), ("linf", 8 / 255, ""),
    ("linf", 0.03137, ""), ("linf", 0.3, ""), ("linf", 0.1, ""), ("linf", 0.02, ""), ("linf", 0.5, "large for linf"),
    ("linf", 0.0, ""), ("l2", 0.5, ""), ("l2", 8 / 255, "small for l2"), ("l1", 0.5, "small for l1")])
def test_unusual_radii(norm, eps, warns):
    assert (warns in unusual_size(norm, eps)) and bool(unusual_size(norm, eps)) == bool(warns)


def test_a_radius_that_its_norm_cannot_have(tiny, split, tmp_path):
    with pytest.raises(UserError, match=r"^E-EPS: .* 8 looks like 8/255"):
        Evaluator("FGSM", "fgsm", eps=8)
    assert refused(tiny, split, tmp_path, Plan("p", (Evaluator("F", "fgsm", "l2", 128.0),))) == "E-EPS"


def test_too_few_classes_and_images_of_another_shape(split, tmp_path):
    few = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    three = Split(split.images, split.labels % 3)
    assert refused(few, three, tmp_path, Plan("p", (Evaluator("AutoAttack", "autoattack", eps=EPS),))) == "E-CLASSES"
    assert refused(few, split, tmp_path) == "E-CLASSES"
    assert refused(few, Split(split.images[:, :1], split.labels), tmp_path) == "E-SHAPE"


# --- clean accuracy and data ---

def verdicts(tiny, split):
    with torch.no_grad():
        return (tiny(to_float(split.images)).argmax(1) == split.labels).numpy()


def test_a_clean_accuracy_other_than_the_stored_one(tiny, split, tmp_path):
    right = verdicts(tiny, split)
    assert right.sum() == 54
    flipped = right.copy()
    flipped[:2] ^= True
    assert refused(tiny, split, tmp_path, stored=Stored("eval-x.json", flags=flipped)) == "E-CLEAN"
    assert refused(tiny, split, tmp_path, stored=Stored("card", accuracy=0.6)) == "E-CLEAN"
    one = right.copy()
    one[3] ^= True
    for stored in (Stored("r", flags=right), Stored("r", flags=right[:20]), Stored("r", flags=one),
                   Stored("c", accuracy=0.9), Stored("c", accuracy=0.85)):
        evaluate(tiny, split, ATTACKS, seed=1, device="cpu", work=tmp_path, progress=False, stored=stored)


def test_a_clean_accuracy_that_fits_excuses_two_normalisations(tiny, split, tmp_path):
    twice = Around(nn.Sequential(Normalise(MEAN, STD), tiny), Normalise(MEAN, STD)).eval()
    right = np.array(verdicts(twice, split))
    stored = Stored("eval-x.json", flags=right)
    evaluate(twice, split, ATTACKS, seed=1, device="cpu", work=tmp_path, progress=False, stored=stored)
    (tmp_path / "b").mkdir()
    assert refused(twice, split, tmp_path / "b", stored=Stored("x", flags=~right)) == "E-NORMALISED-TWICE"


def test_a_network_that_guesses_warns(tiny, split, tmp_path, capsys):
    guessed = Split(split.images, (split.labels + 1 + torch.arange(60) % 9) % 10)
    evaluate(tiny, guessed, ATTACKS, seed=1, device="cpu", work=tmp_path)
    assert "warning: W-CLEAN" in capsys.readouterr().err
    evaluate(tiny, split, ATTACKS, seed=1, device="cpu", work=tmp_path)
    assert "W-" not in capsys.readouterr().err


def test_other_test_images_than_those_of_the_record():
    here, there = ({"source": name, "test_fingerprint": name} for name in ("a", "b"))
    check_data(here, here, "the data of the run")
    with pytest.raises(UserError, match=r"^E-DATA: a is not the data of the run"):
        check_data(here, there, "the data of the run")


# --- the codes themselves ---

def test_the_first_refusal_is_said_and_the_others_named(capsys):
    found = [Finding("W-EPS", "w"), Finding("E-RANDOM", "r: mend"), Finding("E-SOFTMAX", "s: mend")]
    with pytest.raises(UserError, match=r"^E-RANDOM: r: mend; besides E-SOFTMAX \(see docs/why"):
        decide(found)
    decide(found, ("E-RANDOM", "E-SOFTMAX"))
    assert capsys.readouterr().err == "warning: W-EPS: w\naccepted: E-RANDOM: r: mend\naccepted: E-SOFTMAX: s: mend\n"


def test_codes_that_can_be_allowed():
    assert checked(["E-RANDOM", "E-BATCH", "E-BATCH"]) == ("E-BATCH", "E-RANDOM")
    with pytest.raises(UserError, match="--allow W-EPS: no such code"):
        checked(["W-EPS"])
    assert {*BUGS} < {*REFUSING} < {*CODES}


@pytest.mark.slow
def test_it_takes_less_than_ten_seconds_on_a_large_network():
    torch.manual_seed(0)
    network = build("wrn-34-10", classes=10).eval()
    images = torch.randint(0, 256, (500, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(500) % 10)
    started = time.monotonic()
    preflight.examine(network, split, ATTACKS, torch.device("cpu"), 10)
    assert time.monotonic() - started < 20                   # twice as long on a busy machine
