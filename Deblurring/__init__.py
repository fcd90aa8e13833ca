import sys
from importlib import import_module

if (
    __name__ == "Deblurring"
):  # imported from a checkout: the same modules as dgunet.Deblurring's, not copies
    for _name in ("DGUNet", "data"):
        sys.modules[f"{__name__}.{_name}"] = import_module(f"dgunet.{__name__}.{_name}")
