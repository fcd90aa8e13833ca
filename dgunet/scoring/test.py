"""What the tasks' `test.py` share: command line, weights, the loop over images, the report.

Results of a set go to `<result_dir>/<set>`, a PNG under each input's name. Beside them lie
`settings.json`, which says how they were made, and, where there are targets, `scores.csv`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dgunet.base.errors import InputError, first_few
from dgunet.base.files import sha256
from dgunet.base.folders import working_folder
from dgunet.base.threads import overlapped
from dgunet.images.files import (
    IMAGE_SUFFIXES,
    list_images,
    pair_by_name,
    read_image,
    to_tensor,
    to_uint8,
    write_image,
)
from dgunet.inference.memory import keep_freed_memory
from dgunet.inference.device import pick_device
from dgunet.inference.optimize import optimize_for_inference
from dgunet.inference.restorer import Restorer
from dgunet.model.checkpoint import is_of_published_size, load_model, load_weights
from dgunet.model.network import Network
from dgunet.model.registry import MODELS, build_model, task_module
from dgunet.scoring.evaluate import (
    SETTINGS_FILE,
    EvaluationSet,
    describe_settings,
    read_settings,
    report,
    write_settings,
)
from dgunet.scoring.protocols import Score, mean_score, score_folders
from dgunet.scoring.published import published_scores
from dgunet.scoring.tables import format_images, write_csv

PUBLISHED_WEIGHTS = (
    "https://github.com/MC-E/Deep-Generalized-Unfolding-Networks-for-Image-Restoration"
)
SCORES_FILE = "scores.csv"
_RESULT_SUFFIXES = (*IMAGE_SUFFIXES, ".mat")
_LONGEST_IMAGE_TABLE = 20  # rows; of larger sets only the means are printed


def make_parser(description: str, folder: Path) -> argparse.ArgumentParser:
    """Return the options that every `test.py` has; the default folders lie below
    `working_folder(folder)`, `folder` being the task's."""
    home = working_folder(folder)
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help="the checkpoint: an own or a published one")
    add("--model", choices=MODELS, help="stop unless the checkpoint is of this model")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="config.yml of the training run, if the checkpoint does not say what it is",
    )
    for name, default, text in (
        ("--input_dir", home / "Datasets", "the data folder"),
        ("--result_dir", home / "results", "results go to a folder in it for each set"),
    ):
        add(name, type=Path, default=default, metavar="DIR", help=f"{text} (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: the best)")
    add(
        "--self_ensemble",
        action="store_true",
        default=None,
        help="mean over the eight flips and turns of the image: better, eight times the work",
    )
    add("--overwrite", action="store_true", help="replace results of another program")
    add(
        "--jobs",
        type=int,
        default=-1,
        metavar="N",
        help="threads that read, write and score (default: one per core)",
    )
    return parser


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with what its results are to say about it."""

    network: Network
    device: torch.device
    settings: dict

    @property
    def config(self) -> dict:
        return self.network.config

    @property
    def of_published_size(self) -> bool:
        return is_of_published_size(self.network)

    def restore(self, pixels: np.ndarray, self_ensemble: bool = False) -> Tensor:
        """Return the restored image, C×H×W in [0,1] on the CPU.

        Args:
            pixels: H×W (grey: repeated to three channels, and the mean of the three results taken),
                H×W×3, or H×W×4 (alpha is dropped); uint8, uint16 or float in [0,1].

        Raises:
            InputError: the GPU has not the memory for it, or the result is not finite.
        """
        degraded = to_tensor(pixels)[:3]
        size = "×".join(map(str, degraded.shape[1:]))
        batch = degraded.expand(self.network.channels, -1, -1)[None].to(self.device)
        try:
            restorer = Restorer(
                self.network,
                device=self.device,
                tile=0,
                self_ensemble=self_ensemble,
                optimize=False,
            )
            restored = restorer.restore(batch)[0].cpu()
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{size} pixels do not fit the memory of {self.device}; try --device cpu"
            ) from error
        if not restored.isfinite().all():
            raise InputError(f"the network made values of {size} pixels that are not finite")
        if len(degraded) == 1:
            restored = restored.mean(0, keepdim=True)
        return restored.clamp(0, 1)


def load_trained(task: str, options: argparse.Namespace) -> TrainedNetwork:
    """Load `options.weights` for a task onto `options.device`.

    Raises:
        InputError: no weights given, or they are not of this task or `options.model`; no such
            device; a number of jobs that makes no sense.
    """
    if options.weights is None:
        raise InputError(
            f"--weights is missing; expected a checkpoint of {task}: one that {task}/train.py "
            f"wrote, or a published one from {PUBLISHED_WEIGHTS}"
        )
    if options.jobs == 0 or options.jobs < -1:
        raise InputError(f"--jobs is {options.jobs}; expected 1 or more, or -1 for one per core")
    device = pick_device(options.device)
    keep_freed_memory()
    if options.config is None:
        network, _ = load_model(options.weights, task, options.model)
    else:
        network = _build_from_config(task, options.config).eval()
        load_weights(network, options.weights)
    model = network.config["model"]
    if options.model not in (None, model):
        raise InputError(f"{options.weights}: is of {model}; --model says {options.model}")
    settings = {
        "program": _program(task),
        "task": task,
        "model": model,
        "weights": options.weights.name,
        "weights_sha256": sha256(options.weights),
        "device": str(device),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        settings["device"] += f" ({torch.cuda.get_device_name(device)})"
    trained = TrainedNetwork(optimize_for_inference(network).to(device), device, settings)
    if not trained.of_published_size:
        settings["sizes"] = network.sizes
    return trained


def _build_from_config(task: str, path: Path) -> Network:
    """Build the network that the MODEL section of a training configuration describes."""
    from dgunet.training.configuration import load_model_section, model_sizes

    config = load_model_section(path, task_module(task, "train").TASK.recipe)
    try:
        return build_model(task, config.MODEL.NAME, model_sizes(config))
    except InputError as error:  # a size that is none of the task's
        raise InputError(f"{path}: {error}") from error


def _program(task: str) -> str:
    return f"{task}/test.py"


@dataclass(frozen=True)
class ImageSet:
    """Images to restore, and what their results are compared with.

    Attributes:
        name: also of the results' folder.
        inputs: the image files, of different stems.
        targets: the folder of the target images, named like the inputs; None: there are none.
        protocol: the name of the protocol that scores them.
        published: whether it is one of the sets that the paper reports.
        makes_targets: the targets are no files but made by `make_target`; they are written beside
            the results, to `target/`.
        settings: what `settings.json` is to say about the set.
    """

    name: str
    inputs: list[Path]
    targets: Path | None
    protocol: str
    published: bool = False
    makes_targets: bool = False
    settings: dict = field(default_factory=dict)

    def read(self, path: Path) -> np.ndarray:
        """Return the degraded image, H×W[×C], that an input stands for."""
        return read_image(path)

    def make_target(self, path: Path) -> np.ndarray:
        """Return the target, uint8 H×W[×3], of an input."""
        raise NotImplementedError

    def score_inputs(self, targets: Path, jobs: int) -> list[Score]:
        """Return the scores of the degraded images."""
        return score_folders(self.inputs[0].parent, targets, self.protocol, jobs)

    def check(self) -> None:
        """Raise `InputError` for what would only be found out after hours: inputs of one stem,
        without target or of another size, and files that are no images."""
        from dgunet.images.sizes import check_sizes, image_size

        stems: dict[str, list[str]] = {}
        for path in self.inputs:
            stems.setdefault(path.stem, []).append(path.name)
        doubled = [name for names in stems.values() if len(names) > 1 for name in names]
        if doubled:
            raise InputError(
                f"{self.inputs[0].parent}: {len(doubled)} images share their name but for the "
                f"suffix, and so would their results: {first_few(doubled)}"
            )
        if self.targets:
            check_sizes(pair_by_name(self.inputs[0].parent, self.targets))
        else:
            for path in self.inputs:
                image_size(path)


def find_sets(
    input_dir: Path,
    names: Sequence[str] | None,
    test_sets: Mapping[str, EvaluationSet],
    default_sets: Sequence[str],
    default_protocol: str,
) -> list[ImageSet]:
    """Return the sets to restore: those named; else `input_dir` itself if it holds `input/` or
    images; else those of `default_sets` that exist.

    A set's inputs lie in `input/` beside the targets. Raises `InputError` for a missing folder.
    """

    def named(name: str) -> ImageSet:
        targets = input_dir / test_sets[name].target
        inputs = targets.parent / "input"
        if not inputs.is_dir():
            raise InputError(
                f"{inputs}: does not exist; expected the inputs of {name} (--dataset picks the "
                "sets, --input_dir the folder they lie in)"
            )
        protocol = test_sets[name].protocol
        return ImageSet(name, list_images(inputs), _if_folder(targets), protocol, published=True)

    if names:
        return [named(name) for name in dict.fromkeys(names)]
    if alone := folder_set(input_dir, default_protocol):
        return [alone]
    existing = [
        name
        for name in default_sets
        if (input_dir / test_sets[name].target).parent.joinpath("input").is_dir()
    ]
    if not existing:
        if not input_dir.is_dir():
            raise InputError(f"{input_dir}: does not exist; expected the data (--input_dir DIR)")
        sets = f" or a set ({', '.join(default_sets)})" if default_sets else ""
        raise InputError(
            f"{input_dir}: found no images; expected them in it, in input/{sets} (--input_dir DIR)"
        )
    return [named(name) for name in existing]


def folder_set(folder: Path, protocol: str) -> ImageSet | None:
    """Return the set of a folder with `input/` (and `target/`), or with images alone; None for any
    other folder."""
    name = folder.resolve().name
    if (folder / "input").is_dir():
        inputs = list_images(folder / "input")
        return ImageSet(name, inputs, _if_folder(folder / "target"), protocol)
    if folder.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()):
        return ImageSet(name, list_images(folder), None, protocol)
    return None


def _if_folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def result_folder(result_dir: Path, name: str, alone: bool = True) -> Path:
    """Return `<result_dir>/<name>`; the result folder itself if it is the only set's and has its
    name already, as in the published commands (`--result_dir ./results/SIDD`)."""
    return result_dir if alone and result_dir.name == name else result_dir / name


def run_sets(
    trained: TrainedNetwork,
    sets: Sequence[ImageSet],
    options: argparse.Namespace,
    self_ensemble: bool = False,
) -> None:
    """Restore the sets into folders below `options.result_dir`, then score and report them.

    Raises `InputError`, before anything is computed, for unfit inputs, for sets of one name, and
    for files in the way (`claim_results`).
    """
    names = [images.name for images in sets]
    if doubled := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"two sets are called {first_few(doubled)}; test them apart")
    folders = {s.name: result_folder(options.result_dir, s.name, len(sets) == 1) for s in sets}
    settings = {
        s.name: {**trained.settings, "self_ensemble": self_ensemble, **s.settings} for s in sets
    }
    for images in sets:
        images.check()
        files = _result_files(images, folders[images.name])
        sources = [images.inputs[0].parent, *filter(None, [images.targets])]
        claim_results(folders[images.name], files, trained, options.overwrite, sources)
    for images in sets:
        with noting_settings(folders[images.name], settings[images.name]):
            _restore_set(trained, images, folders[images.name], self_ensemble, options.jobs)

    for protocol in dict.fromkeys(s.protocol for s in sets):
        scores, inputs = {}, {}
        for images in (s for s in sets if s.protocol == protocol):
            folder = folders[images.name]
            targets = folder / "target" if images.makes_targets else images.targets
            print(f"{images.name}: {len(images.inputs)} images restored in {folder}")
            if not targets:
                print(f"{images.name}: no targets, no scores")
                continue
            scores[images.name] = score_folders(folder, targets, protocol, options.jobs)
            try:
                inputs[images.name] = images.score_inputs(targets, options.jobs)
            except InputError as error:  # RealBlur's alignment can fail on an input alone
                print(f"{images.name}: inputs not scored: {error}")
        published = [s.name for s in sets if s.published]
        report_scores(trained, protocol, scores, inputs, settings, folders, published)


def report_scores(
    trained: TrainedNetwork,
    protocol: str,
    scores: Mapping[str, Sequence[Score]],
    inputs: Mapping[str, Sequence[Score]],
    settings: Mapping[str, dict],
    folders: Mapping[str, Path],
    published: Sequence[str],
) -> None:
    """Write `scores.csv` into each set's folder (the degraded images as the set "NAME input") and
    print the tables, with the published scores of the sets in `published` if the network has the
    published size. `settings` and `folders` are by set, as `scores` and `inputs`, which may lack
    some."""
    if not scores:
        return
    task, model = trained.config["task"], trained.config["model"]
    comparable = [name for name in scores if name in published and trained.of_published_size]
    if set(comparable) >= set(published_scores(task, model)) - {"mean"}:
        comparable.append("mean")
    for name in scores:
        rows = {name: scores[name]}
        if name in inputs:
            rows[f"{name} input"] = inputs[name]
        text = describe_settings({name: settings[name]})
        write_csv(folders[name] / SCORES_FILE, rows, protocol, text)

    first, *others = (settings[name] for name in scores)
    shared = {
        key: value for key, value in first.items() if all(o.get(key) == value for o in others)
    }
    print()
    text = describe_settings({"all": shared})
    report(task, scores, protocol, text, model=model, comparable=comparable)
    print()
    for name in inputs:
        if len(inputs[name]) <= _LONGEST_IMAGE_TABLE:
            print(f"{name}, PSNR (dB) / SSIM of every image:")
            print(format_images({"input": inputs[name], "restored": scores[name]}) + "\n")
    for name in inputs:
        _print_gain(name, mean_score(inputs[name]), mean_score(scores[name]))
    if len(inputs) > 1:
        means = [[mean_score(part[name]) for name in inputs] for part in (inputs, scores)]
        _print_gain("mean", *map(mean_score, means))
    print("scores of every image:", ", ".join(str(folders[name] / SCORES_FILE) for name in scores))


def _print_gain(name: str, degraded: Score, restored: Score) -> None:
    print(
        f"{name}: input {degraded.psnr:.2f} dB, restored {restored.psnr:.2f} dB: "
        f"{restored.psnr - degraded.psnr:+.2f} dB"
    )


def claim_results(
    folder: Path,
    files: Iterable[Path],
    trained: TrainedNetwork,
    overwrite: bool,
    sources: Iterable[Path] = (),
) -> None:
    """Make sure that writing `files`, the settings and the scores into `folder` loses nothing.

    Results of the same program, as `settings.json` says, are overwritten; what else is in the way
    only if `overwrite`.

    Raises `InputError` for files in the way, for other results in the folder, which would then lie
    among those of other settings, and for a folder that holds a folder of `sources`.
    """
    for source in sources:
        if folder.resolve() in (source.resolve(), *source.resolve().parents):
            raise InputError(
                f"{folder}: is where the results would go, but {source} lies there; choose "
                "another --result_dir"
            )
    files = set(files)
    others = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _RESULT_SUFFIXES and path not in files and path.is_file()
    ]
    if others:
        raise InputError(
            f"{folder}: holds {len(others)} images or MAT files that this run would not replace: "
            f"{first_few([path.name for path in others])}; remove them or choose another "
            "--result_dir"
        )
    files |= {folder / SETTINGS_FILE, folder / SCORES_FILE}
    existing = sorted(path for path in files if path.exists())
    if not existing or overwrite:
        return
    if (read_settings(folder) or {}).get("program") != trained.settings["program"]:
        raise InputError(
            f"{folder}: holds {first_few([path.name for path in existing])}, not made by "
            f"{trained.settings['program']}; choose another --result_dir, or --overwrite"
        )


@contextmanager
def noting_settings(folder: Path, settings: Mapping[str, object]) -> Iterator[None]:
    """Keep `settings.json` in `folder` true: while the results are made, or if that is interrupted,
    it says `unfinished`."""
    (folder / SCORES_FILE).unlink(missing_ok=True)
    write_settings(folder, {**settings, "unfinished": True})
    yield
    write_settings(folder, settings)


def _result_files(images: ImageSet, folder: Path) -> list[Path]:
    names = [f"{path.stem}.png" for path in images.inputs]
    parts = [folder, folder / "target"] if images.makes_targets else [folder]
    return [part / name for part in parts for name in names]


def _restore_set(
    trained: TrainedNetwork, images: ImageSet, folder: Path, self_ensemble: bool, jobs: int
) -> None:
    def compute(path: Path, pixels: np.ndarray) -> np.ndarray:
        try:
            return to_uint8(trained.restore(pixels, self_ensemble))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def write(path: Path, restored: np.ndarray) -> None:
        write_image(folder / f"{path.stem}.png", restored)
        if images.makes_targets:
            write_image(folder / "target" / f"{path.stem}.png", images.make_target(path))

    threads = jobs if jobs > 0 else os.cpu_count() or 1
    done = overlapped(images.inputs, images.read, compute, write, threads)
    # disable=None: no bar where standard error is not a terminal
    for _ in tqdm(done, images.name, len(images.inputs), unit="image", disable=None):
        pass
