"""Write the reference of all configuration keys into a page, under its heading "Keys".

python -m dgunet.tools.keys docs/training.md
"""

from collections.abc import Mapping
from pathlib import Path

from dgunet.base.errors import InputError, command
from dgunet.base.files import write_bytes
from dgunet.base.options import new_parser
from dgunet.model.registry import TASKS, task_module
from dgunet.training.configuration import KEYS, Key, shown, with_recipe

HEADING = "\n## Keys\n"


def reference() -> str:
    """Return the keys as Markdown tables: those of all tasks, then what each task changes."""
    parts = [_table(KEYS)]
    for task in TASKS:
        recipe = task_module(task, "train").TASK.recipe
        if recipe:
            changed = {key: with_recipe(recipe)[key] for key in recipe}
            parts.append(f"### {task}\n\n{_table(changed)}")
    return "\n\n".join(parts) + "\n"


def _table(keys: Mapping[str, Key]) -> str:
    rows = [f"| `{name}` | `{shown(key.default)}` | {key.help} |" for name, key in keys.items()]
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows])


def updated(page: Path) -> str:
    """Return a page with the reference in place of what follows its heading."""
    text, heading, _ = page.read_text(encoding="utf-8").rpartition(HEADING)
    if not heading:
        raise InputError(f"{page}: has no heading '## Keys'")
    return f"{text}{heading}\n{reference()}"


@command
def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("page", type=Path, help="a Markdown file that ends with the reference")
    page = parser.parse_args().page
    write_bytes(page, updated(page).encode())


if __name__ == "__main__":
    main()
