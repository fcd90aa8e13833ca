"""Score denoising results.

The SIDD benchmark, block by block: results/SIDD/mat/Idenoised.mat against
Datasets/SIDD/test/ValidationGtBlocksSrgb.mat, or other MAT files:
    python evaluate.py
    python evaluate.py --result Idenoised.mat --target ValidationGtBlocksSrgb.mat
Two folders, images matched by name, as for synthetic Gaussian noise:
    python evaluate.py --result_dir A --target_dir B
"""

from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command
from dgunet.base.folders import working_folder
from dgunet.scoring.evaluate import (
    describe_settings,
    evaluate_folders,
    make_parser,
    model_of,
    read_settings,
    report,
)
from dgunet.scoring.protocols import score_blocks

HOME = working_folder(Path(__file__).parent)
SIDD_PROTOCOL = "matlab_rgb"


def read_blocks(path: str | Path, variable: str) -> np.ndarray:
    """Return the blocks of the SIDD benchmark in a MAT file (v5): 40×32×256×256×3, uint8 or float
    in [0, 1]. Raises `InputError` for a file that is no such one."""
    from scipy.io import loadmat

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: does not exist; expected a MAT file with {variable}")
    try:
        contents = loadmat(path, variable_names=[variable])
    except NotImplementedError as error:
        raise InputError(f"{path}: is MAT v7.3 (HDF5); expected v5, as save -v7 writes") from error
    except Exception as error:  # a damaged file makes loadmat raise anything
        raise InputError(f"{path}: cannot be read as a MAT file ({error})") from error
    if variable not in contents:
        raise InputError(f"{path}: has no variable {variable}")
    return contents[variable]


@command
def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--result", type=Path, metavar="FILE", help="MAT file with Idenoised")
    parser.add_argument(
        "--target", type=Path, metavar="FILE", help="MAT file with ValidationGtBlocksSrgb"
    )
    options = parser.parse_args()
    if options.result_dir or options.target_dir:
        if not (options.result_dir and options.target_dir):
            parser.error("--result_dir and --target_dir are given together")
        if options.result or options.target:
            parser.error("give two folders or two MAT files, not both")
        evaluate_folders("Denoising", options, {}, [], default_protocol="gaussian_rgb")
        return

    result = options.result or HOME / "results/SIDD/mat/Idenoised.mat"
    target = options.target or HOME / "Datasets/SIDD/test/ValidationGtBlocksSrgb.mat"
    protocol = options.protocol or SIDD_PROTOCOL
    settings = read_settings(result.parent, result.parent.parent)
    scores = score_blocks(
        read_blocks(result, "Idenoised"),
        read_blocks(target, "ValidationGtBlocksSrgb"),
        protocol,
        options.jobs,
    )
    report(
        "Denoising",
        {"SIDD": scores},
        protocol,
        describe_settings({"SIDD": settings}),
        model=options.model or model_of([settings]),
        comparable=["SIDD"] if protocol == SIDD_PROTOCOL else [],
        csv=options.csv,
    )


if __name__ == "__main__":
    main()
