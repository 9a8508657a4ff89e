"""Write a data set of 64x64 colour images out as the folders of Tiny-ImageNet's archive.

python -m scripts.make_tiny_layout --data npz:FILE --out DIR/tiny-imagenet-200
Then --data 'tiny-imagenet?subset' --data_dir DIR reads it.  The images become PNG, which loses nothing (the official
JPEGs would), and are numbered with leading zeros, so that the loader keeps their order within a class.  The folders are
named by the npz file's `wnids`, if it has them, else by the labels.  The test images become val/.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from common.environment import portable
from common.errors import UserError, exit_cleanly
from common.files import write_failure, write_text
from common.flags import Parser
from common.npz_files import read_arrays
from common.record_fields import SAFE_NAME

BOX = "0\t0\t63\t63"           # val_annotations.txt has a box after the class; the whole image here


def parser() -> Parser:
    """The command's flags."""
    parse = Parser(prog="python -m scripts.make_tiny_layout", description=__doc__.splitlines()[0])
    parse.add_argument("--data", required=True, help="npz:FILE, or any other data set of 64x64 colour images")
    parse.add_argument("--data_dir", "--data-dir", default=None, help="where data sets lie")
    parse.add_argument("--out", type=Path, required=True, help="the folder, new; call it tiny-imagenet-200")
    return parse


def wnids_of(spec: str, classes: int) -> list[str]:
    """The classes' folder names: those of the npz file's `wnids`, else n00000000 and on."""
    kind, _, path = spec.partition(":")
    if kind == "npz":
        try:
            found = read_arrays(Path(path), "wnids".__eq__)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {error}: the file is damaged; copy or download it again",
                            code="E-DATA-DAMAGED") from error
        if "wnids" in found:
            names = [str(name) for name in found["wnids"].ravel()]
            if len(names) != classes or names != sorted(set(names)) or not all(map(SAFE_NAME.fullmatch, names)):
                raise UserError(f"{path}: wnids are not {classes} different names in sorted order, as the labels of "
                                "Tiny-ImageNet number them, such as n01443537: mend or remove them",
                                code="E-TINY-IMAGENET")
            return names
    return [f"n{label:08}" for label in range(classes)]


def write_layout(data, wnids: list[str], folder: Path) -> None:
    """Write the DataSet `data` below `folder`, which is new."""
    from common.data.decode import in_parallel

    for part, split in (("train", data.train), ("val", data.test)):
        labels = split.labels.tolist()
        if part == "train":
            within = [0] * data.classes
            paths = []
            for label in labels:
                paths.append(folder / part / wnids[label] / "images" / f"{wnids[label]}_{within[label]:05}.png")
                within[label] += 1
        else:
            paths = [folder / part / "images" / f"val_{number:05}.png" for number in range(len(labels))]
        for place in {path.parent for path in paths} | {folder / "train" / wnid / "images" for wnid in wnids}:
            place.mkdir(parents=True, exist_ok=True)
        pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy()

        def write(number: int, paths: list[Path] = paths, pixels: np.ndarray = pixels) -> None:
            from PIL import Image

            Image.fromarray(pixels[number]).save(paths[number])

        in_parallel(write, range(len(paths)), f"writing {part}/")
    annotations = "".join(f"{path.name}\t{wnids[label]}\t{BOX}\n" for path, label in zip(paths, labels, strict=True))
    write_text(folder / "val" / "val_annotations.txt", annotations)
    write_text(folder / "wnids.txt", "".join(f"{wnid}\n" for wnid in wnids))
    words = "".join(f"{wnid}\t{' '.join(name.split())}\n" for wnid, name in zip(wnids, data.class_names, strict=True))
    write_text(folder / "words.txt", words)


def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    if args.out.exists():
        raise UserError(f"--out {args.out} is there already: name a new folder", code="E-OUT")

    # torch comes only once the words are known to be right
    from common.experiment import load_data
    data = load_data(args.data, args.data_dir)
    if data.image_shape != (3, 64, 64):
        raise UserError(f"{args.data} has images of shape {data.image_shape}, not (3, 64, 64) as Tiny-ImageNet's: "
                        "name another data set", code="E-IMAGE-SIZE")
    wnids = wnids_of(args.data, data.classes)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and renamed: whole or absent.
        work = Path(tempfile.mkdtemp(prefix=f".{args.out.name}-", dir=args.out.parent))
        try:
            write_layout(data, wnids, work / "new")
            os.replace(work / "new", args.out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise write_failure(args.out, error) from error
    print(f"{portable(str(args.out))}: {len(data.train)} training and {len(data.test)} validation images of "
          f"{data.classes} classes")


if __name__ == "__main__":
    exit_cleanly(main)
