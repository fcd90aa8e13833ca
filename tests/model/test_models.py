"""The networks against the reference outputs, closed forms and the sizes and precisions that users
bring."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import small as small_network
from torch import nn

from dgunet.inference.optimize import optimize_for_inference
from dgunet.model.checkpoint import load_weights
from dgunet.model.layers import project
from dgunet.model.published_format import published_names, published_state_dict, unused_entries
from dgunet.model.registry import MODELS, TASKS, build_model, task_module

LOSSES = {task: task_module(task, "train").TASK.loss for task in TASKS}
ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parents[1] / "fixtures"
CASES = [f"{task}.{model}" for task in TASKS for model in MODELS]
DESIGNS = ["Deraining.DGUNet_plus", "Compressive_Sensing.DGUNet"]  # the others are like these
CHANGED_ON_PURPOSE: list[str] = []  # model files that no longer are copies of Deraining's
LEARNING_RATE = dict.fromkeys(TASKS, 1e-4) | {"Deraining": 2e-4}
WEIGHT_DECAY = dict.fromkeys(TASKS, 0.0) | {"Denoising": 1e-8}


def sizes_of(case: str) -> dict:
    return {"cs_ratio": 10} if case.startswith("Compressive_Sensing") else {}


def build(case: str, **sizes):
    return build_model(*case.split("."), {**sizes_of(case), **sizes})


def small(case: str, stages: int = 3):
    return small_network(*case.split("."), **sizes_of(case), stages=stages)


@pytest.fixture(scope="module", params=CASES)
def run(request, synthetic, tmp_path_factory):
    """A published model with the synthetic weights, and three steps of training on the reference
    batch: the stage images and gradients of the first, the losses of all."""
    case = request.param
    task = case.split(".")[0]
    file = tmp_path_factory.mktemp("run") / "published.pth"
    published = synthetic.published_checkpoint(case)
    torch.save(published, file)
    model = build(case)
    load_weights(model, file)
    file.unlink()
    with np.load(DATA / "outputs" / f"{case}.npz") as arrays:
        reference = dict(arrays)
    degraded, target = (torch.from_numpy(reference[name]) for name in ("input", "target"))
    trained = copy.deepcopy(model)
    optimizer = torch.optim.Adam(
        trained.parameters(), lr=LEARNING_RATE[task], weight_decay=WEIGHT_DECAY[task]
    )
    made = SimpleNamespace(published=published, model=model, reference=reference, trajectory=[])
    for step in range(3):
        images = trained(degraded)
        loss = LOSSES[task](images, target)
        made.trajectory.append(loss.item())
        if step == 2:
            return made
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            made.stages = [image.detach().numpy() for image in images]
            made.norms = gradient_norms(trained)
        optimizer.step()


def gradient_norms(model) -> dict[str, float]:
    names = published_names(model)
    parameters = model.state_dict(keep_vars=True)
    return {names[name]: parameter.grad.norm().item() for name, parameter in parameters.items()}


def test_stage_images(run):
    assert len(run.stages) == 7
    for k, image in enumerate(reversed(run.stages), 1):
        np.testing.assert_allclose(image, run.reference[f"stage{k}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision,tolerance", [("float32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("run", ["Deraining.DGUNet", "Compressive_Sensing.DGUNet"], indirect=True)
def test_stage_images_of_the_optimised_model(run, precision, tolerance):
    degraded = torch.from_numpy(run.reference["input"])
    with torch.inference_mode():
        stages = optimize_for_inference(run.model, precision)(degraded)
    assert len(stages) == 7
    for k, image in enumerate(reversed(stages), 1):
        assert image.dtype == torch.float32
        np.testing.assert_allclose(image, run.reference[f"stage{k}"], rtol=0, atol=tolerance)


def test_loss_and_trajectory(run):
    assert run.trajectory[0] == pytest.approx(float(run.reference["loss"]), rel=1e-6)
    np.testing.assert_allclose(run.trajectory, run.reference["loss_trajectory"], rtol=1e-4)


def test_gradient_norms(run):
    reference = dict(zip(run.reference["grad_names"], run.reference["grad_norms"], strict=True))

    def off(norms):
        return {n: norms[n] for n, r in reference.items() if abs(norms[n] - r) > 1e-3 * r}

    missed = off(run.norms)
    assert len(missed) <= 3
    if missed:  # float32 rounding, which differs between CPUs, moves sums that nearly cancel
        model = run.model.double()
        degraded, target = (
            torch.from_numpy(run.reference[name]).double() for name in ("input", "target")
        )
        LOSSES[model.task](model(degraded), target).backward()
        missed = off(gradient_norms(model))
    assert not missed


def test_published_state_dict_returns_what_was_loaded(run):
    unused = unused_entries(run.model)
    loaded = run.published.get("state_dict", run.published)
    state = published_state_dict(run.model.float())
    assert state.keys() == loaded.keys()
    for name, value in state.items():
        filled = name.removeprefix("module.") in unused
        assert torch.equal(value, torch.zeros_like(value) if filled else loaded[name]), name


@pytest.mark.parametrize("case", CASES)
def test_parameters_their_names_and_which_are_shared_are_the_published(case):
    with torch.device("meta"):
        model = build(case)
    expected = json.loads((DATA / "manifests" / f"{case}.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == expected["parameters_used"]
    names = published_names(model)
    shapes = {names[name]: list(value.shape) for name, value in model.state_dict().items()}
    unused = {name: list(shape) for name, shape in unused_entries(model).items()}
    assert len(shapes) == len(names)
    assert sorted(unused) == sorted(expected["unused"])
    assert {**shapes, **unused} == {e["name"]: e["shape"] for e in expected["entries"]}
    state = published_state_dict(model)
    assert {n: list(v.shape) for n, v in state.items()} == {
        f"module.{e['name']}": e["shape"] for e in expected["entries"]
    }
    groups: dict[int, set] = {}
    for name, parameter in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(parameter), set()).add(names[name])
    tied = [set(group) - unused.keys() for group in expected["tied"]]
    shared, expected_shared = (
        sorted(sorted(group) for group in of if len(group) > 1) for of in (groups.values(), tied)
    )
    assert shared == expected_shared


def test_the_three_image_restoration_files_are_in_step():
    """Someone who changes one of them on purpose names it in `CHANGED_ON_PURPOSE`."""

    def text(task: str) -> list[tuple[int, str]]:
        lines = list(enumerate((ROOT / task / "DGUNet.py").read_text("utf-8").split("\n"), 1))
        marks = [n for n, line in lines if line.startswith(("# The task and", "# End of"))]
        assert len(marks) == 2, f"{task}/DGUNet.py: the two comments around its sizes"
        return [(n, line) for n, line in lines if not marks[0] < n < marks[1]]

    original = text("Deraining")
    for task in {"Deblurring", "Denoising"} - set(CHANGED_ON_PURPOSE):
        copied = text(task)
        for (number, line), (other, expected) in zip(copied, original, strict=False):
            assert line == expected, f"{task}/DGUNet.py:{number} is not Deraining/DGUNet.py:{other}"
        assert len(copied) == len(original), f"{task}/DGUNet.py and Deraining/DGUNet.py in length"


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("case", ["Deraining.DGUNet", "Compressive_Sensing.DGUNet", *DESIGNS[:1]])
def test_smaller_models(case, stages):
    model = small(case, stages=stages)
    side = model.multiple_of
    image = torch.rand(2, model.channels, side, 2 * side)
    images = model(image)
    assert [tuple(x.shape) for x in images] == [tuple(image.shape)] * stages
    sum(x.sum() for x in images).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    twin = build_model(**json.loads(json.dumps(model.config)))
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())
    assert all(map(torch.equal, twin(image), images))


def test_initial_values():
    for case in DESIGNS:
        for name, module in small(case).named_modules():
            if isinstance(module, nn.PReLU):
                assert module.weight == 0.25, name
            if hasattr(module, "step_size"):
                assert module.step_size == 0.5, name
            if hasattr(module, "Phi"):  # Xavier normal
                expected = (2 / sum(module.Phi.shape)) ** 0.5
                assert module.Phi.std().item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 10}, "width is 10, must be an integer, a multiple of 4"),
        ({"width": 10**9}, "from 4 to 4096"),
        ({"width": "8"}, "width is '8'"),
        ({"width_step": 3}, "width_step is 3, must be an integer, even"),
        ({"stages": 1}, "stages is 1, must be an integer, from 2 to 100"),
        ({"stages": True}, "stages is True"),
        ({"depth": 3}, "depth"),
        ([1], "mapping"),
    ],
)
@pytest.mark.parametrize("case", DESIGNS)
def test_sizes_that_make_no_network(case, sizes, message):
    with pytest.raises(ValueError, match=message):
        build_model(*case.split("."), sizes)


def test_ratios_that_make_no_network():
    for ratio in (0, 101, 10.0, True, "10", None):
        with pytest.raises(ValueError, match="cs_ratio is "):
            build_model("Compressive_Sensing", "DGUNet", {"cs_ratio": ratio})


@pytest.mark.parametrize(
    ("task", "image", "message"),
    [
        ("Deraining", torch.rand(1, 3, 8, 8), "multiples of 8, at least one of them 16, not 8×8"),
        ("Deraining", torch.rand(1, 3, 20, 16), "not 20×16"),
        ("Deraining", torch.rand(1, 1, 16, 16), "tensor N×3×H×W, not 1×1×16×16"),
        ("Deraining", torch.rand(0, 3, 16, 16), "tensor N×3×H×W, not 0×3×16×16"),
        ("Deraining", torch.rand(()), "tensor N×3×H×W, not a scalar"),
        ("Deraining", torch.ones(1, 3, 16, 16).byte(), "floating-point .*not torch.uint8"),
        ("Deraining", np.ones((1, 3, 16, 16), np.float32), "tensor N×3×H×W .*not float32"),
        ("Compressive_Sensing", torch.rand(1, 1, 16, 32), "multiples of 32, not 16×32"),
        ("Compressive_Sensing", torch.rand(1, 3, 32, 32), "tensor N×1×H×W, not 1×3×32×32"),
    ],
    ids=lambda v: None,
)
def test_images_that_the_network_cannot_take(task, image, message):
    with pytest.raises(ValueError, match=message):
        small(f"{task}.DGUNet")(image)


@pytest.mark.parametrize("shape", [(8, 16), (24, 8), (16, 16)])
def test_smallest_images(shape):
    image = torch.rand(1, 3, *shape)
    for restored in small("Denoising.DGUNet").train()(image):
        assert restored.shape == image.shape and restored.isfinite().all()


# Precisions


PRECISIONS = {  # name -> autocast, dtype of the weights
    "float32": (None, torch.float32),
    "autocast bfloat16": (torch.bfloat16, torch.float32),
    "autocast float16": (torch.float16, torch.float32),
    "bfloat16": (None, torch.bfloat16),
    "float16": (None, torch.float16),
    "float64": (None, torch.float64),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", DESIGNS)
def test_constant_images_stay_finite_in_every_precision(case, precision):
    """Black, white and grey ones, and noise beside them; the gradients too, for crops are flat."""
    autocast, dtype = PRECISIONS[precision]
    model = small(case, stages=2).to(dtype)
    levels = torch.tensor([0, 1, 0.5, 1 / 255]).view(-1, 1, 1, 1)
    shape = (model.channels, model.multiple_of, model.min_long_side)
    batch = torch.cat([levels.expand(-1, *shape), torch.rand(1, *shape)]).to(dtype)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        images = model(batch)
    assert all(image.isfinite().all() for image in images)
    sum((image.float() - 0.3).square().mean() for image in images).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("case", DESIGNS)
def test_lower_precision_stays_near(case):
    model = small(case)
    image = torch.rand(2, model.channels, 32, 64)
    exact = model.double()(image.double())[0]
    model.float()
    torch.testing.assert_close(model(image)[0].double(), exact, rtol=0, atol=1e-5)
    for dtype, bound in ((torch.bfloat16, 0.03), (torch.float16, 0.004)):
        with torch.autocast("cpu", dtype):
            assert (model(image)[0].double() - exact).abs().max() < bound


# The subspace projection


def closed_form(b: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """P = Vᵀ(VVᵀ)⁻¹V bᵀ of one image in float64, through an orthonormal basis of V's rows."""
    V = basis.reshape(len(basis), -1).astype(np.float64)
    V = V / (1e-6 + np.abs(V).sum(1, keepdims=True))
    Q, _ = np.linalg.qr(V.T)
    return (b.reshape(len(b), -1).astype(np.float64) @ Q @ Q.T).reshape(b.shape)


def test_projection_is_the_closed_form():
    generator = torch.Generator().manual_seed(1)
    b = torch.randn(2, 24, 16, 24, generator=generator)
    basis = torch.randn(2, 16, 16, 24, generator=generator)
    expected = np.stack([closed_form(*pair) for pair in zip(b.numpy(), basis.numpy(), strict=True)])
    projected = project(b, basis)
    np.testing.assert_allclose(projected.numpy(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(project(projected, basis), projected, rtol=0, atol=2e-6)
    doubled = project(b.double(), basis.double())
    np.testing.assert_allclose(doubled.numpy(), expected, rtol=0, atol=1e-8)
    reduced = project(b.bfloat16(), basis.bfloat16())
    assert reduced.dtype == torch.bfloat16
    np.testing.assert_allclose(reduced.float().numpy(), expected, rtol=0, atol=0.03)


def test_projection_on_flat_maps():
    """Condition 1e4, as flat images give it: as near to the closed form as float32 can come."""
    generator = torch.Generator().manual_seed(2)
    b = torch.randn(1, 8, 32, 32, generator=generator) + 1
    level = torch.randn(1, 16, 1, 1, generator=generator)
    basis = level + 0.05 * torch.randn(1, 16, 32, 32, generator=generator)
    projected = project(b, basis)
    expected = closed_form(b[0].numpy(), basis[0].numpy())
    np.testing.assert_allclose(projected[0].numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["constant", "zero", "five maps", "equal maps"])
def test_projection_on_singular_maps(kind):
    """A projection lengthens nothing, and its gradients stay of sane size."""
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(1, 16, 32, 32, generator=generator)
    basis = {
        "constant": maps[:, :, :1, :1].expand(-1, -1, 32, 32).contiguous(),
        "zero": torch.zeros_like(maps),
        "five maps": torch.einsum("ij,njhw->nihw", torch.randn(16, 5), maps[:, :5]),
        "equal maps": maps[:, :1].repeat(1, 16, 1, 1),
    }[kind].requires_grad_()
    b = (torch.randn(1, 8, 32, 32, generator=generator) + 1).requires_grad_()
    projected = project(b, basis)
    assert projected.norm() <= 1.001 * b.norm()
    projected.backward(torch.randn(b.shape, generator=generator))
    assert b.grad.isfinite().all() and basis.grad.isfinite().all()
    assert basis.grad.norm() * basis.detach().norm() <= 1e4 * b.numel()


# Measurement


@pytest.fixture(scope="module")
def sensing():
    return small("Compressive_Sensing.DGUNet").double()


def test_number_of_measurements():
    expected = {1: 11, 4: 41, 10: 103, 25: 256, 30: 308, 40: 410, 50: 512}
    with torch.device("meta"):
        models = {r: build("Compressive_Sensing.DGUNet", cs_ratio=r) for r in expected}
    assert {ratio: len(model.A.Phi) for ratio, model in models.items()} == expected


def test_each_block_is_measured_by_phi(sensing):
    image = torch.rand(2, 1, 64, 96, dtype=torch.float64)
    y = sensing.measure(image)
    assert y.shape == (2, 103, 2, 3)
    for n, i, j in np.ndindex(2, 2, 3):
        block = image[n, 0, 32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
        torch.testing.assert_close(y[n, :, i, j], sensing.A.Phi @ block.flatten())


def test_adjoint_and_gradient_step(sensing):
    x = torch.rand(2, 1, 64, 32, dtype=torch.float64)
    y = torch.randn(2, 103, 2, 1, dtype=torch.float64)
    A = sensing.A
    torch.testing.assert_close((A(x) * y).sum(), (x * A.adjoint(y)).sum())
    x.requires_grad_()
    (0.5 * (A(x) - y).square().sum()).backward()  # the step descends on the data term
    v = sensing.fgdm[0](x, A.adjoint(y), A)
    torch.testing.assert_close(v, x - sensing.fgdm[0].step_size * x.grad)


def test_autocast_does_not_touch_the_measurement():
    model = small("Compressive_Sensing.DGUNet")
    image = torch.rand(1, 1, 32, 32)
    y = model.measure(image)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.measure(image), y)
        assert model.A.adjoint(y.bfloat16()).dtype == torch.float32


def test_wrong_measurements(sensing):
    wrong = [torch.rand(shape) for shape in ((1, 102, 1, 1), (103, 1, 1), (0, 103, 1, 1))]
    for y in [*wrong, torch.rand(1, 103, 0, 1), torch.ones(1, 103, 1, 1).int()]:
        with pytest.raises(ValueError, match="at ratio 10 reconstructs measurements N×103×H/32×W"):
            sensing.reconstruct(y)


@pytest.mark.parametrize("case", DESIGNS)
def test_zeroed_image_convolutions_leave_the_gradient_steps(case):
    model = small(case)
    model.zero_image_convolutions()
    image = torch.rand(1, model.channels, 32, 32)
    images = model(image)[::-1]
    if model.channels == 1:
        x = start = model.A.adjoint(model.measure(image))
        steps = [x := fgdm(x, start, model.A) for fgdm in model.fgdm]
    else:
        x = image
        steps = [x := fgdm(x, image) for fgdm in model.fgdm[:-1]] + [image]
    for stage, step in zip(images, steps, strict=True):
        torch.testing.assert_close(stage, step)


# Imports

HEAVY = ["cv2", "skimage", "h5py", "matplotlib", "tensorboard", "scipy", "PIL", "torchvision"]
ROOMS = ["base", "images", "model", "data", "inference", "training", "scoring", "tools", *TASKS]
IMPORTS = f"""
import importlib, pkgutil, socket, sys
def refuse(*arguments, **keywords): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
for name in ["network", "registry", "published_format", "checkpoint"]:
    importlib.import_module("dgunet.model." + name)
for task in {list(TASKS)}:
    importlib.import_module("dgunet." + task + ".DGUNet")
heavy = sorted(set({HEAVY}) & set(sys.modules))
assert not heavy, heavy
import torch, dgunet
assert not torch.cuda.is_initialized()
folders = [importlib.import_module("dgunet." + room) for room in {ROOMS}]
for folder in folders:
    for module in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
        importlib.import_module(module.name)
assert not torch.cuda.is_initialized()
"""


def test_imports_are_light_and_need_neither_gpu_nor_network():
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
