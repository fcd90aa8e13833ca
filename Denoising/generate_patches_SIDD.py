"""Cut training patches from the SIDD Medium images, as published: 300 of 256×256 from each.

    python generate_patches_SIDD.py --src_dir SIDD_Medium_Srgb/Data --tar_dir Datasets/train

finds every NOISY image below `--src_dir` and the GT image of the same name beside it (or takes the
pairs of its `input/` and `target/`, where `dgunet.tools.arrange` put them), and writes the patches
to `input/` and `target/` of `--tar_dir`, PNG files `IMAGE_PATCH.png` numbered from 1. The same seed
gives the same patches, whatever the number of cores.
"""

import argparse
import re
from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command, first_few
from dgunet.data.sidd import sidd_pairs
from dgunet.images.files import IMAGE_SUFFIXES, pair_by_name, read_rgb, write_image
from dgunet.images.sizes import check_sizes, image_size

PARTS = ("input", "target")


def cut_patches(
    noisy: Path, truth: Path, number: int, folder: Path, size: int, count: int, seed: int
) -> None:
    """Write `count` patches of `size`×`size` pixels, at random places, of pair `number`."""
    images = read_rgb(noisy), read_rgb(truth)
    height, width = images[0].shape[:2]
    rng = np.random.default_rng([seed, number])
    for patch in range(1, count + 1):
        top = rng.integers(max(1, height - size))  # as published: never the last row
        left = rng.integers(max(1, width - size))
        for part, image in zip(PARTS, images, strict=True):
            crop = image[top : top + size, left : left + size]
            write_image(folder / part / f"{number}_{patch}.png", crop)


def make_room(folder: Path, overwrite: bool) -> None:
    """Raise `InputError` if images lie where the patches are to go. With `overwrite`, patches of an
    earlier run are removed instead, unless other images lie there."""
    files = [path for part in PARTS for path in sorted((folder / part).glob("*"))]
    present = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    patches = {path for path in present if re.fullmatch(r"\d+_\d+\.png", path.name)}
    in_the_way = [path for path in present if path not in patches] if overwrite else present
    if in_the_way:
        hint = "that this script did not make" if overwrite else "(--overwrite replaces patches)"
        raise InputError(
            f"{folder}: holds {len(in_the_way)} images {hint}: {first_few(in_the_way)}"
        )
    for path in patches:
        path.unlink()


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--src_dir", default="SIDD_Medium_Srgb/Data", help="the SIDD images")
    parser.add_argument("--tar_dir", default="Datasets/train", help="where the patches go")
    parser.add_argument("--ps", type=int, default=256, help="side of a patch, pixels")
    parser.add_argument("--num_patches", type=int, default=300, help="patches per image")
    parser.add_argument("--num_cores", type=int, default=10, help="images worked on at once")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run's patches")
    args = parser.parse_args(arguments)
    for name in ("ps", "num_patches", "num_cores"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; expected 1 or more")

    from joblib import Parallel, delayed
    from tqdm import tqdm

    source, folder = Path(args.src_dir), Path(args.tar_dir)
    if (source / "input").is_dir():
        pairs = pair_by_name(source / "input", source / "target")
    else:
        pairs = [(noisy, truth) for noisy, truth, _ in sidd_pairs(source)]
        if not pairs:
            raise InputError(f"{source}: found no *NOISY*.PNG; expected SIDD's NOISY and GT images")
    check_sizes(pairs)
    sizes = {noisy: image_size(noisy) for noisy, _ in pairs}
    if small := [f"{path} ({w}×{h})" for path, (h, w) in sizes.items() if min(h, w) < args.ps]:
        raise InputError(
            f"{len(small)} images are smaller than a patch of {args.ps}×{args.ps} pixels: "
            f"{first_few(small)}"
        )
    make_room(folder, args.overwrite)
    done = Parallel(n_jobs=args.num_cores, return_as="generator")(
        delayed(cut_patches)(noisy, truth, number, folder, args.ps, args.num_patches, args.seed)
        for number, (noisy, truth) in enumerate(pairs, 1)
    )
    for _ in tqdm(done, "images", len(pairs)):
        pass
    print(f"{folder}: {len(pairs) * args.num_patches} pairs from {len(pairs)} images")


if __name__ == "__main__":
    main()
