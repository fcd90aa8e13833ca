"""Where the data, results and checkpoints of a task lie unless a program is told otherwise."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def working_folder(folder: str | Path) -> Path:
    """Return the folder that holds `Datasets`, `results` and `checkpoints` of a task folder: itself
    in a checkout; in an installed package, where a task folder lies inside `dgunet` and is not to
    be written to, one of the same name in the current folder. Other folders are returned as they
    are."""
    folder = Path(folder).resolve()
    return Path.cwd() / folder.name if folder.parent == PACKAGE else folder
