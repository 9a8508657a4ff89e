"""The released code's end points (tests/golden) on the fast path: bf16 copies, channels-last, batch norm folded."""

import pytest
import torch

from adarat.attacks import DynamicPGD, FriendlyPGD
from common.attacks import PGD, cross_entropy, cw
from common.attacks.pgd import TradesPGD
from common.engine import Engine

EPS, STEP = 8 / 255, 2 / 255
FAST = {"precision": "bf16", "channels_last": True, "fast_attacks": True}


@pytest.mark.parametrize(("key", "start", "attack", "options"), [
    ("pgd10", "pgd_start", PGD(EPS, STEP, 10), {}), ("pgd50", "pgd_start", PGD(EPS, STEP, 50), {}),
    ("trades10", "trades_start", TradesPGD(EPS, STEP, 10), {}), ("cw20", "cw_start", cw(EPS, STEP), {}),
    ("fat_tau3", "fat_start", FriendlyPGD(), {"tau": 3}),
    ("dat_fosc0.3", "dat_start", DynamicPGD(), {"threshold": 0.3})])
def test_golden_attacks_on_the_fast_path(golden, tiny, key, start, attack, options):
    x, y, theirs = golden["x"], golden["y"], golden[f"adarat/{key}"]
    engine = Engine(torch.device("cpu"), **FAST)
    with engine.attacking(engine.place(tiny)) as target:
        assert target.dtype == torch.bfloat16
        ours = attack.from_start(target, x, y, golden[f"adarat/{start}"], **options)
    assert (ours - x).abs().max() <= EPS + 1e-6 and ours.min() >= 0 and ours.max() <= 1
    # Where a gradient is nearly zero bf16 may flip its sign; the loss that float32 sees hardly notices.
    assert ((ours - theirs).abs() < 1e-5).float().mean() >= 0.95
    found, expected = (cross_entropy(tiny(end), y).mean().item() for end in (ours, theirs))
    assert found == pytest.approx(expected, rel=0.005)
