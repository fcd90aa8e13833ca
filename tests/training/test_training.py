import json
import math
import re
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tqdm import tqdm
from training_runs import (
    ROOT,
    SIZES,
    TASKS,
    assert_same,
    options,
    start_program,
    state,
    trainer_for,
)

from dgunet.base.errors import InputError
from dgunet.images.files import read_rgb, to_tensor
from dgunet.model.checkpoint import read_checkpoint
from dgunet.model.registry import build_model
from dgunet.training import signals
from dgunet.training import trainer as training
from dgunet.training.configuration import load_config
from dgunet.training.schedule import validation_batches
from dgunet.training.signals import Stop
from dgunet.training.trainer import Trainer

# Everything that has a state: what a resumed run could get wrong.
STATEFUL = {
    "OPTIM__EMA": 0.9,
    "OPTIM__ACCUMULATE": 2,
    "OPTIM__CLIP_GRAD": 0.5,
    "DATA__MIXUP_AFTER": 0,
    "DATA__DEGRADATION": "gaussian0-50",
    "TRAINING__WORKERS": 1,
}
NO_BAR = tqdm(disable=True)
NO_VALIDATION = {"TRAINING__VAL_DIR": ""}
RESUME = {"TRAINING__RESUME": True}


def batches(trainer: Trainer, epoch: int = 1) -> list[dict]:
    trainer.sampler.set_position(epoch)
    return list(trainer.loader)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


# Schedules


def rates(trainer: Trainer) -> list[float]:
    """Return the learning rate at the beginning of each epoch."""
    steps = range(0, trainer.schedule.steps, trainer.sampler.batches)
    return [trainer.schedule.rate(step) for step in steps]


@pytest.mark.parametrize("task", TASKS)
def test_learning_rates_are_the_published(task, data, tmp_path):
    schedule = json.loads((ROOT / "tests/fixtures/lr_schedules.json").read_text())[task]
    published = schedule["lr_of_epoch"]
    trainer = trainer_for(data, tmp_path, task, OPTIM__NUM_EPOCHS=len(published))
    assert rates(trainer) == pytest.approx(published, rel=1e-12)
    samples = batches(trainer)[0]
    for trainer.epoch in (1, 2, 50):
        trainer.step(samples)
        [group] = trainer.optimizer.param_groups
        assert group["lr"] == pytest.approx(published[trainer.epoch - 1], rel=1e-12)
    assert group["betas"] == (0.9, 0.999)
    assert group["weight_decay"] == (1e-8 if task == "Denoising" else 0)


def test_a_run_by_minutes_warms_up_and_ends_with_the_cosine(data, tmp_path):
    keys = {"OPTIM__WARMUP_SHARE": 0.1, "OPTIM__LR_MIN": 1e-5, "OPTIM__LR_BATCH": 12}
    trainer = trainer_for(data, tmp_path, TRAINING__MINUTES=10, **keys)
    trainer.set_length(100 / 3)  # of three batches each
    low, high = 1e-5 / 2, 1e-4 / 2  # for a batch of 3 where 12 is the reference
    for step, warmup in ((0, 0.1), (4, 0.5), (9, 1), (50, 1), (99, 1)):
        expected = warmup * (low + (high - low) * (1 + math.cos(math.pi * step / 100)) / 2)
        assert trainer.schedule.rate(step) == pytest.approx(expected, rel=1e-12)
    due = [step for step in range(101) if trainer.schedule.validates_after(step)]
    assert due == [100]


@pytest.mark.parametrize("task", TASKS)
def test_validation_schedule_is_the_published(task, data):
    opts = ["TRAINING.TRAIN_DIR", str(data), "TRAINING.VAL_DIR", str(data)]
    config = load_config(ROOT / task / "training.yml", opts, TASKS[task].recipe)
    found = {epoch: validation_batches(config, epoch, 100) for epoch in range(1, 81)}
    if task == "Denoising":
        due = [1, 25, 45, *range(61, 81)]
        expected = {33, 65, 97}  # q = ⌊100 / 3⌋ − 1, batches counted from 0
        assert validation_batches(config, 1, 6000) == {2000, 3999, 5998}
    else:
        due = range(10, 81, 10) if task == "Deblurring" else range(5, 81, 5)
        expected = {100}
    assert found == {epoch: expected if epoch in due else set() for epoch in range(1, 81)}


def test_mixup_begins_after_its_epoch(data, tmp_path, monkeypatch):
    trainer = trainer_for(data, tmp_path, DATA__MIXUP_AFTER=5)
    mixed = []

    def mixup(degraded, target, rng):
        mixed.append(trainer.epoch)
        return degraded, target

    monkeypatch.setattr(training, "mixup", mixup)
    for epoch in (1, 5, 6, 7):
        trainer.begin_epoch(epoch)
        trainer.step(batches(trainer, epoch)[0])
    assert mixed == [6, 7]


# Resuming


def test_killed_and_interrupted_it_ends_as_uninterrupted(data, tmp_path):
    whole = trainer_for(data, tmp_path / "whole", **STATEFUL)
    whole.run()
    signals = (False, (2, 2), signal.SIGKILL, -9), (True, (3, 1), signal.SIGINT, 130)
    for resume, place, number, code in signals:
        keys = {"TRAINING__SAVE_MINUTES": 1e-6, "TRAINING__RESUME": resume}
        opts = options(data, tmp_path, **STATEFUL, **keys)
        process = start_program(
            tmp_path / "rank", "Denoising", opts, {}, signalled=(*place, 0, number)
        )
        process.join(120)
        assert (process.exitcode, (tmp_path / "rank0.err").read_text()) == (code, "")
    told = (tmp_path / "rank0.out").read_text()
    assert "model_latest.pth at epoch 2, after batch 1" in told  # killed, it lost its last step
    assert "interrupted: saved epoch 3 after batch 1; TRAINING.RESUME True" in told.splitlines()[-1]
    resumed = trainer_for(data, tmp_path, **STATEFUL, **RESUME)
    assert (resumed.epoch, resumed.batch) == (3, 1)
    resumed.run()
    for name in ("latest", "best"):
        assert_same(state(resumed.folder, name), state(whole.folder, name))
    logs = [(run.folder / "log.csv").read_text().splitlines() for run in (resumed, whole)]
    without_minutes = [[re.sub(r",.*?,", ",", row, count=1) for row in log] for log in logs]
    assert_same(*without_minutes)


@pytest.mark.parametrize("times", [1, 3])
def test_a_run_stopped_in_its_validation_resumes_exactly(times, data, tmp_path, capsys):
    """Which may be long, and is done again: the middle of an epoch or its end."""
    keys = {"OPTIM__BATCH_SIZE": 1, "OPTIM__NUM_EPOCHS": 1, "TRAINING__VAL_TIMES": times}
    expected = trainer_for(data, tmp_path / "a", **keys)
    expected.run()
    stopped = trainer_for(data, tmp_path / "b", **keys)
    loader = stopped.validation

    def interrupted():
        for samples in loader:
            yield samples
            stopped.stop.note(signal.SIGTERM)

    stopped.validation = interrupted()
    with pytest.raises(SystemExit) as stop:
        stopped.run()
    assert stop.value.code == 143
    at = 7 if times == 1 else 2
    assert f"terminated: saved epoch 1 after batch {at}" in capsys.readouterr().out
    resumed = trainer_for(data, tmp_path / "b", **keys, **RESUME)
    assert (resumed.batch, resumed.validated, resumed.psnr) == (at, 0, None)
    resumed.run()
    assert_same(state(resumed.folder), state(expected.folder))


def test_a_second_interrupt_ends_at_once(monkeypatch):
    stop, now = Stop(), 100.0
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    assert not stop
    stop.note(signal.SIGINT)
    now = 101.0  # `timeout` sends its signal twice
    stop.note(signal.SIGINT)
    now = 103.0
    stop.note(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        stop.note(signal.SIGINT)
    assert stop and stop.number == signal.SIGINT


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_and_resumes(precision, data, tmp_path, capsys):
    keys = {"TRAINING__PRECISION": precision, "TRAINING__CHANNELS_LAST": True}
    keys |= {"OPTIM__LR_INITIAL": 1e-2} | NO_VALIDATION
    expected = trainer_for(data, tmp_path / "a", **keys)
    types = set()
    convolution = next(m for m in expected.model.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda *args: types.add(args[-1].dtype))
    for _ in range(2):
        expected.run_epoch(NO_BAR)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+),", capsys.readouterr().out)]
    assert losses[1] < losses[0]
    assert types == {training.AUTOCAST[precision]}
    for epoch in (1, 2):
        resumed = trainer_for(data, tmp_path / "b", **keys, **RESUME)
        assert resumed.epoch == epoch
        resumed.run_epoch(NO_BAR)
    assert_same(state(resumed.folder), state(expected.folder))
    scaler = state(resumed.folder)["training"]["scaler"]
    assert scaler.get("_growth_tracker") == (6 if precision == "fp16" else None)  # steps
    keys["TRAINING__PRECISION"] = "float32" if precision == "fp16" else "fp16"
    trainer_for(data, tmp_path / "b", **keys, **RESUME).run_epoch(NO_BAR)  # may be another


def test_the_threads_of_data_parallel_keep_the_precision(data, tmp_path):
    """`nn.parallel.parallel_apply` tells its threads whether autocast is on, not its precision."""
    trainer = trainer_for(data, tmp_path, TRAINING__PRECISION="fp16")
    image, types = trainer.images(batches(trainer)[0])[0], set()
    convolution = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda *args: types.add(args[-1].dtype))

    def as_there():
        with torch.autocast("cpu", enabled=True):
            trainer.network(image)

    thread = threading.Thread(target=as_there)
    thread.start()
    thread.join()
    assert types == {torch.float16}


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_float32_is_not_tf32(precision, data, tmp_path):
    trainer = trainer_for(data, tmp_path, TRAINING__PRECISION=precision)
    seen = []

    def note(*_):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))

    convolution = trainer.model.last.image
    convolution.register_forward_hook(note)
    convolution.register_full_backward_hook(note)
    trainer.step(batches(trainer)[0])
    trainer.validate()
    assert len(seen) >= 3 and set(seen) == {(precision == "tf32", False)}


def test_with_another_batch_size_the_epoch_begins_again(data, tmp_path, capsys):
    trainer = trainer_for(data, tmp_path)
    trainer.run_epoch(NO_BAR)
    capsys.readouterr()
    resumed = trainer_for(data, tmp_path, **RESUME, OPTIM__BATCH_SIZE=2)
    assert (resumed.epoch, resumed.batch) == (2, 0)
    assert capsys.readouterr().out == (
        f"resumed from {trainer.latest} at epoch 2\nchanged since: OPTIM.BATCH_SIZE 3 → 2\n"
    )
    resumed.step(batches(resumed, 2)[0])
    resumed.save_latest()
    again = trainer_for(data, tmp_path, **RESUME)
    assert (again.epoch, again.batch, again.loss_sum) == (2, 0, 0)
    assert "its batches are others now: epoch 2 begins again" in capsys.readouterr().out
    assert_same(weights(again), weights(resumed))
    again.run_epoch(NO_BAR)


def test_a_run_may_go_on_with_another_learning_rate(data, tmp_path, capsys):
    trainer = trainer_for(data, tmp_path)
    trainer.run_epoch(NO_BAR)
    keys = {"OPTIM__LR_INITIAL": 3e-3, "OPTIM__WEIGHT_DECAY": 0.1, "OPTIM__NUM_EPOCHS": 9}
    resumed = trainer_for(data, tmp_path, **RESUME, **keys)
    # In the second of three epochs of warm-up, and after them with a longer cosine.
    assert rates(resumed)[1:5:3] == pytest.approx(
        [2e-3, 1e-6 + 2.999e-3 * (1 + math.cos(math.pi / 46)) / 2]
    )
    assert resumed.optimizer.param_groups[0]["weight_decay"] == 0.1
    text = capsys.readouterr().out
    assert "OPTIM.LR_INITIAL 0.0001 → 0.003" in text and "OPTIM.NUM_EPOCHS 3 → 9" in text


def test_a_finished_run_ends_again_at_once(data, tmp_path, capsys):
    trainer_for(data, tmp_path, OPTIM__NUM_EPOCHS=1).run()
    before = state(tmp_path / "Denoising/models/DGUNet")
    capsys.readouterr()
    trainer_for(data, tmp_path, OPTIM__NUM_EPOCHS=1, **RESUME).run()
    text = capsys.readouterr().out
    assert "model_latest.pth at its end" in text
    assert re.search(r"^best: epoch 1, PSNR \d\d\.\d\d dB$", text, re.M)
    assert_same(state(tmp_path / "Denoising/models/DGUNet"), before)


def test_files_that_cannot_be_resumed_are_refused(data, tmp_path):
    def refusal(**keys) -> str:
        with pytest.raises(InputError) as error:
            trainer_for(data, tmp_path, **RESUME, **keys)
        return str(error.value)

    trainer = trainer_for(data, tmp_path)
    trainer.save_latest()
    with pytest.raises(InputError, match=rf"^{trainer.latest} holds a run: TRAINING.RESUME True"):
        trainer_for(data, tmp_path)
    assert "model_latest.pth: holds no moving average, but OPTIM.EMA" in refusal(OPTIM__EMA=0.9)
    assert re.search("model_latest.pth: .*Denoising DGUNet", refusal(MODEL__WIDTH=12))
    by_epochs = "is of a run by epochs, but TRAINING.MINUTES is 1; exp"
    assert by_epochs in refusal(TRAINING__MINUTES=1)
    trainer.save(trainer.latest)
    assert "model_latest.pth: holds weights only, no state" in refusal()
    trainer.latest.write_bytes(trainer.latest.read_bytes()[:1000])
    assert "model_latest.pth: not a readable checkpoint" in refusal()
    trainer_for(data, tmp_path, OPTIM__EMA=0.9, MODEL__SESSION="ema").save_latest()
    assert "holds a moving average, but OPTIM.EMA is 0" in refusal(MODEL__SESSION="ema")


def test_written_configuration_gives_the_same_run(data, tmp_path):
    first = trainer_for(data, tmp_path, DATA__DEGRADATION="gaussian25", OPTIM__NUM_EPOCHS=1)
    first.run()
    config = load_config(first.folder / "config.yml", ["MODEL.SESSION", "again"])
    second = Trainer(TASKS["Denoising"], config)
    second.run()
    assert_same(weights(second), weights(first))
    assert second.best == first.best


# Runs by minutes


MINUTES = {
    "TRAINING__MINUTES": 1,
    "TRAINING__VAL_TIMES": 2,
    "OPTIM__EMA": 0.9,
    "OPTIM__BATCH_SIZE": 2,
}


def test_a_run_by_minutes_lasts_them_and_goes_on_with_more(data, tmp_path, monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now))
    trainer = trainer_for(data, tmp_path, **MINUTES)
    before = weights(trainer)
    taken, step = [], trainer.step

    def counted(samples, rate=None):
        nonlocal now
        now += 3  # seconds
        if rate is None:
            taken.append(trainer.steps_done)
            if len(taken) == 1:  # what the timing did is forgotten
                assert_same(weights(trainer), before)
                assert not trainer.optimizer.state and not trainer.averaged
        return step(samples, rate)

    trainer.step = counted
    trainer.run()
    assert taken == list(range(trainer.schedule.steps)) and len(taken) > 10
    assert 45 < trainer.elapsed < 60
    text = capsys.readouterr().out
    assert re.search(r"^\d+ steps timed, .* s each: 1 minutes suffice for \d+ steps", text, re.M)
    rows = (trainer.folder / "log.csv").read_text().splitlines()
    assert rows[0] == "samples,minutes,psnr,learning_rate"
    assert [int(row.split(",")[0]) for row in rows[1:]][::2] == [0, trainer.samples_seen]
    assert len(rows) == 4

    longer = trainer_for(data, tmp_path, **MINUTES | {"TRAINING__MINUTES": 2}, **RESUME)
    assert longer.steps_done == trainer.steps_done
    longer.run()
    assert longer.steps_done == 2 * trainer.steps_done


def test_a_run_by_minutes_resumes_exactly(data, tmp_path, monkeypatch):
    folders = []
    for name, stops in (("a", ()), ("b", (5, 9))):
        trainer = trainer_for(data, tmp_path / name, **MINUTES)
        monkeypatch.setattr(trainer, "plan", lambda t=trainer: t.set_length(14 / 4))
        for at in stops:
            step = trainer.step

            def stopping(samples, rate=None, trainer=trainer, step=step, at=at):
                if trainer.steps_done == at:
                    trainer.stop.note(signal.SIGTERM)
                return step(samples, rate)

            trainer.step = stopping
            with pytest.raises(SystemExit):
                trainer.run()
            trainer = trainer_for(data, tmp_path / name, **MINUTES, **RESUME)
        trainer.run()
        assert trainer.steps_done == 14
        folders.append(trainer.folder)
    assert_same(*map(state, folders))


def test_a_run_by_minutes_may_be_stopped_while_it_is_planned(data, tmp_path):
    trainer = trainer_for(data, tmp_path, **MINUTES)
    trainer.step = lambda samples, rate: trainer.stop.note(signal.SIGTERM)
    trainer.enough = bool
    trainer.elapsed = 1.0
    with pytest.raises(SystemExit):
        trainer.run()
    resumed = trainer_for(data, tmp_path, **MINUTES, **RESUME)
    assert (resumed.epochs, resumed.steps_done) == (0, 0)


# The step


def gradients(trainer: Trainer, samples: dict) -> list[torch.Tensor]:
    """Take a step, and return the gradients that the optimizer got."""
    found = []
    hook = trainer.optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.clone() for p in trainer.model.parameters())
    )
    trainer.step(samples)
    hook.remove()
    return found


def test_checkpointed_stages_train_as_others_do_and_keep_less(data, tmp_path):
    kept, steps = [], []
    for checkpoint in (False, True):
        keys = {"MODEL__STAGES": 5, "TRAINING__CHECKPOINT_STAGES": checkpoint}
        keys |= {"TRAINING__PRECISION": "bf16"}
        trainer = trainer_for(data, tmp_path / str(checkpoint), **keys)
        bytes_kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=bytes_kept: kept.append(tensor.nbytes) or tensor, lambda t: t
        ):
            samples = batches(trainer)[0]
            trainer.network(trainer.images(samples)[0])
        kept.append(sum(bytes_kept))
        trainer.step(samples)
        steps.append(weights(trainer))
    assert_same(*steps)
    assert kept[1] < 0.6 * kept[0]


def test_loss_and_gradient_are_those_of_the_mean_over_samples(data, tmp_path):
    """In parts, too, and for the last batch of an epoch, here of one sample."""
    trainer = trainer_for(data, tmp_path, "Deraining", OPTIM__ACCUMULATE=2)
    model, total = build_model("Deraining", "DGUNet", SIZES), 0.0
    for samples in batches(trainer):
        model.load_state_dict(trainer.model.state_dict())
        model.zero_grad()
        losses = [
            trainer.task.loss(model(degraded[None]), target[None])
            for degraded, target in zip(samples["degraded"], samples["target"], strict=True)
        ]
        torch.stack(losses).mean().backward()
        total += sum(losses).item()
        found = gradients(trainer, samples)
        for parameter, gradient in zip(model.parameters(), found, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    assert (trainer.batch, trainer.samples_done) == (3, 7)
    assert trainer.loss_sum == pytest.approx(total, rel=1e-5)


def test_the_gradient_is_clipped_to_its_limit(data, tmp_path):
    norms = []
    for limit in (0.0, 0.01):
        trainer = trainer_for(data, tmp_path, OPTIM__CLIP_GRAD=limit)
        found = gradients(trainer, batches(trainer)[0])
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in found)))
    assert norms[0] > 0.1 and norms[1] == pytest.approx(0.01, rel=1e-3)


def test_moving_average_is_what_is_validated_and_saved(data, tmp_path):
    trainer = trainer_for(data, tmp_path, OPTIM__EMA=0.3, OPTIM__LR_INITIAL=1e-2)
    passed = []
    for samples in batches(trainer):
        trainer.step(samples)
        passed.append(weights(trainer))
    # After the first step the average is its weights. The decay after step k is (1 + k) / (10 + k)
    # as long as that is below 0.3, here 2/11 and 3/12.
    shares = [2 / 11 * 3 / 12, 9 / 11 * 3 / 12, 9 / 12]
    averages = list(trainer.weights.parameters())
    assert trainer.weights is not trainer.model
    for average, *steps in zip(averages, *passed, strict=True):
        expected = sum(share * p.double() for share, p in zip(shares, steps, strict=True))
        torch.testing.assert_close(average.double(), expected, rtol=0, atol=1e-7)
    trainer.save_latest()
    checkpoint = read_checkpoint(trainer.latest)
    assert_same(checkpoint["state_dict"], dict(trainer.average.state_dict()))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops(kind, data, tmp_path, monkeypatch):
    trainer = trainer_for(data, tmp_path, OPTIM__BATCH_SIZE=2, **NO_VALIDATION)
    loss = trainer.task.loss

    def broken(stages, target):
        value = loss(stages, target)
        if (trainer.epoch, trainer.batch) != (2, 1):
            return value
        return value * math.nan if kind == "loss" else value + (stages[0] * 0).sum().sqrt()

    monkeypatch.setattr(trainer.task, "loss", broken)
    with pytest.raises(InputError) as error:
        trainer.run()
    trainer.sampler.set_position(2, 1)
    names = ", ".join(f"photo{key.index}" for key in next(iter(trainer.sampler)))
    value = "nan" if kind == "loss" else r"0\.\d+"
    assert re.match(
        rf"epoch 2, step 2: the loss is {value} and its gradient's norm nan, "
        rf"in a batch of {names}; {trainer.latest} is from before$",
        str(error.value),
    )
    kept = read_checkpoint(trainer.latest)
    assert (kept["training"]["epoch"], kept["training"]["batch"]) == (2, 0)
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_fp16_leaves_out_a_step_that_overflows(data, tmp_path):
    trainer = trainer_for(data, tmp_path, TRAINING__PRECISION="fp16")
    before, samples = weights(trainer), batches(trainer)[0]
    trainer.scaler.scale(torch.zeros(()))  # only then it has a scale
    trainer.scaler.update(2.0**126)
    trainer.step(samples)
    assert_same(weights(trainer), before)
    assert trainer.scaler.get_scale() == 2.0**125


def test_grey_images_train_as_three_equal_channels(data, tmp_path):
    keys = {"DATA__GREY": True, "DATA__DEGRADATION": "gaussian25"}
    trainer = trainer_for(data, tmp_path, OPTIM__NUM_EPOCHS=1, **keys)
    samples = batches(trainer)[0]
    assert samples["degraded"].shape == (3, 1, 16, 16)
    degraded, target = trainer.images(samples)
    for image, single in ((degraded, samples["degraded"]), (target, samples["target"])):
        assert torch.equal(image, single.repeat(1, 3, 1, 1))
    trainer.run()
    errors = []
    for sample in trainer.validation_data:
        with torch.no_grad():
            restored = trainer.model.eval()(sample["degraded"].repeat(3, 1, 1)[None])[0][0]
        error = restored.mean(0, keepdim=True).clamp(0, 1) - sample["target"]
        errors.append(error.double().square().mean().item())
    assert trainer.best["psnr"] == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-4)


# Starting weights


def test_fine_tuning_starts_from_given_weights_with_a_fresh_optimizer(data, tmp_path):
    first = trainer_for(data, tmp_path, OPTIM__NUM_EPOCHS=1, OPTIM__LR_INITIAL=1e-2)
    first.run()
    keys = {"MODEL__SESSION": "tuned", "MODEL__WEIGHTS": first.folder / "model_best.pth"}
    second = trainer_for(data, tmp_path, **keys)
    assert_same(weights(second), weights(first))
    assert (second.epoch, second.batch, second.optimizer.state_dict()["state"]) == (1, 0, {})
    assert second.best["epoch"] == 0


# Validation


def test_validation_is_the_mean_psnr_over_centre_crops(data, tmp_path):
    trainer = trainer_for(data, tmp_path, OPTIM__EMA=0.5, OPTIM__LR_INITIAL=1e-3)
    trainer.run_epoch(NO_BAR)
    found = []
    for index in range(7):
        degraded, target = (
            to_tensor(read_rgb(data / part / f"photo{index}.png"))[:, 4:20, 7:23]
            for part in ("input", "target")
        )
        with torch.no_grad():
            restored = trainer.average.eval()(degraded[None])[0][0].clamp(0, 1)
        error = (restored.numpy().astype(float) - target.numpy()) ** 2
        found.append(10 * np.log10(1 / error.mean()))
    assert trainer.best == {"epoch": 1, "psnr": pytest.approx(np.mean(found), abs=1e-4)}
    kept = read_checkpoint(trainer.folder / "model_epoch_1.pth")
    assert (kept["epoch"], kept["psnr"]) == (1, trainer.best["psnr"])


def test_an_exact_image_counts_as_100_db(data, tmp_path):
    trainer = trainer_for(data, tmp_path, MODEL__ZERO_IMAGE_CONVOLUTIONS=True)
    image = torch.rand(1, 3, 16, 16)
    trainer.validation = [{"degraded": image, "target": image}] * 2
    trainer.validate()
    assert trainer.psnr == pytest.approx(100)


def test_an_epochs_weights_are_those_of_its_last_validation(data, tmp_path):
    keys = {"OPTIM__BATCH_SIZE": 1, "OPTIM__NUM_EPOCHS": 1, "TRAINING__VAL_TIMES": 3}
    trainer = trainer_for(data, tmp_path, **keys)
    trainer.run()
    kept = read_checkpoint(trainer.folder / "model_epoch_1.pth")
    assert kept["samples"] == 4 and kept["psnr"] > 0  # validated after 2, 3 and 4 of 7


def test_best_epoch_and_latest_are_kept(data, tmp_path, capsys):
    trainer = trainer_for(data, tmp_path, TRAINING__VAL_AFTER_EVERY=2, OPTIM__NUM_EPOCHS=5)
    scores = iter([20.0, 19.0])

    def validate():
        trainer.psnr, trainer.validated = next(scores), trainer.steps_done
        if trainer.psnr > trainer.best["psnr"]:
            trainer.best = {"epoch": trainer.epoch, "psnr": trainer.psnr}
            trainer.save(trainer.folder / "model_best.pth", psnr=trainer.psnr)

    trainer.validate = validate
    trainer.run()
    names = {path.name for path in trainer.folder.glob("*.pth")}
    assert names == {f"model_{n}.pth" for n in ("best", "epoch_2", "epoch_4", "latest")}
    assert read_checkpoint(trainer.folder / "model_best.pth")["epoch"] == 2
    assert read_checkpoint(trainer.latest)["epoch"] == 5
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert ["PSNR" in line for line in lines] == [False, True, False, True, False]
    assert lines[3].endswith("PSNR 19.00 dB (best 20.00 in epoch 2)")


# Images that cannot be read


@pytest.fixture
def corrupt(data, tmp_path) -> Path:
    """A copy of the data in which one target breaks off after its header."""
    folder = shutil.copytree(data, tmp_path / "corrupt")
    broken = folder / "target" / "photo4.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return folder


@pytest.mark.parametrize(("part", "workers"), [("TRAIN_DIR", 1), ("VAL_DIR", 0)])
def test_a_corrupt_image_stops_with_its_name(part, workers, data, corrupt, tmp_path):
    keys = {f"TRAINING__{part}": corrupt, "TRAINING__WORKERS": workers}
    trainer = trainer_for(data, tmp_path, **keys)
    with pytest.raises(InputError, match=rf"^{corrupt}/target/photo4.png: "):
        trainer.run()


@pytest.mark.filterwarnings("ignore:left out")
def test_corrupt_images_can_be_left_out_and_are_counted(data, corrupt, tmp_path, capsys):
    keys = {"TRAINING__TRAIN_DIR": corrupt, "TRAINING__VAL_DIR": corrupt, "DATA__REPEATS": 2}
    trainer = trainer_for(data, tmp_path, TRAINING__SKIP_CORRUPT=True, **keys)
    trainer.log.start(trainer)
    trainer.run_epoch(NO_BAR)
    text = capsys.readouterr().out
    assert f"validation: 6 images; 1 left out: {corrupt}/target/photo4.png" in text
    assert re.search(r"^epoch 1: .*, 2 samples left out as unreadable$", text, re.M)


# What a run tells


def test_budget_is_told_beside_the_papers(data, tmp_path, capsys):
    keys = {"OPTIM__NUM_EPOCHS": 1, "DATA__REPEATS": 30, "OPTIM__BATCH_SIZE": 100}
    keys |= {"OPTIM__ACCUMULATE": 5} | NO_VALIDATION
    trainer = trainer_for(data, tmp_path, "Deraining", **keys)
    trainer.log.start(trainer)
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "budget: batch 100 in 5 parts, 1 epochs of 210 samples = 210 samples in 3 steps",
        "paper:  batch 16, 250 epochs of 13,712 samples = 3,428,000 samples; "
        "this run sees 6.13e-05 of that",
    ]
    assert (trainer.folder / "train.log").read_text().count("\n") == 4


def test_tensorboard_goes_on_where_a_run_is_resumed(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer_for(data, tmp_path, OPTIM__NUM_EPOCHS=2).run()
    trainer = trainer_for(data, tmp_path, OPTIM__NUM_EPOCHS=3, **RESUME)
    trainer.run()
    events = EventAccumulator(str(trainer.folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    expected = {"loss", "learning rate", "images per second", "validation PSNR"}
    assert set(tags["scalars"]) == expected
    for name in expected:  # also the last of the first run, which the second does not repeat
        assert [event.step for event in events.Scalars(name)] == [3, 6, 9]
    assert events.Scalars("learning rate")[2].value == pytest.approx(1e-4)
    assert max(e.value for e in events.Scalars("validation PSNR")) == pytest.approx(
        trainer.best["psnr"], abs=1e-4
    )
    assert len(events.Images("degraded, restored, target")) == 3
