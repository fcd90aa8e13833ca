"""`python -m dgunet` restores images, as the command `dgunet` and demo.py do."""

from dgunet.tools.restore import main

main()
