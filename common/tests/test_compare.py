"""Comparisons: the same images or a refusal that says why not; what is resolved, and how many images would do it."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.compare import Comparison, check_side, compare, difference_of, read_judged
from common.compare_words import caution, described, sentence, table
from common.errors import UserError
from common.stats import (
    Paired,
    accuracy_interval,
    bootstrap,
    images_needed,
    mcnemar,
    over_seeds,
    smallest_shown,
    wilson,
)
from common.tests.fabricate import DATA, fabricate


def made(results, letter="A", **changes):
    return read_judged(fabricate(results, method=letter, **{"accuracies": {"clean": 0.8}, "n": 1000} | changes))


def one_of(only_a, only_b, n, seeds=((1, 1),), by_seed=None, available=10_000):
    """A comparison with these counts of discordant images."""
    differences = np.zeros(n)
    differences[:only_a], differences[only_a:only_a + only_b] = 1, -1
    by_seed = by_seed or (float(differences.mean()),) * len(seeds)
    p = mcnemar(Paired(n - only_a - only_b, only_a, only_b, 0))
    return Comparison("clean", n, seeds, ((0.8,) * len(seeds), (0.7,) * len(seeds)), differences, by_seed,
                      (only_a,) * len(seeds), (only_b,) * len(seeds), (p,) * len(seeds), available)


# -- statistics ------------------------------------------------------------------------------------------------------

def test_bootstrap_agrees_with_the_normal_interval_and_repeats():
    differences = np.repeat([1.0, 0.0, -1.0], [300, 550, 150])
    low, high = bootstrap(differences)
    half = 1.96 * differences.std() / np.sqrt(1000)
    assert low == pytest.approx(0.15 - half, abs=0.003) and high == pytest.approx(0.15 + half, abs=0.003)
    assert bootstrap(differences[::-1]) == (low, high) and bootstrap(np.zeros(5)) == (0.0, 0.0)
    assert bootstrap(differences, confidence=0.5)[0] > low and bootstrap(differences, seed=2) != (low, high)


def test_images_needed_have_the_power_that_is_promised():
    n = images_needed(0.02, 0.4)
    assert n == 3140                                            # ((1.95996 + 0.84162) * 0.4 / 0.02) ** 2
    drawn = np.random.default_rng(1).normal(0.02, 0.4 / np.sqrt(n), 20_000)
    assert np.mean(np.abs(drawn) > 1.96 * 0.4 / np.sqrt(n)) == pytest.approx(0.8, abs=0.01)
    assert smallest_shown(n, 0.4) == pytest.approx(0.02, rel=1e-3)
    assert images_needed(0.0, 0.4) is None and images_needed(-0.02, 0.4) == n


def test_interval_over_seeds_is_students_and_never_narrower_than_wilsons():
    low, high = over_seeds([0.5, 0.52, 0.54])
    assert (low + high) / 2 == pytest.approx(0.52)
    assert high - 0.52 == pytest.approx(4.3027 * 0.02 / np.sqrt(3), rel=1e-4)
    assert over_seeds([0.5]) is None
    assert accuracy_interval([0.5], 200) == wilson(100, 200)
    assert accuracy_interval([0.5, 0.5], 200) == wilson(100, 200)
    assert accuracy_interval([0.4, 0.6], 10_000) == (0.0, 1.0)   # two seeds that far apart say next to nothing


# -- what is compared ------------------------------------------------------------------------------------------------

def test_two_runs_are_compared_image_by_image(tmp_path):
    a = made(tmp_path, "A", accuracies={"clean": 0.8, "pgd-20": 0.5})
    b = made(tmp_path, "B", accuracies={"clean": 0.75, "pgd-20": 0.5, "fgsm": 0.6})
    found, left = compare([a], [b])
    assert [one.evaluator for one in found] == ["clean", "pgd-20"] and left == ["fgsm"]
    clean = found[0]
    flags = [next(iter(side.records)).arrays["clean"] for side in (a, b)]
    assert clean.gained == ((flags[0] & ~flags[1]).sum(),) and clean.lost == ((~flags[0] & flags[1]).sum(),)
    assert clean.difference == pytest.approx(0.05) and clean.accuracies == ((0.8,), (0.75,)) and clean.n == 1000
    swapped = compare([b], [a])[0][0]
    assert swapped.difference == -clean.difference and swapped.p == clean.p and swapped.gained == clean.lost


def test_the_same_measurement_under_another_name_is_found(tmp_path):
    a, b = made(tmp_path, "A", accuracies={"pgd-20": 0.5}), made(tmp_path, "B", accuracies={"pgd-x": 0.4})
    assert [one.evaluator for one in compare([a], [b])[0]] == ["pgd-20 (pgd-x)"]
    c = made(tmp_path, "C", accuracies={"pgd-x": 0.4, "pgd-y": 0.4})          # which of the two?
    with pytest.raises(UserError, match="share no evaluator"):
        compare([a], [c])


def test_seeds_are_paired_and_averaged(tmp_path):
    a = [made(tmp_path, "A", seed=seed, accuracies={"clean": value}) for seed, value in ((1, 0.80), (2, 0.84))]
    b = [made(tmp_path, "B", seed=seed, accuracies={"clean": 0.78}) for seed in (2, 1)]
    one, = compare(a, b)[0]
    assert one.seeds == ((1, 1), (2, 2)) and one.by_seed == pytest.approx((0.02, 0.06))
    assert one.difference == pytest.approx(0.04) and set(np.unique(one.differences)) <= {-1, -0.5, 0, 0.5, 1}
    assert not one.resolved and one.interval_of_seeds[0] < 0
    with pytest.raises(UserError, match=r"one side has seeds \[1, 2\], the other \[2\]"):
        compare(a, b[:1])


def test_a_side_is_one_method_trained_alike(tmp_path):
    a, b = made(tmp_path, "A"), made(tmp_path, "B", seed=2)
    with pytest.raises(UserError, match="one side, two methods: a_short_s1 has method A, b_short_s2 B"):
        check_side([a, b])
    other = made(tmp_path, "A", seed=2, config={"tao": 0.5})
    with pytest.raises(UserError, match="may differ in the seed only"):
        check_side([a, other])
    check_side([a, other], per_seed=("tao",))


@pytest.mark.parametrize(("changes", "said"), [
    ({"data": DATA | {"test_fingerprint": "0" * 64}}, r"clean: test images \(sha256\) bbbbbbbbbbbb and 000000000000"),
    ({"n": 500}, "clean: number of images 1000 and 500; --common")])
def test_other_images_are_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        compare([made(tmp_path, "A")], [made(tmp_path, "B", **changes)])


def test_common_images_are_compared_if_asked(tmp_path):
    a, b = made(tmp_path, "A"), made(tmp_path, "B", n=500)
    one, = compare([a], [b], common=True)[0]
    first = a.records[0].arrays["clean"][:500]
    assert one.n == 500 and one.accuracies[0] == (first.mean(),)


def changed(judged, key, value, where="result"):
    """The same run, its first result or its record said to be measured otherwise."""
    record = judged.records[0]
    new = json.loads(json.dumps(record.record))
    (new["results"][0] if where == "result" else new)[key] = value
    return dataclasses.replace(judged, records=(dataclasses.replace(record, record=new),))


@pytest.mark.parametrize(("key", "value", "where", "said"), [
    ("eps", 4 / 255, "result", "pgd-20: eps 8/255 and 4/255"), ("norm", "l2", "result", "norm linf and l2"),
    ("kind", "cw", "result", "kind pgd and cw"), ("settings", {"steps": 7}, "result", "steps unset and 7"),
    ("chunk", 500, "record", "images per chunk 100 and 500"),
    ("plan_sha256", "f" * 64, "record", r"plan adarat \(sha256\) eeeeeeeeeeee and ffffffffffff")])
def test_other_measurements_are_refused_in_one_line(tmp_path, key, value, where, said):
    a, b = (made(tmp_path, letter, accuracies={"pgd-20": 0.5}) for letter in "AB")
    with pytest.raises(UserError, match=f"not measured alike: .*{said}.*a_short_s1/eval-adarat.json and .*b_short_s1"):
        compare([a], [changed(b, key, value, where)])


def test_chunks_do_not_matter_without_random_draws(tmp_path):
    a, b = made(tmp_path, "A"), changed(made(tmp_path, "B"), "chunk", 500, "record")
    assert difference_of(a.verdicts()["clean"], b.verdicts()["clean"]) is None


def test_quirks_of_measuring_are_refused(tmp_path):
    a, b = made(tmp_path, "A"), made(tmp_path, "B")
    b.run.run["quirks"].append("test-crop")
    with pytest.raises(UserError, match="quirks none in a_short_s1, test-crop in b_short_s1"):
        compare([a], [b], measuring={"adarat": ["test-crop"]})
    assert compare([a], [b], measuring={"adarat": ["another"]})[0]


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(UserError, match="neither a run's folder"):
        read_judged(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no evaluation of a finished training"):
        read_judged(fabricate(tmp_path))
    stale = fabricate(tmp_path, method="S", accuracies={"clean": 0.5}, judged="0" * 64)
    with pytest.raises(UserError, match="judged other weights"):
        read_judged(stale / "eval-adarat.json")
    whole = fabricate(tmp_path, method="T", accuracies={"clean": 0.5})
    (whole / "eval-twice.json").write_text((whole / "eval-adarat.json").read_text().replace(
        '"plan": "adarat"', '"plan": "twice"'))
    with pytest.raises(UserError, match=r"two plans judge clean: name the file, eval-adarat.json or eval-twice.json"):
        read_judged(whole).verdicts()
    assert list(read_judged(whole / "eval-twice.json").verdicts()) == ["clean"]


# -- words -----------------------------------------------------------------------------------------------------------

def test_what_is_not_resolved_says_what_would_resolve_it():
    one = one_of(50, 47, 1000)
    text = sentence(one)
    assert text.startswith("clean: +0.3 ± 1.9 points (A better): not resolved with 1,000 images; if it really is that "
                           "large, about 85,000 images would show it, more than the 10,000 of the test set")
    assert "this many show differences from about 2.8 points on" in text and not one.resolved
    assert "no number of images" in sentence(one_of(5, 5, 1000)) and "no difference" in sentence(one_of(5, 5, 1000))
    assert "more than" not in sentence(one_of(50, 47, 1000, available=100_000))


def test_what_is_resolved_says_so():
    one = one_of(20, 80, 1000)
    assert sentence(one) == "clean: -6.0 ± 1.9 points (B better): resolved with 1,000 images."
    assert "One seed each" in caution([one])


def test_several_seeds_must_agree():
    seeds = ((1, 1), (2, 2), (3, 3))
    text = sentence(one_of(80, 20, 1000, seeds, (0.14, 0.06, -0.02)))
    assert "their seeds disagree (+14.0, +6.0, -2.0; over seeds -13.9 to +25.9)" in text and "not more images" in text
    agree = one_of(80, 20, 1000, seeds, (0.06, 0.061, 0.059))
    assert agree.resolved and sentence(agree).endswith("1,000 images and 3 seeds (+6.0, +6.1, +5.9).")
    assert caution([agree]) == ""


def test_the_table_has_every_number(tmp_path):
    a, b = made(tmp_path, "A"), made(tmp_path, "B", accuracies={"clean": 0.6})
    row, = table(compare([a], [b])[0]).rows
    assert row[:5] == ("clean", "1,000", "80.00", "60.00", "+20.00") and row[6] == "—" and row[10] == "yes"
    assert described("A", [a]).endswith("adarat/cifar10/a_short_s1 (last weights; resnet18, 5000 training images, "
                                        "10 epochs)")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_the_interval_holds_the_difference_and_mirrors(only_a, only_b):
    one, mirror = one_of(only_a, only_b, 200), one_of(only_b, only_a, 200)
    assert one.interval[0] - 1e-9 <= one.difference <= one.interval[1] + 1e-9
    assert one.difference == -mirror.difference and one.needed == mirror.needed
