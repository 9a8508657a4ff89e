"""Write an extra-data file (image, label) of training images that a short run does not use.

python -m scripts.make_extra_data --data cifar10 --skip 20000 --take 20000 --out data/cifar10_rest.npz
It stands in for generated images (--aux-data-filename) where these are not at hand: real images, and it says so.
"""

from pathlib import Path

import numpy as np

from common.environment import portable
from common.errors import UserError, exit_cleanly
from common.files import replacing
from common.flags import Parser, count


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python -m scripts.make_extra_data", description=__doc__.splitlines()[0])
    parse.add_argument("--data", required=True, help="cifar10, tiny-imagenet?subset, npz:FILE, folder:DIR, ...")
    parse.add_argument("--data_dir", "--data-dir", default=None, help="where data sets lie")
    parse.add_argument("--skip", type=count, required=True, help="leave out the first training images, which the run "
                                                                 "trains on (its --n_train and what validates)")
    parse.add_argument("--take", type=count, default=None, help="how many of the others to write (default: all)")
    parse.add_argument("--out", type=Path, required=True, help="the npz file")
    return parse


def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    if args.out.suffix != ".npz":
        raise UserError(f"--out {args.out}: name a file that ends in .npz", code="E-OUT")

    # torch comes only once the words are known to be right
    from common.experiment import load_data
    data = load_data(args.data, args.data_dir)
    total = len(data.train)
    stop = total if args.take is None else args.skip + args.take
    if not args.skip < stop <= total:
        raise UserError(f"--skip {args.skip} and --take {args.take or 'all'} ask for training images {args.skip} to "
                        f"{max(stop - 1, args.skip)}, but {args.data} has {total}, 0 to {total - 1}", code="E-SUBSET")
    images = data.train.images[args.skip:stop].permute(0, 2, 3, 1).contiguous().numpy()
    labels = data.train.labels[args.skip:stop].numpy()
    source = f"real images, not generated: training images {args.skip} to {stop - 1} of {data.source}"
    with replacing(args.out) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, image=images, label=labels, source=np.array(source))
    counts = np.bincount(labels, minlength=data.classes)
    print(f"{portable(str(args.out))}: {len(labels)} images, {counts.min()} to {counts.max()} of each of "
          f"{data.classes} classes; {source}")
    if counts.min() == 0:
        print("note: a class has no image; the training images are sorted by class, it seems: choose others")


if __name__ == "__main__":
    exit_cleanly(main)
