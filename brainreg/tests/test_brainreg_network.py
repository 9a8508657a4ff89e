"""The pair ResNet: the released code's names, shapes, counts, logits and similarities; who moves mu."""

import copy

import pytest
import torch
from torch import nn

from brainreg.network import Pair, PairResNet, build, similarity_matrix
from brainreg.tests.brainreg_networks import a_pair, cosines, pictures, small
from common.checkpoint import load_weights
from common.engine import Engine
from common.errors import UserError
from common.experiment import build_network
from common.models import count_parameters
from common.tests.golden_models import DESCRIBED, check_logits, rule_state

ORIGINALS = [f"brainreg/ResNet{depth}(1x32x32,10)" for depth in (18, 34, 50, 101)] + ["brainreg/ResNet18(1x28x28,10)"]


def named(original):
    return original.removeprefix("brainreg/").split("(")[0].lower()


def released(golden):
    """The network of the golden values, which sees CIFAR images."""
    network = PairResNet((1, 1, 1, 1), classes=10, width=4, scale=5, shift=0.5)
    network.load_state_dict(golden.state("brainreg/net/"))
    return network


# --- the released networks ---

@pytest.mark.parametrize("original", ORIGINALS)
def test_the_originals_names_shapes_and_counts(original):
    described = DESCRIBED[original]
    with torch.device("meta"):
        network = build(named(original))
    assert [(key, list(value.shape)) for key, value in network.state_dict().items()] == \
        list(described["state_dict"].items())
    assert count_parameters(network) == described["parameters"]


@pytest.mark.parametrize("original", [ORIGINALS[0], ORIGINALS[4],
                                      *(pytest.param(name, marks=pytest.mark.slow) for name in ORIGINALS[1:4])])
def test_the_originals_logits(original):
    network = build(named(original))
    network.load_state_dict(rule_state(DESCRIBED[original]["state_dict"]))
    check_logits(network, original)


@pytest.mark.parametrize(("name", "entries", "every", "trained", "hundred"), [
    ("resnet18", 128, 11_176_399, 11_175_375, 11_222_569), ("resnet34", 224, 21_284_559, 21_283_535, 21_330_729),
    ("resnet50", 326, 23_526_159, 23_522_255, 23_710_569), ("resnet101", 632, 42_518_287, 42_514_383, 42_702_697)])
def test_parameter_counts(name, entries, every, trained, hundred):
    with torch.device("meta"):
        network, more, colour = build(name), build(name, classes=100), build(name, channels=3)
    assert len(network.state_dict()) == entries
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == trained
    assert [count_parameters(one) for one in (network, more, colour)] == [every, hundred, every + 6_272]


@pytest.mark.parametrize(("size", "sides"), [
    ((28, 28), [(28, 28), (28, 28), (14, 14), (7, 7), (4, 4)]),
    ((32, 32), [(32, 32), (32, 32), (16, 16), (8, 8), (4, 4)]),
    ((36, 64), [(36, 64), (36, 64), (18, 32), (9, 16), (5, 8)])])
@pytest.mark.parametrize(("name", "wide"), [("resnet18", [4, 4, 8, 16, 32]), ("resnet50", [4, 16, 32, 64, 128])])
def test_sizes_of_the_features(name, wide, size, sides):
    features = small(name).features(pictures(2, 1, *size))
    assert [feature.shape for feature in features] == [(2, c, *side) for c, side in zip(wide, sides, strict=True)]


def test_similarities_and_logits_of_the_released_code(golden):
    """A pair in train mode moves mu and batch norm; the logits after it are those in eval mode."""
    network, halves = released(golden), (golden["brainreg/pair0"], golden["brainreg/pair1"])
    network.layer_weight.data.copy_(golden["brainreg/layer_weight"])
    s = network.train()(Pair(*(5 * (images - 0.5) for images in halves)))
    s.sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(s.detach(), golden["brainreg/pair_score"], **close)
    torch.testing.assert_close(network.layer_weight.grad, golden["brainreg/pair_score_grad_layer_weight"], **close)
    torch.testing.assert_close(torch.cat(list(network.running_mean)), golden["brainreg/running_mean_after"], **close)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(halves[0]), golden["brainreg/logits_eval_after_pair"], **close)


def test_similarities_and_logits_of_the_released_code_on_the_fast_path(golden):
    """Passes in bf16 autocast, channels-last; cosines are taken in float32: within what bf16 rounds off."""
    engine = Engine(torch.device("cpu"), "bf16", channels_last=True, fast_attacks=True)
    network, halves = engine.place(released(golden)), (golden["brainreg/pair0"], golden["brainreg/pair1"])
    network.layer_weight.data.copy_(golden["brainreg/layer_weight"])
    run = engine.runner(network.train())
    s = run(Pair(*(5 * (images - 0.5) for images in halves)))
    s.sum().backward()
    torch.testing.assert_close(s.detach(), golden["brainreg/pair_score"], rtol=0.02, atol=0.01)
    torch.testing.assert_close(network.layer_weight.grad, golden["brainreg/pair_score_grad_layer_weight"], rtol=0.05,
                               atol=0.02)
    torch.testing.assert_close(torch.cat(list(network.running_mean)), golden["brainreg/running_mean_after"], rtol=0.02,
                               atol=0.005)
    with torch.no_grad():
        network.eval()
        theirs = golden["brainreg/logits_eval_after_pair"]
        assert (run(halves[0]) - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize("nested", [{"best_state": None, "config": {"task": "CIFAR10", "seed": 0}}, None])
def test_the_released_files_load(tmp_path, golden, nested):
    state = golden.state("brainreg/net/")
    torch.save({"0A1B2C3D": {**nested, "best_state": state}} if nested else state, tmp_path / "0A1B2C.pt")
    network = PairResNet((1, 1, 1, 1), classes=10, width=4)
    report = load_weights(network, tmp_path / "0A1B2C.pt")
    assert report.part == ("0A1B2C3D.best_state" if nested else None) and not report.renamed
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_a_file_of_two_runs_asks_which(tmp_path, golden):
    state = golden.state("brainreg/net/")
    torch.save({run: {"best_state": state} for run in ("0A1B2C3D", "0A1B2CFF")}, tmp_path / "0A1B2C.pt")
    network = PairResNet((1, 1, 1, 1), classes=10, width=4)
    with pytest.raises(UserError, match=r"several networks.*0A1B2C3D.best_state, 0A1B2CFF.best_state"):
        load_weights(network, tmp_path / "0A1B2C.pt")
    assert load_weights(network, tmp_path / "0A1B2C.pt", part="0A1B2CFF.best_state").part == "0A1B2CFF.best_state"


# --- class images and pairs ---

def test_images_are_scaled_inside():
    network = small(scale=5, shift=0.5).eval()
    x = pictures(3, 1, 16, 16)
    torch.testing.assert_close(network(x), network.classify(5 * (x - 0.5)))
    assert not torch.allclose(network(x), network.classify(x))
    assert set(network.state_dict()) == set(small().state_dict())


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 33, 47)])
def test_any_size_and_channel_count(size):
    network = small(channels=size[0]).eval()
    assert network(pictures(2, *size)).shape == (2, 5)
    assert network(a_pair(3, size)).shape == (3,)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_similarities_equal_a_float64_reference(name):
    network, pair = small(name).eval(), a_pair()
    found = network(pair)
    weights = network.layer_weight.double().softmax(0)
    torch.testing.assert_close(found.double(), weights @ cosines(network, pair), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(network(Pair(pair.rows, pair.rows)), torch.ones(4))


def test_mu_moves_before_it_is_taken_off():
    network, pair = small(), a_pair()
    before = [mean.clone() for mean in network.running_mean]
    twin = copy.deepcopy(network)
    features = [torch.cat(both) for both in zip(twin.features(pair.rows), twin.features(pair.columns), strict=True)]
    s = network(pair)
    for old, new, both in zip(before, network.running_mean, features, strict=True):
        torch.testing.assert_close(new.data, 0.9 * old + 0.1 * both.mean((0, 2, 3)).detach())
    # The twin's batch norms normalise by the batch, so its features are still the same: only mu is missing.
    weights = network.layer_weight.double().softmax(0)
    assert not torch.allclose(s.double(), weights @ cosines(twin, pair), rtol=0, atol=1e-4)
    twin.running_mean.load_state_dict(network.running_mean.state_dict())
    torch.testing.assert_close(s.double(), weights @ cosines(twin, pair), rtol=0, atol=1e-6)


def test_only_pairs_in_train_mode_move_mu():
    network, pair = small(), a_pair()
    before = copy.deepcopy(network.state_dict())

    def moved():
        return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}

    network.train()(pictures(4, 1, 16, 16))
    assert moved() and not any(name.startswith("running_mean") for name in moved())
    before = copy.deepcopy(network.state_dict())
    network.eval()(pair)
    similarity_matrix(network.train(), pair.rows)
    assert not moved() and network.training
    network(pair)
    assert {f"running_mean.{layer}" for layer in range(5)} < moved()


@pytest.mark.parametrize("half", [0, 1])
def test_gradients_flow_through_both_images(half):
    pair = a_pair()
    pair[half].requires_grad_()
    network = small()
    network(pair)[2].backward()
    assert pair[half].grad[2].abs().sum() > 0
    assert all(mean.grad is None and not mean.requires_grad for mean in network.running_mean)


def test_both_passes_give_the_weights_their_gradient():
    """d s / d weights is the sum of what comes through either half alone."""
    pair, network = a_pair(), small().eval()
    weight = network.core["sections"][3][0].layer0[0].weight

    def gradient(through):
        sides = [[f if i in through else f.detach() for f in network.features(images)] for i, images in enumerate(pair)]
        parts = zip(*sides, network.running_mean, network.layer_weight.softmax(0), strict=True)
        total = sum(share * torch.cosine_similarity(*((half - mean[:, None, None]).flatten(1) for half in (a, b)))
                    for a, b, mean, share in parts)
        return torch.autograd.grad(total.sum(), weight)[0]

    whole = torch.autograd.grad(network(pair).sum(), weight)[0]
    torch.testing.assert_close(whole, gradient((0,)) + gradient((1,)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole, gradient((0, 1)), rtol=1e-4, atol=1e-6)


def test_features_that_vanish_have_a_finite_gradient():
    network = small().eval()
    for mean in network.running_mean:
        mean.data.zero_()
    stem = network.core["sections"][0]
    nn.init.zeros_(stem[1].weight)
    nn.init.constant_(stem[1].bias, -1.0)
    s = network(a_pair())
    s.sum().backward()
    assert s.isfinite().all() and all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_similarity_matrix_holds_the_similarities_of_pairs():
    network, images = small(), pictures(7, 1, 16, 16)
    rows, columns = torch.cartesian_prod(torch.arange(7), torch.arange(7)).T
    wanted = network.eval()(Pair(images[rows], images[columns])).view(7, 7)
    torch.testing.assert_close(similarity_matrix(network, images, batch=3), wanted, rtol=0, atol=1e-5)


# --- building ---

def test_a_record_describes_the_network():
    model = {"builder": "brainreg.network:build", "name": "resnet34", "classes": 7, "channels": 3, "width": 2,
             "scale": 5.0, "shift": 0.5}
    network = build_network(model)
    assert [len(section) for section in network.core["sections"]][1:] == [3, 4, 6, 3]
    assert (network.scale, network.shift, network.linear.out_features) == (5, 0.5, 7)
    assert network(pictures(2, 3, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(("wrong", "said"), [({"name": "ResNet18"}, "choose one of resnet18, resnet34"),
                                             ({"name": "vit"}, "no network 'vit'"), ({"classes": 0}, "1 as classes"),
                                             ({"channels": 0}, "1 as channels"), ({"width": 0}, "1 as width, not 0")])
def test_what_is_no_network(wrong, said):
    with pytest.raises(UserError, match=said):
        build(**{"name": "resnet18", **wrong})
