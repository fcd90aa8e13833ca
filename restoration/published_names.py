"""Our parameter names and those of the published checkpoints.

Each entry of a network's state dict has one published name; a parameter that several modules share
stands under several names on both sides. Published files also hold entries that take no part in the
computation: `unused_entries`.
"""

from restoration.network import Network

# Names inside one part of a stage: ours → published.
OPERATOR = {"expand": "body.0", "slope": "body.1", "reduce": "body.2"}
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
FUSION = {"from_encoder": "csff_enc", "from_decoder": "csff_dec", "gate": "phi", "shift": "gamma"}
ENCODER = {
    **{
        f"blocks.{i}.{ours}": f"body.{i}.{theirs}"
        for i in range(3)
        for ours, theirs in BLOCK.items()
    },
    **{
        f"fusions.{i}.{ours}": f"body.{i}.{theirs}"
        for i in range(3)
        for ours, theirs in FUSION.items()
    },
    **{f"down.{i}": f"body.{i}.downsample" for i in range(3)},
    **{f"bottom.{ours}": f"body.3.{theirs}" for ours, theirs in BLOCK.items()},
}
DECODER = {
    **{f"up.{i}": f"body.{i}.up" for i in range(3)},
    **{f"skip.{i}": f"skip_conv.{i}" for i in range(3)},
    **{
        f"blocks.{i}.{ours}": f"body.{i}.conv_block.{theirs}"
        for i in range(3)
        for ours, theirs in BLOCK.items()
    },
}


def published_names(model: Network) -> dict[str, str]:
    """Return {entry of `model.state_dict()`: its name in the published checkpoints}."""
    modules = _modules(model)
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
    shapes = {}
    for i in range(3):  # the first stage has no previous one to fuse with
        inner = width + i * model.sizes["width_step"]
        outer = inner + model.sizes["width_step"]
        for name, in_width in (("csff_enc", outer), ("csff_dec", inner)):
            shapes[f"stage1_encoder.body.{i}.{name}.weight"] = (outer, in_width, 3, 3)
            shapes[f"stage1_encoder.body.{i}.{name}.bias"] = (outer,)
    for i in range(len(model.middle)):  # learned operators, though Φ is the operator
        for operator in ("phi", "phit"):
            body = f"{_middle_prefix(model, i)}{operator}.body"
            shapes |= {
                f"{body}.0.weight": (64, 3, 3, 3),
                f"{body}.0.bias": (64,),
                f"{body}.1.weight": (1,),
                f"{body}.2.weight": (3, 64, 3, 3),
                f"{body}.2.bias": (3,),
            }
    return shapes


def _repeats(model: Network) -> bool:
    return type(model).__name__ == "DGUNet"


def _middle_prefix(model: Network, i: int) -> str:
    if model.channels == 1:
        return "stage_model." if _repeats(model) else f"body.{i}."
    return "basic." if _repeats(model) else ""


def _modules(model: Network) -> dict[str, str]:
    """Return {our module or parameter: published module or parameter}."""
    stages = model.sizes["stages"]
    middle = [(f"middle.{i}", i + 2, _middle_prefix(model, i)) for i in range(len(model.middle))]
    modules = {"A.Phi": "Phi"}
    for ours, k, prefix in [("first", 1, ""), *middle, ("last", stages, "")]:
        if model.channels == 3:
            parts = _restoration_parts(prefix, k)
        else:
            parts = _compressive_sensing_parts(prefix, "first" if k == 1 else ours.split(".")[0])
        for part, (theirs, inner) in parts.items():
            modules[f"{ours}.{part}"] = theirs
            modules |= {f"{ours}.{part}.{a}": f"{theirs}.{b}" for a, b in inner.items()}
    return modules


def _restoration_parts(prefix: str, k: int) -> dict[str, tuple[str, dict[str, str]]]:
    return {
        "gradient.A": (f"{prefix}phi_{k - 1}", OPERATOR),
        "gradient.A_adjoint": (f"{prefix}phit_{k - 1}", OPERATOR),
        "gradient.step_size": (f"{prefix}r{k - 1}", {}),
        "shallow": (f"{prefix}shallow_feat{k}", SHALLOW),
        "merge": (f"{prefix}merge{k - 1}{k}", MERGE),
        "encoder": (f"{prefix}stage{k}_encoder", ENCODER),
        "decoder": (f"{prefix}stage{k}_decoder", DECODER),
        "sam": (f"{prefix}sam{k}{k + 1}", SAM),
        "concat": ("concat67", {}),
        "image": ("tail", {}),
    }


def _compressive_sensing_parts(prefix: str, place: str) -> dict[str, tuple[str, dict[str, str]]]:
    step, suffix, unet, sam = {
        "first": ("r0", "1", "stage1", "sam12"),
        "middle": ("r", "", "stage", "sam"),
        "last": ("r_final", "_final", "", ""),
    }[place]
    return {
        "gradient.step_size": (f"{prefix}{step}", {}),
        "shallow": (f"{prefix}shallow_feat{suffix}", SHALLOW),
        "merge": (f"{prefix}concat", {}),
        "encoder": (f"{prefix}{unet}_encoder", ENCODER),
        "decoder": (f"{prefix}{unet}_decoder", DECODER),
        "sam": (f"{prefix}{sam}", SAM),
        "concat": ("concat_final", {}),
        "image": ("tail", {}),
    }
