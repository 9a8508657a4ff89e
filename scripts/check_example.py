"""Check the judge on a checkpoint that nobody here trained: python scripts/check_example.py [--data npz:FILE]

pyautoattack ships an undefended ResNet-18 for CIFAR-10 (examples/model_test.pt).  Its clean accuracy on the 10,000 test
images is about 94%, its robust accuracy by AutoAttack at L-inf 8/255 about 0; at 1/255, where images are left and
AutoAttack takes its time, it is on fewer images, with PGD-20 on all.  --out writes the record.  Where the file or the
data are not here, the command says so and checks nothing.
"""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.errors import UserError, exit_cleanly
from common.evaluation.plans import Evaluator, Plan
from common.flags import Parser, count

CLEAN = (0.93, 0.955)                        # what its clean accuracy on all test images must lie between
ROBUST = 0.01                                # of the first images at 8/255 at most
LARGE, SMALL, PGD = "AutoAttack at 8 of 255", "AutoAttack at 1 of 255", "PGD-20 at 1 of 255"
BESIDE = "PGD-20 there"


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python scripts/check_example.py", description=__doc__.splitlines()[0].split(":")[0] + ".")
    parse.add_argument("--data", default="cifar10", help="CIFAR-10, also as npz:FILE")
    parse.add_argument("--data_dir", "--data-dir", default=None, help="where data sets lie")
    parse.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parse.add_argument("--n", type=count, default=10_000, help="the first N test images, for the clean accuracy")
    parse.add_argument("--attacked", type=count, default=200, help="the first N, for AutoAttack at 8/255 and PGD")
    parse.add_argument("--small", type=count, default=20, help="the first N, for AutoAttack at 1/255")
    parse.add_argument("--out", type=Path, default=None, metavar="FILE.json", help="write a record there; an "
                       "interrupted check goes on where it was")
    return parse


def example() -> Path | None:
    """The checkpoint in the installed package; None where it is not."""
    for package in ("pyautoattack", "autoattack"):
        found = importlib.util.find_spec(package)
        if found and found.origin and (path := Path(found.origin).parent / "examples" / "model_test.pt").exists():
            return path
    return None


def plan(n: int, attacked: int, small: int) -> Plan:
    """Clean; AutoAttack at 8/255, which leaves an undefended network nothing; PGD and AutoAttack at 1/255."""
    return Plan("example", (
        Evaluator("clean", "clean", n=n), Evaluator(LARGE, "autoattack", eps=8 / 255, n=attacked),
        Evaluator(PGD, "pgd", eps=1 / 255, step_size=1 / 255 / 4, steps=20, n=attacked),
        Evaluator(SMALL, "autoattack", eps=1 / 255, n=small)), chunk=100)


def judged(counts: dict[str, tuple[int, int]]) -> list[str]:
    """What is wrong with (robust, n) by evaluator, and by PGD on the images of SMALL (BESIDE); empty if all is as it
    should be."""
    (clean, n), (robust, attacked) = counts["clean"], counts[LARGE]
    slack = 3 * (0.06 * 0.94 / n) ** 0.5 if n < 10_000 else 0.0
    found = []
    if not CLEAN[0] - slack <= clean / n <= CLEAN[1] + slack:
        found.append(f"clean accuracy {100 * clean / n:.2f} %, where about 94 % is right")
    if robust / attacked > ROBUST:
        found.append(f"{robust} of {attacked} images stand at 8/255, where none should")
    if counts[PGD][0] < robust:
        found.append("fewer images stand at 1/255 than at 8/255")
    if counts[SMALL][0] > counts[BESIDE][0]:
        found.append(f"at 1/255 {counts[SMALL][0]} images stand by AutoAttack, {counts[BESIDE][0]} of them by PGD-20: "
                     "AutoAttack is the stronger one")
    return found


def main() -> int:
    """Run the command; the exit status: 1 where the judge is wrong."""
    args = parser().parse_args()
    path = example()
    if path is None:
        print("nothing checked: no package pyautoattack with examples/model_test.pt is installed here")
        return 0
    from common.commands import judge_file, print_counts
    from common.engine import Engine
    from common.experiment import load_data
    try:
        data = load_data(args.data, args.data_dir)
    except UserError as error:
        print(f"nothing checked: no CIFAR-10 here ({error}): give --data npz:FILE or --data_dir")
        return 0
    n = min(args.n, len(data.test))
    attacked = min(args.attacked, n)
    small = min(args.small, attacked)
    results = judge_file(path, model={"name": "resnet18", "classes": 10, "channels": 3}, told="pyautoattack's examples",
                         plan=plan(n, attacked, small), test=data.test, data=data.describe(),
                         engine=Engine.choose(args.device, "fp32"), seed=1, out=args.out)
    print_counts(results, args.out)
    flags = {result.name: result.flags for result in results}
    wrong = judged({name: (int(those.sum()), len(those)) for name, those in flags.items()}
                   | {BESIDE: (int(flags[PGD][:small].sum()), small)})
    print("\n".join(f"WRONG: {line}" for line in wrong) or "as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    exit_cleanly(main)
