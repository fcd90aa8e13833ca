"""Where the data, results and checkpoints of a task lie unless a program is told otherwise."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def working_folder(folder: str | Path) -> Path:
    """Return the folder that holds `Datasets`, `results` and `checkpoints` of a task folder.

    In a checkout this is the task folder itself. In an installed package, where a task folder lies
    inside `dgunet` and is not to be written to, it is one of the same name in the current folder.
    Any other folder is returned as it is.
    """
    folder = Path(folder).resolve()
    return Path.cwd() / folder.name if folder.parent == PACKAGE else folder
