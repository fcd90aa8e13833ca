"""Restore your own images with any task's weights: `python demo.py --help`.

The program is dgunet/tools/restore.py; after installation `dgunet` is the same command.
"""

from dgunet.tools.restore import main

if __name__ == "__main__":
    main()
