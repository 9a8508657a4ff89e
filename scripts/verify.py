"""Judge the images of a receipt again, in seconds on a CPU: python scripts/verify.py RECEIPT.npz

Exit status 0: every pixel, flag and weight is what was written, every adversarial image lies in its ball and in [0,1],
and the network says of each what the receipt says.  1: something has changed, in one line.  2: something is missing.
--weights FILE where the weights are not where the receipt names them; --model MODULE:FUNCTION where such a function
built the network, which is not run on a receipt's word; --data SPEC compares the clean images with a data
set's test images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.commands import found_at
from common.errors import UserError, exit_cleanly
from common.flags import Parser


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python scripts/verify.py", description=__doc__.splitlines()[0].split(":")[0] + ".")
    parse.add_argument("receipt", type=Path, help="what scripts/evaluate.py --receipt wrote")
    parse.add_argument("--weights", type=Path, default=None, help="the file of weights (default: as the receipt says)")
    parse.add_argument("--model", default=None, metavar="MODULE:FUNCTION", help="the function that the receipt names, "
                       "where that builds the network: it is run only if you name it too")
    parse.add_argument("--data", default=None, help="compare the clean images with this data set's test images")
    parse.add_argument("--data_dir", "--data-dir", default=None, help="where data sets lie")
    return parse


def verify(args) -> list[str]:
    """The lines of what was judged again; `Changed` or UserError."""
    from common.checkpoint import load_weights
    from common.evaluation import receipts
    from common.evaluation.subject import built
    from common.experiment import load_data
    from common.files import sha256_of

    meta, arrays = receipts.read_receipt(args.receipt)
    receipts.check_counts(meta, arrays)
    network = built(meta["model"], trusted=args.model is not None and args.model == meta["model"].get("builder"))
    named = meta["weights"]
    if named["file"] is not None:
        file = args.weights or found_at(named["file"])
        if file is None or not file.is_file():
            raise UserError(f"the weights {args.weights or named['file']} are not here: name the file with --weights",
                            code="E-WEIGHTS-MISSING")
        if sha256_of(file) != named["sha256"]:
            raise receipts.Changed(f"{file} is not the file of weights that the receipt names (its sha256 differs)")
        load_weights(network, file, part=named["part"])
    elif args.weights is not None:
        raise UserError("--weights: the network of this receipt brings its weights along", code="E-FLAG-PAIR")
    if args.data is not None:
        receipts.check_images(arrays, load_data(args.data, args.data_dir).test)
    return receipts.rejudge(meta, arrays, network)


def main() -> int:
    """Run the command; the exit status."""
    args = parser().parse_args()
    from common.evaluation.receipts import Changed
    try:
        lines = verify(args)
    except Changed as changed:
        print(f"changed: {' '.join(str(changed).split())}", file=sys.stderr)
        return 1
    print("\n".join([f"{args.receipt}: whole", *(f"  {line}" for line in lines)]))
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
