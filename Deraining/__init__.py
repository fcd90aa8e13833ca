import sys
from importlib import import_module

if __name__ == "Deraining":  # from a checkout: modules of dgunet, not copies
    for _name in ("DGUNet", "data"):
        sys.modules[f"{__name__}.{_name}"] = import_module(f"dgunet.{__name__}.{_name}")
