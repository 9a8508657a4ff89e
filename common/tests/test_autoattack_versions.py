"""The versions of the official attacks that are not AutoAttack: DyART's choice of them, and "plus"."""

import pytest
import torch

from common.data.splits import to_float
from common.errors import UserError
from common.evaluation import Evaluator, Plan, Result, result_json
from common.evaluation.autoattack import NORMS, Official, Upstream, shorten
from common.evaluation.judging import Network
from common.seeds import fold
from common.tests.test_autoattack import EPS, network, noise, run

STAGES = {"custom-autoattack": ["apgd-ce", "apgd-t", "fab-t"],
          "plus-autoattack": ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]}


def short(kind: str, norm: str, **changes) -> Evaluator:
    settings = {"iterations": 5} | ({"queries": 30} if "plus" in kind else {})
    return Evaluator("short", kind, norm, EPS[norm], settings=settings, **changes)


def official(model, split, kind, norm, seed, iterations=100, queries=5000) -> list[bool]:
    """The package's own run on all of `split` in one batch, told what DyART's script tells it."""
    shared = {"norm": NORMS[norm], "eps": EPS[norm], "device": "cpu", "seed": seed}
    if kind == "plus-autoattack":
        theirs = Upstream(Network(model), version="plus", **shared)
    else:
        theirs = Upstream(Network(model), version="custom", attacks=STAGES[kind], **shared)
        for attack in (theirs.apgd, theirs.apgd_targeted, theirs.fab):
            attack.n_restarts = 1
        theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 9
    if iterations != 100:
        for attack in (theirs.apgd, theirs.apgd_targeted):
            shorten(attack, iterations)
    theirs.fab.n_iter, theirs.square.n_queries = iterations, queries
    _, predicted = theirs.run_standard_evaluation(to_float(split.images), split.labels, batch_size=len(split))
    return (predicted == split.labels).tolist()


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_chunk_has_the_official_verdict(tiny, tmp_path, kind, norm):
    split = noise(tiny, 24)
    result = run(tiny, split, Plan("p", (short(kind, norm),), chunk=14), tmp_path)[0]
    expected = []
    for chunk, part in enumerate((torch.arange(14), torch.arange(14, 24))):
        seed = fold(3, "evaluate", "short", chunk)
        expected += official(tiny, split.subset(part), kind, norm, seed, iterations=5, queries=30)
    assert result.flags.tolist() == expected
    assert 0 < result.robust < result.survivors["clean"] == 21
    assert list(result.survivors) == ["clean", *STAGES[kind]]
    left = list(result.survivors.values())
    assert left == sorted(left, reverse=True) and left[-1] == result.robust


def test_they_run_as_long_as_the_released_script_lets_them(tiny):
    def stages(kind, norm):
        return Official(Evaluator("x", kind, norm, 0.1), tiny, 10, torch.device("cpu")).stages

    for norm in ("linf", "l2"):
        for kind, restarts in (("custom-autoattack", 1), ("plus-autoattack", 5)):
            found = stages(kind, norm)
            assert list(found) == STAGES[kind]
            assert (found["apgd-ce"].n_iter, found["apgd-ce"].n_restarts) == (100, restarts)
            assert found["apgd-ce"].loss == "ce"
            assert (found["apgd-t"].n_iter, found["apgd-t"].n_restarts, found["apgd-t"].n_target_classes) == (100, 1, 9)
            assert (found["fab-t"].n_iter, found["fab-t"].n_restarts, found["fab-t"].n_target_classes,
                    found["fab-t"].targeted) == (100, 1, 9, True)
        assert (found["apgd-dlr"].loss, found["apgd-dlr"].n_restarts, found["apgd-dlr"].n_iter) == ("dlr", 5, 100)
        assert (found["fab"].targeted, found["fab"].n_restarts, found["fab"].n_iter) == (False, 5, 100)
        assert (found["square"].n_queries, found["square"].n_restarts) == (5000, 1)


def test_every_stage_of_plus_does_what_upstream_does(tiny):
    # At once on fresh images: in a run of the whole the later stages find nothing left to break.
    x = to_float(noise(tiny, 6).images)
    y, standing = noise(tiny, 6).labels, torch.tensor([1, 2, 4, 5])
    evaluator = Evaluator("x", "plus-autoattack", "linf", 0.05, settings={"iterations": 5, "queries": 60})
    found = {name: stage(standing) for name, stage in Official(evaluator, tiny, 10, torch.device("cpu"))(x, y, 7)}
    theirs = Upstream(tiny, norm="Linf", eps=0.05, version="plus", device="cpu", seed=7)
    for attack in (theirs.apgd, theirs.apgd_targeted):
        shorten(attack, 5)
    theirs.fab.n_iter, theirs.square.n_queries = 5, 60
    expected = {"square": theirs.square.perturb(x[standing], y[standing]),
                "apgd-t": theirs.apgd_targeted.perturb(x[standing], y[standing])}
    for loss in ("ce", "dlr"):
        theirs.apgd.loss = loss
        expected[f"apgd-{loss}"] = theirs.apgd.perturb(x[standing], y[standing])
    expected["fab"] = theirs.fab.perturb(x[standing], y[standing])
    theirs.fab.targeted, theirs.fab.n_restarts = True, 1
    expected["fab-t"] = theirs.fab.perturb(x[standing], y[standing])
    assert all(torch.equal(found[name], expected[name]) for name in STAGES["plus-autoattack"])
    assert not torch.equal(found["apgd-ce"], found["apgd-dlr"]) and not torch.equal(found["fab"], found["fab-t"])


@pytest.mark.parametrize("kind", STAGES)
def test_no_other_version_is_called_autoattack(kind):
    for name in ("AutoAttack", "AutoAttack eps=8", "AA", "auto-attack plus"):
        with pytest.raises(UserError, match="only the standard version"):
            Evaluator(name, kind, eps=0.1)
    with pytest.raises(UserError, match=f"kind {kind} has no norm 'l1'; give one of linf, l2"):
        Evaluator("x", kind, "l1", 0.1)
    with pytest.raises(UserError, match="eps must be above 0"):
        Evaluator("x", kind, eps=0.0)
    assert Evaluator("+".join(STAGES[kind]), kind, eps=0.1).to_json()["kind"] == kind


@pytest.mark.parametrize("kind", STAGES)
def test_few_classes(tmp_path, kind):
    model = network(4)
    split = noise(model, 10)
    result = run(model, split, Plan("p", (short(kind, "linf"),), chunk=7), tmp_path)[0]
    assert result.robust < result.survivors["clean"] == 9
    with pytest.raises(UserError, match="at least 4 classes; this model has 3"):
        run(network(3), noise(network(3), 4), Plan("p", (short(kind, "linf"),)), tmp_path / "three")


def test_a_caution_compares_square_with_what_stood_before_it(tiny, tmp_path):
    results = {kind: run(tiny, noise(tiny, 10), Plan("p", (short(kind, "linf"),)), tmp_path / kind)[0]
               for kind in STAGES}
    assert results["custom-autoattack"].caution == ""
    plus = results["plus-autoattack"]
    before = dict.fromkeys(("clean", "apgd-ce", "apgd-dlr", "fab"), 6)
    after = dict.fromkeys(("square", "apgd-t", "fab-t"), 6)
    assert Result(plus.evaluator, plus.flags, before | after | {"apgd-t": 2, "fab-t": 2}, 1.0).caution == ""
    assert "Square broke 4 images of 10" in Result(plus.evaluator, plus.flags, before | {"square": 2}, 1.0).caution
    assert result_json(plus)["settings"] == {"iterations": 5, "queries": 30}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_at_full_length_they_have_the_official_verdict(tiny, tmp_path, kind):
    split = noise(tiny, 10)
    result = run(tiny, split, Plan("p", (Evaluator("short", kind, eps=EPS["linf"]),)), tmp_path)[0]
    assert result.flags.tolist() == official(tiny, split, kind, "linf", fold(3, "evaluate", "short", 0))
    assert 0 < result.robust < result.survivors["clean"]
