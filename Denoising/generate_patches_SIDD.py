"""Cut training patches from the SIDD Medium images, as published: 300 of 256×256 from each.

    python generate_patches_SIDD.py --src_dir SIDD_Medium_Srgb/Data --tar_dir Datasets/train

finds every NOISY image below `--src_dir` and the GT image of the same name beside it (or takes the
pairs of its `input/` and `target/`, where `dgunet.tools.arrange` put them), and writes the patches
to `input/` and `target/` of `--tar_dir`, PNG files `IMAGE_PATCH.png` numbered from 1. The same seed
gives the same patches, whatever the number of cores.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dgunet.base.errors import InputError, command, first_few
from dgunet.base.options import new_parser
from dgunet.base.threads import in_parallel
from dgunet.data.sidd import sidd_pairs
from dgunet.images.files import pair_by_name, read_rgb, write_image
from dgunet.images.sizes import check_sizes, image_size
from dgunet.tools.check import PARTS
from dgunet.tools.synthesize import make_room


def cut_patches(number: int, pair: tuple[Path, Path], args: argparse.Namespace) -> None:
    """Write the patches of a pair of images, at random places."""
    images = [read_rgb(path) for path in pair]
    height, width = images[0].shape[:2]
    rng = np.random.default_rng([args.seed, number])
    for patch in range(1, args.num_patches + 1):
        top = rng.integers(max(1, height - args.ps))  # as published: never the last row
        left = rng.integers(max(1, width - args.ps))
        for part, image in zip(PARTS, images, strict=True):
            crop = image[top : top + args.ps, left : left + args.ps]
            write_image(args.tar_dir / part / f"{number}_{patch}.png", crop)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--src_dir", type=Path, default="SIDD_Medium_Srgb/Data", help="the SIDD images")
    add("--tar_dir", type=Path, default="Datasets/train", help="where the patches go")
    add("--ps", type=int, default=256, help="side of a patch, pixels")
    add("--num_patches", type=int, default=300, help="patches per image")
    add("--num_cores", type=int, default=10, help="images worked on at once")
    add("--seed", type=int, default=1234)
    add("--overwrite", action="store_true", help="replace an earlier run's patches")
    args = parser.parse_args(arguments)
    for name in ("ps", "num_patches", "num_cores"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; expected 1 or more")
    source, folder = args.src_dir, args.tar_dir
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
    numbered = dict(enumerate(pairs, 1))
    patches = range(1, args.num_patches + 1)
    make_room(folder, {f"{n}_{patch}.png" for n in numbered for patch in patches}, args.overwrite)
    done = in_parallel(lambda item: cut_patches(*item, args), numbered.items(), args.num_cores)
    for _ in tqdm(done, "images", len(pairs), disable=None):
        pass
    print(f"{folder}: {len(pairs) * args.num_patches} pairs from {len(pairs)} images")


if __name__ == "__main__":
    main()
