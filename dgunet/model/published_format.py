"""Our parameter names and those of the published checkpoints.

Each entry of a network's state dict has one published name; a parameter that several modules share
stands under several names on both sides. Published files also hold entries that take no part in the
computation: `unused_entries`.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dgunet.model.network import Network

# Names inside one part: ours → published.
OPERATOR = {str(i): f"body.{i}" for i in range(3)}
SHALLOW = {
    "0": "0",
    "1.conv1": "1.body.0",
    "1.slope": "1.body.1",
    "1.conv2": "1.body.2",
    "1.squeeze": "1.CA.conv_du.0",
    "1.excite": "1.CA.conv_du.2",
}
MERGE = {"basis": "subnet", "fuse": "conv_block"}
SAM = {"features": "conv1", "image": "conv2", "attention": "conv3"}
BLOCK = {"conv1": "conv_1", "norm": "norm", "conv2": "conv_2", "identity": "identity"}
# The order in which the published code for image restoration makes its modules, and so numbers the
# parameters of its optimizer: of the whole network, and of the names inside its parts.
MODULES = {
    "DGUNet": r"r\d basic\.r basic\.phi basic\.shallow basic\.stage basic\.sam basic\.concat "
    r"basic\.merge shallow stage sam phi concat tail",
    "DGUNet_plus": r"r\d shallow phi stage sam|merge tail",
}
INSIDE = [
    *("encoder", "decoder", "sam", "merge", "identity", "conv_1", "conv_2", "csff_enc", "csff_dec"),
    *("phi", "phit", "gamma", "norm", "downsample", "CA", "conv_du", "body", "up", "conv_block"),
    *("skip_conv", "subnet", "conv1", "conv2", "conv3", "weight", "bias"),
]
FUSION = {"from_encoder": "csff_enc", "from_decoder": "csff_dec", "gate": "phi", "shift": "gamma"}


def published_names(model: Network) -> dict[str, str]:
    """Return {entry of `model.state_dict()`: its name in the published checkpoints}."""
    modules = _restoration_names(model) if model.channels == 3 else _sensing_names(model)
    names = {}
    for entry in model.state_dict():
        module, _, leaf = entry.rpartition(".")  # `leaf` is weight or bias where a module is named
        names[entry] = modules[entry] if entry in modules else f"{modules[module]}.{leaf}"
    return names


def unused_entries(model: Network) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the published entries without part in the computation."""
    width = model.sizes["width"]
    if model.channels == 3:
        return {"basic.concat12.weight": (width, 2 * width, 3, 3)} if _repeats(model) else {}
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(3):  # the first stage has no previous one to fuse with
        inner = width + i * model.sizes["width_step"]
        outer = inner + model.sizes["width_step"]
        for name, in_width in (("csff_enc", outer), ("csff_dec", inner)):
            shapes[f"stage1_encoder.body.{i}.{name}.weight"] = (outer, in_width, 3, 3)
            shapes[f"stage1_encoder.body.{i}.{name}.bias"] = (outer,)
    for i in range(1, len(model.ipmm)):  # learned operators, though Φ is the operator
        for operator in ("phi", "phit"):
            body = f"{_sensing_prefix(model, i)}{operator}.body"
            shapes |= {
                f"{body}.0.weight": (64, 3, 3, 3),
                f"{body}.0.bias": (64,),
                f"{body}.1.weight": (1,),
                f"{body}.2.weight": (3, 64, 3, 3),
                f"{body}.2.bias": (3,),
            }
    return shapes


def published_sizes(state: Mapping[str, Tensor]) -> tuple[int, str, dict[str, int]] | None:
    """Return the channels, the model's name and the sizes that a state dict of published names
    (without `module.`) is of; None if it is none."""
    try:
        width, channels = state["shallow_feat1.0.weight"].shape[:2]
        step = state["stage1_encoder.body.0.conv_1.weight"].shape[0] - width
        sizes = {"width": width, "width_step": step}
        if channels == 1:
            rows, last = len(state["Phi"]), "concat_final.weight"
            sizes["cs_ratio"] = next(r for r in range(1, 101) if -(-1024 * r // 100) == rows)
            separate = [int(name.split(".")[1]) for name in state if re.match(r"body\.\d", name)]
            model = "DGUNet_plus" if separate else "DGUNet"
            sizes["stages"] = max(separate, default=4) + 3
        else:
            last = "concat67.weight"
            model = "DGUNet" if last in state else "DGUNet_plus"
            numbered = (re.match(r"shallow_feat(\d+)\.", name) for name in state)
            sizes["stages"] = max(int(match[1]) for match in numbered if match)
        if last in state:
            sizes["last_extra"] = state[last].shape[0] - width
    except (LookupError, ValueError, StopIteration):
        return None
    return channels, model, sizes


def published_state_dict(model: Network) -> dict[str, Tensor]:
    """Return the model's weights as the published code loads them: its names (with `module.`), the
    unused entries filled with zeros. Raises a ValueError unless the model has the seven stages that
    the published code fixes."""
    if model.sizes["stages"] != 7:
        raise ValueError(f"the published code has 7 stages, this model {model.sizes['stages']}")
    names = published_names(model)
    state = {names[name]: value.detach().clone() for name, value in model.state_dict().items()}
    state |= {name: torch.zeros(shape) for name, shape in unused_entries(model).items()}
    return {f"module.{name}": value for name, value in state.items()}


def adam_from_published(model: Network, optimizer: Mapping) -> dict[int, dict]:
    """Return the state of Adam that a published checkpoint holds under `optimizer`, numbered as
    `model.parameters()`. Raises a ValueError if it is of other parameters."""
    numbers, names = _published_numbers(model), published_names(model)
    keys = [key for group in optimizer["param_groups"] for key in group["params"]]
    if len(keys) != len(set(numbers.values())):
        raise ValueError(f"is of {len(keys)} parameters, not {len(set(numbers.values()))}")
    state = {}
    for number, (entry, _) in enumerate(model.named_parameters()):
        found = optimizer["state"].get(keys[numbers[names[entry]]])
        if found is None:
            continue
        state[number] = {name: found[name] for name in ("exp_avg", "exp_avg_sq")}
        state[number]["step"] = torch.tensor(float(found["step"]))
    return state


def published_adam(model: Network, optimizer: Mapping, highest_rate: float) -> dict:
    """Return the state dict of an Adam over `model.parameters()` as the published code loads it,
    which also wants to know the highest learning rate."""
    numbers, names = _published_numbers(model), published_names(model)
    state = {}
    for number, (entry, _) in enumerate(model.named_parameters()):
        if found := optimizer["state"].get(number):
            state[numbers[names[entry]]] = {**found, "step": int(found["step"])}
    [group] = optimizer["param_groups"]
    settings = {key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad")}
    settings |= {"initial_lr": highest_rate, "params": sorted(set(numbers.values()))}
    return {"state": state, "param_groups": [settings]}


def _published_numbers(model: Network) -> dict[str, int]:
    """Return {published name: number of its parameter in the published `model.parameters()`} of an
    image-restoration model."""
    modules = [re.compile(pattern) for pattern in MODULES[type(model).__name__].split()]

    def place(name: str) -> list[int]:
        head, *inside = name.removeprefix("basic.").split(".")
        kind = re.findall(r"[a-z]+", head)[-1]
        return [
            [bool(module.match(name)) for module in modules].index(True),
            int("".join(re.findall(r"\d", head)) or 0),
            INSIDE.index(kind) if kind in INSIDE else 0,
            *(int(part) if part.isdigit() else INSIDE.index(part) for part in inside),
        ]

    entries = model.state_dict(keep_vars=True)
    parameters = {name: id(entries[entry]) for entry, name in published_names(model).items()}
    parameters |= dict.fromkeys(unused_entries(model), -1)  # there is one at most
    numbers: dict[int, int] = {}
    return {
        name: numbers.setdefault(parameters[name], len(numbers))
        for name in sorted(parameters, key=place)
    }


def _repeats(model: Network) -> bool:
    return type(model).__name__ == "DGUNet"


def _restoration_names(model: Network) -> dict[str, str]:
    """Return {our module or parameter: published module or parameter}."""
    names = {}
    for i in range(len(model.fgdm)):
        last = i == len(model.fgdm) - 1
        ours = "last" if last else f"ipmm.{i}"
        k = model.sizes["stages"] if last else i + 1
        prefix = "basic." if _repeats(model) and 1 < k < model.sizes["stages"] else ""
        names[f"fgdm.{i}.step_size"] = f"{prefix}r{k - 1}"
        names |= _inside(f"fgdm.{i}.A", f"{prefix}phi_{k - 1}", OPERATOR)
        names |= _inside(f"fgdm.{i}.A_adjoint", f"{prefix}phit_{k - 1}", OPERATOR)
        names |= _inside(f"{ours}.shallow", f"{prefix}shallow_feat{k}", SHALLOW)
        names |= _inside(f"{ours}.merge", f"{prefix}merge{k - 1}{k}", MERGE)
        names |= _unet(ours, f"{prefix}stage{k}")
        names |= _inside(f"{ours}.sam", f"{prefix}sam{k}{k + 1}", SAM)
    return {**names, "last.concat": "concat67", "last.image": "tail"}


def _sensing_names(model: Network) -> dict[str, str]:
    """Return {our module or parameter: published module or parameter}."""
    last = len(model.ipmm)
    names = {"A.Phi": "Phi", "fgdm.0.step_size": "r0", f"fgdm.{last}.step_size": "r_final"}
    names |= _inside("ipmm.0.shallow", "shallow_feat1", SHALLOW)
    names |= _unet("ipmm.0", "stage1")
    names |= _inside("ipmm.0.sam", "sam12", SAM)
    for i in range(1, last):
        prefix = _sensing_prefix(model, i)
        names[f"fgdm.{i}.step_size"] = f"{prefix}r"
        names |= _inside(f"ipmm.{i}.shallow", f"{prefix}shallow_feat", SHALLOW)
        names[f"ipmm.{i}.merge"] = f"{prefix}concat"
        names |= _unet(f"ipmm.{i}", f"{prefix}stage")
        names |= _inside(f"ipmm.{i}.sam", f"{prefix}sam", SAM)
    names |= _inside("last.shallow", "shallow_feat_final", SHALLOW)
    return {**names, "last.concat": "concat_final", "last.image": "tail"}


def _sensing_prefix(model: Network, i: int) -> str:
    return "stage_model." if _repeats(model) else f"body.{i - 1}."


def _unet(ours: str, theirs: str) -> dict[str, str]:
    """The U-Net of an IPMM. The published decoder counts from the deepest scale."""
    encoder, decoder = f"{theirs}_encoder", f"{theirs}_decoder"
    names = _inside(f"{ours}.bottom", f"{encoder}.body.3", BLOCK)
    for scale in range(3):
        names |= _inside(f"{ours}.encoder.{scale}", f"{encoder}.body.{scale}", BLOCK)
        names |= _inside(f"{ours}.fusion.{scale}", f"{encoder}.body.{scale}", FUSION)
        names[f"{ours}.down.{scale}"] = f"{encoder}.body.{scale}.downsample"
        names[f"{ours}.up.{scale}"] = f"{decoder}.body.{2 - scale}.up"
        names[f"{ours}.skip.{scale}"] = f"{decoder}.skip_conv.{2 - scale}"
        names |= _inside(f"{ours}.decoder.{scale}", f"{decoder}.body.{2 - scale}.conv_block", BLOCK)
    return names


def _inside(ours: str, theirs: str, parts: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}
