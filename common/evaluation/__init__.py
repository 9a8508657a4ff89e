"""Plans of evaluators, and the harness that runs and judges them.

`Plan`, `Evaluator` need no torch, so that reports can read plans without it; the rest is imported when it is asked for.
"""

from importlib import import_module

from common.evaluation.plans import Evaluator, Plan, plan_sha256

_NEEDS_TORCH = {"Result": "harness", "evaluate": "harness", "forget": "harness", "result_json": "harness",
                "weights_sha256": "judging"}

__all__ = ["Evaluator", "Plan", "Result", "evaluate", "forget", "plan_sha256", "result_json", "weights_sha256"]


def __getattr__(name: str):
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
