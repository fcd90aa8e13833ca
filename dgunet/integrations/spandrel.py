"""spandrel, the loader of ComfyUI and chaiNNer, made to take DGUNet's files: ours and the authors'.

    import dgunet.integrations.spandrel
    dgunet.integrations.spandrel.install()
    model = spandrel.ModelLoader().load_from_file("small_gaussian25.safetensors")

spandrel hands an architecture a file's tensors and nothing else. With our names these do not tell
how often DGUNet repeats its middle stage, so `install` makes spandrel's `ModelLoader` keep what our
files say of their sizes. A program that reads files without it, as ComfyUI does, takes files with
the published names: `python -m dgunet.tools.convert --published` writes them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import spandrel
from spandrel import Architecture, ArchSupport, ImageModelDescriptor

from dgunet.model.checkpoint import identify, network_from, read_checkpoint
from dgunet.model.network import Network

CONFIG = "dgunet_config"  # entry that a state dict gets beside its tensors


class DGUNetArchitecture(Architecture[Network]):
    """Every task's DGUNet and DGUNet_plus, with our names or the published ones."""

    def __init__(self) -> None:
        super().__init__(id="DGUNet", detect=_is_ours)

    def load(self, state_dict: Mapping) -> ImageModelDescriptor[Network]:
        """Raises `InputError` if the entries do not fit, or do not tell which network it is. Where
        published weights fit several tasks, whose networks are then the same, takes the first."""
        tensors = {name: value for name, value in state_dict.items() if name != CONFIG}
        checkpoint = {"state_dict": tensors, "config": state_dict.get(CONFIG)}
        task = next((config["task"] for config in identify(checkpoint)), None)
        network = network_from(checkpoint, "state_dict.safetensors", task)
        sizes = network.sizes
        return ImageModelDescriptor(
            network,
            network.state_dict(),
            architecture=self,
            purpose="Restoration",
            tags=[type(network).__name__, f"{sizes['width']}w", f"{sizes['stages']} stages"],
            supports_half=True,  # all of a network; see docs/export.md
            supports_bfloat16=False,
            scale=1,
            input_channels=network.channels,
            output_channels=network.channels,
            size_requirements=spandrel.SizeRequirements(network.min_long_side, network.multiple_of),
            tiling=spandrel.ModelTiling.SUPPORTED,
            call_fn=lambda network, image: network(image)[0],
        )


def install() -> None:
    """Let spandrel's `ModelLoader` take DGUNet's files. A second call does nothing."""
    added = spandrel.MAIN_REGISTRY.add(
        ArchSupport.from_architecture(DGUNetArchitecture()), ignore_duplicates=True
    )
    load = spandrel.ModelLoader.load_state_dict_from_file

    @functools.wraps(load)
    def keeping_config(self, path):
        state = load(self, path)
        if "fgdm.0.step_size" in state:
            state[CONFIG] = read_checkpoint(path)["config"]
        return state

    if added:
        spandrel.ModelLoader.load_state_dict_from_file = keeping_config


def _is_ours(state: Mapping) -> bool:
    published = {"shallow_feat1.0.weight", "stage1_encoder.body.0.conv_1.weight", "tail.weight"}
    return "fgdm.0.step_size" in state or published <= state.keys()
