"""The loop: repeatable, resumable to the bit, and honest about runs that are none."""

import csv
import importlib
import json
import linecache
import os
import random
import signal
import subprocess
import sys
import time
import types
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import saliency_lab as sl
from saliency_lab._common.compiling import compiler
from saliency_lab._common.errors import CheckpointError, InputError, TrainingError
from saliency_lab._common.seeding import preserved_rng
from saliency_lab.data import ImageData, Split
from saliency_lab.training import OBJECTIVES, Objective, loop, run
from saliency_lab.training.health import Validation

TINY = {
    "training.epochs": 2,
    "training.batch_size": 16,
    "validation.images": 16,
    "validation.steps": 2,
    "attack.steps": 2,
    "attack.warmup": 0.0,
}


def tiny_images(channels=1, side=28, n=64):
    """Bright or dark in one half: learnt in a few steps."""
    draws = torch.Generator().manual_seed(0)

    def split(count):
        labels = torch.arange(count) % 3
        images = torch.rand(count, channels, side, side, generator=draws) * 0.5
        for label in range(3):
            images[labels == label, :, label * side // 3 : (label + 1) * side // 3] += 0.5
        return Split((images * 255).to(torch.uint8), labels)

    return ImageData("halves", split(n), split(24), split(24), ("top", "middle", "bottom"))


@pytest.fixture(scope="module")
def images():
    return tiny_images()


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_recipe_twice_gives_the_same_weights_and_another_seed_does_not(images):
    first = weights(sl.train("digits/asgt", images, overrides=TINY))
    torch.manual_seed(5)
    assert same(first, weights(sl.train("digits/asgt", images, overrides=TINY)))
    assert not same(first, weights(sl.train("digits/asgt", images, seed=1, overrides=TINY)))


def test_training_leaves_the_global_generators_alone_and_says_where_it_comes_from(images):
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = sl.train("digits/sgt", images, overrides=TINY)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002
    assert not model.training
    assert model.card.recipe["objective"]["name"] == "sgt"
    assert model.card.data == images.fingerprint
    assert "root" not in model.card.recipe["data"]
    assert set(model.card.metrics) >= {"val_clean", "val_robust"}


def test_a_model_changed_after_training_is_not_saved_as_the_recipes(images, tmp_path):
    model = sl.train("digits/standard", images, overrides=TINY)
    assert sl.save_model(model, tmp_path).recipe == model.card.recipe
    with torch.no_grad():
        next(model.parameters()).zero_()
    card = sl.save_model(model, tmp_path)
    assert (card.recipe, card.data, card.metrics) == (None, None, {})
    assert same(weights(model), weights(sl.load_model(tmp_path)))


@pytest.mark.long
def test_it_learns_and_logs(images, tmp_path):
    model = sl.train(
        "digits/at",
        images,
        out=tmp_path / "run",
        overrides=TINY | {"training.epochs": 12, "attack.eps": 0.05},
    )
    x, y = images.test.all()
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    with (tmp_path / "run/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    assert float(rows[-1]["loss_adversarial"]) < float(rows[0]["loss_adversarial"])
    assert float(rows[-1]["val_clean"]) == model.card.metrics["val_clean"]
    loaded = sl.load_model(tmp_path / "run")
    assert same(weights(model), weights(loaded))


class Stopped(Exception):
    """Stands for whatever ends a run between two steps."""


@contextmanager
def stopped_after(steps, monkeypatch):
    """Save after every batch from now on, and end the training inside after some steps."""
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "LOOK_EVERY_BATCHES", 1)
    step, taken = loop.Trainer._step, []

    def stopping(self, indices):
        if len(taken) == steps:
            raise Stopped
        taken.append(indices)
        return step(self, indices)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop.Trainer, "_step", stopping)
        yield


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["digits/standard", "digits/asgt"])
@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_a_run_stopped_at_any_step_resumes_to_the_same_weights(
    images, tmp_path, monkeypatch, recipe, stop_at
):
    overrides = TINY | {
        "training.ema_decay": 0.9,
        "training.select": "clean",
        "optimizer.schedule": "one_cycle",
    }
    whole = weights(sl.train(recipe, images, overrides=overrides))
    with stopped_after(stop_at, monkeypatch):
        sl.train(recipe, images, out=tmp_path, overrides=overrides)
    assert not (tmp_path / "model.safetensors").exists()
    resumed = sl.train(recipe, images, out=tmp_path, overrides=overrides)
    assert same(whole, weights(resumed))
    assert sorted(p.name for p in tmp_path.glob("*.*")) == [
        "log.csv",
        "model.json",
        "model.safetensors",
        "recipe.json",
    ]


class Unruly(nn.Module):
    """Draws from every generator in train mode, and has buffers that no average or state dict is made for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(28 * 28, 3)
        self.register_buffer("order", torch.arange(28 * 28).flip(0))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, x):
        logits = self.out(x.flatten(1)[:, self.order]) + self.mask[0]
        if not self.training:
            return logits
        self.steps += 1
        draws = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
        return logits * draws / (1 + 0.1 * self.steps)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_network_with_draws_and_buffers_of_its_own_repeats_and_resumes(
    images, tmp_path, monkeypatch, decay
):
    overrides = TINY | ({} if decay is None else {"training.ema_decay": decay})
    net = Unruly()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    whole = sl.train("digits/standard", images, model=net, overrides=overrides)
    assert torch.equal(whole.order, net.order) and torch.equal(whole.mask, net.mask)
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    with stopped_after(4, monkeypatch):
        sl.train("digits/standard", images, model=net, out=tmp_path, overrides=overrides)
    resumed = sl.train("digits/standard", images, model=net, out=tmp_path, overrides=overrides)
    assert same(weights(whole), weights(resumed))


KILLED = """
import sys, torch
torch.set_num_threads(1)
import saliency_lab as sl
from saliency_lab.training import loop
loop.SAVE_EVERY_SECONDS, loop.LOOK_EVERY_BATCHES = 0.0, 1
sl.show_progress(False)
sl.train("digits/sgt", sl.load_dataset("digits"), out=sys.argv[1],
         overrides={"training.epochs": 3, "validation.steps": 2, "validation.images": 32})
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    """SIGKILL at random moments after a state was saved, three times; then to the end."""
    seed = time.time_ns()
    print(f"moments drawn with seed {seed}")
    draws = random.Random(seed)
    overrides = {"training.epochs": 3, "validation.steps": 2, "validation.images": 32}
    whole = weights(sl.train("digits/sgt", sl.load_dataset("digits"), overrides=overrides))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    state = tmp_path / "run/state.pt"
    for _ in range(3):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.002)
        time.sleep(draws.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (tmp_path / "run/model.json").exists()
    finished = subprocess.run(command, env=environment, timeout=300)
    assert finished.returncode == 0
    assert same(whole, weights(sl.load_model(tmp_path / "run")))
    assert sorted(p.name for p in (tmp_path / "run").glob(".*")) == []


def test_a_run_killed_between_weights_and_card_goes_on(images, tmp_path, monkeypatch):
    close = loop.RunFolder.close
    monkeypatch.setattr(loop.RunFolder, "close", lambda self: None)
    whole = weights(sl.train("digits/standard", images, out=tmp_path, overrides=TINY))
    (tmp_path / "model.json").unlink()
    monkeypatch.setattr(loop.RunFolder, "close", close)
    assert same(whole, weights(sl.train("digits/standard", images, out=tmp_path, overrides=TINY)))
    assert (tmp_path / "model.json").exists()


def test_a_finished_run_is_loaded_and_another_recipe_is_refused(images, tmp_path):
    first = sl.train("digits/standard", images, out=tmp_path, overrides=TINY)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = sl.train("digits/standard", images, out=tmp_path, overrides=TINY)
    assert same(weights(first), weights(again))
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"holds another run \(it differs in recipe\.seed\)"):
        sl.train("digits/standard", images, seed=4, out=tmp_path, overrides=TINY)
    with pytest.raises(InputError, match="it differs in data"):
        sl.train("digits/standard", tiny_images(n=80), out=tmp_path, overrides=TINY)


def test_damaged_files_of_a_run_are_named(images, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "fit", lambda self: self._save() or (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        sl.train("digits/standard", images, out=tmp_path, overrides=TINY)
    monkeypatch.undo()
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"state\.pt' is damaged .* delete it"):
        sl.train("digits/standard", images, out=tmp_path, overrides=TINY)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"recipe\.json' is damaged"):
        sl.train("digits/standard", images, out=tmp_path, overrides=TINY)


def test_collapse_is_an_error_and_leaves_no_model(images, tmp_path):
    with pytest.raises(TrainingError, match=r"collapsed to a constant; set attack\.warmup") as caught:
        sl.train(
            "digits/at",
            images,
            out=tmp_path,
            overrides=TINY | {"attack.eps": 1.0},
        )
    assert "recipe 'digits/at', epoch 2" in str(caught.value)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_collapsed_model_is_kept_on_request(images, tmp_path):
    longer = TINY | {"attack.eps": 1.0, "training.epochs": 3, "training.collapse": "keep"}
    with pytest.warns(
        UserWarning, match=r"predicts one class for .* collapsed to a constant; set attack\.warmup"
    ):
        model = sl.train("digits/at", images, out=tmp_path, overrides=longer)
    assert model.card.metrics["epochs"] == 3  # trained to the end, not given up after two epochs
    assert len(sl.load_model(tmp_path)(images.val.images.float() / 255).argmax(1).unique()) == 1


def test_keys_added_since_the_first_release_leave_its_runs_as_they_were():
    assert "collapse" not in sl.load_recipe("digits/at").portable()["training"]
    kept = sl.load_recipe("digits/at", {"training.collapse": "keep"}).portable()
    assert kept["training"]["collapse"] == "keep"
    assert sl.load_recipe(kept).training.collapse == "keep"


def test_a_loss_that_is_not_finite_stops_the_run_within_the_epoch(images, tmp_path):
    with pytest.raises(TrainingError, match=r"'clean' became .* in epoch 1; lower optimizer\.learning_rate"):
        sl.train(
            "digits/standard",
            images,
            out=tmp_path,
            overrides=TINY | {"optimizer.learning_rate": 1e30, "optimizer.name": "sgd"},
        )
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "state.pt").exists()


def test_weights_that_the_last_update_ruined_are_refused(images, tmp_path):
    ruined = TINY | {"training.epochs": 1, "training.batch_size": 64, "optimizer.learning_rate": 1e30}
    with pytest.raises(TrainingError, match=r"recipe 'digits/standard': .* NaN or infinite; lower optimizer"):
        sl.train("digits/standard", images, out=tmp_path, overrides=ruined | {"optimizer.name": "sgd"})


def test_labels_of_nearly_one_class_are_no_collapse(images):
    one = Split(images.val.images[::3], torch.zeros(8, dtype=torch.int64))  # every third is of class 0
    lopsided = ImageData("lopsided", images.train, one, images.test, images.classes)
    model = sl.train("digits/standard", lopsided, overrides=TINY | {"training.epochs": 4})
    assert model.card.metrics["val_clean"] == 1.0


def epoch(clean, *, constant=False):
    """The validation of one epoch."""
    return Validation(clean, 0.0, 1.0 if constant else 0.4, 0.0)


def scripted(monkeypatch, epochs):
    """Validations in their order, whatever the network is."""
    left = iter(epochs)
    monkeypatch.setattr(loop, "validate", lambda *_: next(left))


KEEP_THE_BEST = TINY | {"training.epochs": 6, "training.select": "clean"}


def test_patience_counts_from_the_first_epoch_that_could_be_kept(images, tmp_path, monkeypatch):
    patient = KEEP_THE_BEST | {"training.patience": 1}
    scripted(monkeypatch, [epoch(0.4, constant=True), epoch(0.6), epoch(0.5)])
    assert sl.train("digits/standard", images, overrides=patient).card.metrics["val_clean"] == 0.6
    scripted(monkeypatch, [epoch(0.4, constant=True)] * 2)
    with pytest.raises(TrainingError, match=r"epoch 2: .* collapsed to a constant"):
        sl.train("digits/standard", images, out=tmp_path, overrides=patient)
    scripted(monkeypatch, [epoch(0.4, constant=True)])
    with pytest.raises(TrainingError, match=r"epoch 2: .* collapsed to a constant"):
        sl.train("digits/standard", images, out=tmp_path, overrides=patient)  # goes on after epoch 1


@pytest.mark.parametrize(
    ("epochs", "begin"),
    [
        ([epoch(0.5), epoch(0.6), *[epoch(0.4, constant=True)] * 2], 3),
        ([epoch(0.6), epoch(0.4, constant=True), *[epoch(0.5)] * 3, epoch(0.4, constant=True)], 6),
    ],
)
def test_a_collapse_after_a_good_epoch_stops_keeps_that_one_and_warns(images, monkeypatch, epochs, begin):
    scripted(monkeypatch, epochs)
    best = 1 + max(range(len(epochs)), key=lambda index: epochs[index].clean)
    with pytest.warns(UserWarning, match=f"collapsed .* in epoch {begin} .* epoch {best} is kept; lower opt"):
        model = sl.train("digits/standard", images, overrides=KEEP_THE_BEST)
    assert model.card.metrics["val_clean"] == 0.6
    assert model.card.metrics["epochs"] == len(epochs)


def test_the_attack_is_no_cure_where_the_objective_has_none(images, monkeypatch):
    for recipe, cure in {
        "digits/standard": "constant; lower optimizer.learning_rate, or train",
        "digits/noise": r"constant; set attack\.warmup",
        "digits/trades": r"constant; set attack\.warmup",
    }.items():
        scripted(monkeypatch, [epoch(0.4, constant=True)] * 2)
        with pytest.raises(TrainingError, match=cure):
            sl.train(recipe, images, overrides=TINY)


def test_the_average_of_the_weights_is_the_formulas_and_forgets_the_first_steps(images, monkeypatch):
    step, seen = loop.Trainer._step, []

    def watched(self, indices):
        terms = step(self, indices)
        seen.append({name: tensor.double().clone() for name, tensor in self.net.state_dict().items()})
        return terms

    monkeypatch.setattr(loop.Trainer, "_step", watched)
    slow = {"training.ema_decay": 0.9999, "optimizer.learning_rate": 3e-4, "training.epochs": 6}
    model = sl.train("digits/standard", images, seed=4, overrides=TINY | slow)
    average = seen[0]
    for t, current in enumerate(seen[1:], start=1):
        decay = min(0.9999, (1 + t) / (10 + t))
        average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-6)
    assert model.card.metrics["val_clean"] > 0.9  # by a constant 0.9999, a collapse in epoch 2


class Restless(nn.Module):
    """Draws in eval mode too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(28 * 28, 3)

    def forward(self, x):
        return self.out((x + 0.1 * torch.randn_like(x)).flatten(1))


def test_a_network_that_draws_in_eval_mode_repeats_and_resumes_too(images, tmp_path, monkeypatch):
    with preserved_rng():
        net = Restless()
    keys = TINY | {"training.select": "robust", "objective.ranking": "signed"}
    whole = sl.train("digits/asgt", images, model=net, overrides=keys)
    torch.manual_seed(5)
    with stopped_after(5, monkeypatch):
        sl.train("digits/asgt", images, model=net, out=tmp_path, overrides=keys)
    torch.manual_seed(6)
    resumed = sl.train("digits/asgt", images, model=net, out=tmp_path, overrides=keys)
    assert same(weights(whole), weights(resumed))
    assert whole.card.metrics == resumed.card.metrics


@pytest.mark.parametrize("terms", [{}, {"each": torch.zeros(16)}])
def test_an_objective_that_returns_no_scalars_is_named(images, terms):
    class Wrong(Objective):
        def terms(self, step):
            return terms

    assert Wrong.name.endswith("Wrong")
    recipe = sl.load_recipe("digits/standard", TINY).model_copy(update={"objective": Wrong()})
    with pytest.raises(TrainingError, match=r"objective '.*Wrong' must return one or more scalar terms"):
        sl.train(recipe, images)


@pytest.mark.parametrize(
    "where", [{"accelerator": "cuda"}, {"accelerator": "foo"}, {"strategy": "foo"}, {"strategy": "fsdp"}]
)
def test_hardware_that_is_not_there_is_refused(images, where):
    if where == {"accelerator": "cuda"} and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match=next(iter(where.values()))):
        sl.train("digits/standard", images, overrides=TINY, **where)


def test_float16_needs_a_gpu(images):
    with pytest.raises(InputError, match=r"training\.precision = \"16-mixed\" needs a GPU"):
        sl.train(
            "digits/standard", images, accelerator="cpu", overrides=TINY | {"training.precision": "16-mixed"}
        )


def test_vanished_input_gradients_warn(images):
    class Loud(nn.Module):
        """Logits so far apart that the softmax saturates."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.out = nn.Linear(28 * 28, 3)

        def forward(self, x):
            return 1e6 * self.out(x.flatten(1))

    with pytest.warns(UserWarning, match="input gradient is exactly 0 for .* audit"):
        sl.train("digits/standard", images, model=Loud(), overrides=TINY)


def test_a_users_own_model_is_copied_and_its_checkpoint_takes_it_back(images, tmp_path):
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    before = weights(mine)
    model = sl.train("digits/standard", images, model=mine, out=tmp_path, overrides=TINY)
    assert same(before, weights(mine))
    assert not same(before, weights(model))
    assert same(
        weights(model), weights(sl.train("digits/standard", images, model=mine, out=tmp_path, overrides=TINY))
    )
    other = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))  # prints alike, weighs differently
    with pytest.raises(InputError, match="it differs in architecture"):
        sl.train("digits/standard", images, model=other, out=tmp_path, overrides=TINY)


def test_an_operation_that_cannot_be_differentiated_twice_is_named(images):
    mine = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Hardsigmoid(), nn.Linear(8, 3))
    with pytest.raises(TrainingError, match="torch cannot differentiate that of 'hardsigmoid'"):
        sl.train("digits/input_gradient", images, model=mine, overrides=TINY)


class Centred(nn.Module):
    """Centres its images where they stand."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(784, 3)

    def forward(self, x):
        x -= 0.5
        return self.out(x.flatten(1))


def linear(outputs, **kind):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs, **kind))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": "digits"}, r"data must be a saliency_lab\.ImageData, .* not str"),
        ({"data": tiny_images().train}, r"data must be a saliency_lab\.ImageData, .* not Split"),
        ({"model": "small_cnn"}, r"model must be a torch\.nn\.Module, not str; .*'model\.name'"),
        ({"model": linear(3, dtype=torch.float64)}, r"'1\.weight' is torch\.float64, .* model\.float"),
        ({"model": linear(2)}, r"must return logits of the shape \(2, 3\), but returned \(2, 2\)"),
        ({"model": nn.Linear(28, 3)}, r"returned a map per image, \(N, 1, 28, 3\)"),
        ({"model": linear(3).requires_grad_(False)}, "nothing to train"),
        ({"model": nn.Flatten()}, "nothing to train"),
        ({"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(3))}, r"'1\.weight' has no shape yet"),
        ({"model": Centred()}, r"Centred changes its input in place.*x\.clone"),
        ({"model": nn.Sequential(nn.ReLU(inplace=True), linear(3))}, "in place.*inplace=False"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(9, 3))}, r"fails on images of the shape \(2, 1, 28"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(images, tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        sl.train("digits/standard", **{"data": images} | given, out=tmp_path / "run", overrides=TINY)
    assert not (tmp_path / "run").exists()


def test_another_default_type_of_torch_is_refused(images):
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(InputError, match=r"default type is torch\.float64"):
            sl.train("digits/standard", images, overrides=TINY)
    finally:
        torch.set_default_dtype(torch.float32)


class Detached(nn.Module):
    """A network whose logits have no gradient at the image."""

    def __init__(self):
        super().__init__()
        self.net = linear(3)

    def forward(self, x):
        return self.net(x.detach())


@pytest.mark.filterwarnings("ignore:the model's logits have no gradient")
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_model_without_a_gradient_at_the_image(images, name):
    overrides = TINY | {"objective": {"name": name}, "training.collapse": "keep"}
    if name in ("standard", "noise"):
        with pytest.warns(UserWarning, match="gradient is exactly 0 for 100%"):
            sl.train("digits/standard", images, model=Detached(), overrides=overrides)
    else:
        with pytest.raises(TrainingError, match=r"no gradient at the image.*use 'standard'"):
            sl.train("digits/standard", images, model=Detached(), overrides=overrides)


def test_more_logits_than_classes_are_on_the_card(images):
    mine = linear(7)
    frozen = mine[1].bias.requires_grad_(False).clone()
    model = sl.train("digits/standard", images, model=mine, overrides=TINY)
    assert model.card.num_classes == model(images.test.all().x[:1]).shape[1] == 7
    assert model.card.classes == images.classes
    assert torch.equal(model[1].bias, frozen)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.root", "data"),
        ("data.val_fraction", 0.3),
        ("data.name", "mnist"),
        ("data", {"image_size": 8}),
        ("model.name", "sgt_cnn"),
    ],
)
def test_overrides_without_effect_are_refused(images, key, value):
    with pytest.raises(
        InputError, match=f"override '{key.split('.')[0]}.* has no effect where .*=… is given"
    ):
        sl.train("digits/standard", images, model=linear(3), overrides=TINY | {key: value})


def test_the_card_bears_the_name_of_the_data_that_were_given(images, tmp_path):
    model = sl.train("digits/standard", images, out=tmp_path, overrides=TINY)
    assert model.card.recipe["data"] == {"name": "halves", "augmentation": "none"}
    found_again = TINY | {"data.name": "my_data:halves"}
    card = sl.train("digits/standard", images, overrides=found_again).card
    assert card.recipe["data"]["name"] == "my_data:halves"
    identity = json.loads((tmp_path / "recipe.json").read_text())["recipe"]
    assert identity == sl.load_recipe("digits/standard", TINY).portable()  # the folder's stays the recipe's


OWN_THINGS = """
import torch
from test_train import tiny_images

class Wide(torch.nn.Module):
    def __init__(self, width): ...

NUMBER = 3

def images(): return tiny_images()
def needy(n): return tiny_images(n=n)
"""


def test_what_a_users_module_holds_is_named_where_it_will_not_do(tmp_path, monkeypatch):
    (tmp_path / "own_things_of_training.py").write_text(OWN_THINGS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    own = "own_things_of_training:"
    for keys, words in [
        ({"model.name": f"{own}Wide"}, r"'Wide' cannot be called with num_classes and .*'width'"),
        ({"model.name": f"{own}NUMBER"}, "'NUMBER' must be a torch module or make one, not int"),
        ({"data.name": f"{own}needy"}, "'needy' is a function that needs"),
        ({"data.name": f"{own}NUMBER"}, r"is not a saliency_lab\.ImageData, but int"),
        ({"data.name": f"{own}images", "data.val_fraction": 0.3}, "'val_fraction' has no effect on your own"),
        ({"data.name": f"{own}images", "data.root": "data"}, "'root' has no effect on your own"),
        ({"data.name": f"{own}images", "data.image_size": 8}, "'image_size' has no effect on your own"),
    ]:
        with pytest.raises(InputError, match=words):
            sl.train("digits/standard", overrides=TINY | keys)
    assert sl.train("digits/standard", overrides=TINY | {"data.name": f"{own}images"}).card.data


ANOTHER = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import saliency_lab as sl
from test_train import tiny_images, TINY
sl.show_progress(False)
try:
    sl.train("digits/standard", tiny_images(), out=sys.argv[1], overrides=TINY)
except sl.SaliencyLabError as error:
    sys.exit(str(error))
"""


@pytest.mark.long
def test_a_second_process_does_not_touch_a_run_that_another_trains(images, tmp_path, monkeypatch):
    command = [sys.executable, "-c", ANOTHER, str(tmp_path / "run"), str(Path(__file__).parent)]
    step, processes = loop.Trainer._step, []

    def interrupted(self, indices):
        if not processes:
            writing = tmp_path / "run/.state.pt.abc.pt"  # as `atomic_path` names what it writes
            writing.write_bytes(b"half")
            processes.append(subprocess.run(command, capture_output=True, text=True, timeout=120))
            assert writing.exists()
        return step(self, indices)

    monkeypatch.setattr(loop.Trainer, "_step", interrupted)
    first = weights(sl.train("digits/standard", images, out=tmp_path / "run", overrides=TINY))
    assert processes[0].returncode == 1
    assert f"another process is training in '{tmp_path / 'run'}'" in processes[0].stderr
    after = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert after.returncode == 0, after.stderr
    assert same(first, weights(sl.load_model(tmp_path / "run")))
    assert not (tmp_path / "run/.lock").exists()


def test_a_run_that_stops_leaves_no_writer_open(images, tmp_path, monkeypatch):
    """TensorBoard's has a thread and a file."""
    written, closed = [], []

    class Writer:
        def __init__(self, *_, **__):
            self.flush = lambda: None

        def add_scalar(self, key, value, epoch):
            written.append(key)

        def close(self):
            closed.append(self)

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(loop.Trainer, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        sl.train("digits/standard", images, out=tmp_path, overrides=TINY)
    assert written and len(closed) == 1


def test_a_run_clears_what_a_killed_one_left(images, tmp_path):
    left = [tmp_path / f".{name}.abc" for name in ("state.pt", "log.csv", "model.safetensors", "model.json")]
    for path in left:
        path.write_bytes(b"half")
    sl.train("digits/standard", images, out=tmp_path, overrides=TINY)
    assert not any(path.exists() for path in left)


class Quadratic(Objective):
    """A user's objective as a plain object."""

    name = "quadratic"

    def terms(self, step):
        return {"quadratic": (step.logits(step.x) - nn.functional.one_hot(step.y, 3)).square().mean()}


def test_a_built_model_that_was_trained_is_known_by_its_name(images, tmp_path):
    shape, classes = images.input_shape, len(images.classes)
    built = sl.build_model("small_cnn", num_classes=classes, input_shape=shape)
    model = sl.train("digits/standard", images, model=built, out=tmp_path, overrides=TINY)
    assert model.card.architecture == "small_cnn"
    again = sl.load_model(tmp_path)  # no module is needed
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    other = sl.build_model("small_cnn", num_classes=classes, input_shape=shape)
    first = next(name for name, module in other.named_modules() if isinstance(module, nn.ReLU))
    other.set_submodule(first, nn.GELU())
    changed = sl.train("digits/standard", images, model=other, overrides=TINY)
    assert changed.card.architecture == "custom"


def test_a_users_own_objective_as_an_object(images):
    recipe = sl.load_recipe("digits/standard", TINY)
    model = sl.train(recipe.model_copy(update={"objective": Quadratic()}), images)
    assert model.card.recipe["objective"] == {"name": "quadratic"}


def test_selection_keeps_the_best_epoch_and_patience_stops(images, tmp_path):
    overrides = TINY | {"training.epochs": 30, "training.select": "clean", "training.patience": 2}
    model = sl.train("digits/standard", images, out=tmp_path, overrides=overrides)
    with (tmp_path / "log.csv").open() as file:
        scores = [float(row["val_clean"]) for row in csv.DictReader(file)]
    assert len(scores) < 30
    assert model.card.metrics["val_clean"] == max(scores)
    x, y = images.val.sample(16)
    assert (model(x).argmax(1) == y).double().mean() == max(scores)
    assert scores.index(max(scores)) == len(scores) - 3


def test_batches_that_cannot_be_made_are_refused(images, tmp_path):
    with pytest.raises(InputError, match=r"training\.batch_size = 65 is more than the 64 training images"):
        sl.train(
            "digits/standard", images, out=tmp_path / "run", overrides=TINY | {"training.batch_size": 65}
        )
    assert not (tmp_path / "run").exists()  # which a corrected call may use


OWN_OBJECTIVE = """
import torch.nn.functional as F
from saliency_lab.training import Objective


class Weighted(Objective):
    def terms(self, step):
        return {"clean": FACTOR * F.cross_entropy(step.logits(step.x), step.y)}
"""


def test_the_code_of_an_objective_is_part_of_the_run(images, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    overrides = TINY | {"objective.name": "own_objective:Weighted", "training.epochs": 1}
    names = []
    for factor in ("1.0", "0.5"):
        (tmp_path / "own_objective.py").write_text(OWN_OBJECTIVE.replace("FACTOR", factor))
        sys.modules.pop("own_objective", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        recipe = sl.load_recipe("digits/standard", overrides)
        names.append(run.run_folder_name(recipe, 0, "data"))
        if factor == "1.0":
            first = sl.train(recipe, images, out=tmp_path / "run")
            assert same(weights(sl.train(recipe, images, out=tmp_path / "run")), weights(first))
        else:
            with pytest.raises(InputError, match=r"holds another run \(it differs in objective"):
                sl.train(recipe, images, out=tmp_path / "run")
    assert names[0] != names[1]
    assert sl.load_recipe("digits/asgt").own_code() == {}


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_half_precision_and_channels_last_train_rgb_images_with_augmentation(precision):
    images = tiny_images(channels=3, side=32, n=48)
    model = sl.train(
        "digits/asgt",
        images,
        overrides=TINY
        | {
            "model.name": "resnet8",
            "training.precision": precision,
            "training.channels_last": True,
            "data.augmentation": "crop_flip",
            "training.epochs": 1,
        },
    )
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert 0 <= model.card.metrics["val_robust"] <= model.card.metrics["val_clean"] <= 1


COMPILER = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


@COMPILER
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*predicts one class")
@pytest.mark.parametrize(("objective", "model"), [("sgt", "sgt_cnn"), ("asgt", "resnet8")])
def test_a_compiled_training_is_repeatable(images, objective, model):
    settings = {
        "training.epochs": 1,
        "training.collapse": "keep",
        "training.compile": True,
        "model.name": model,
    }

    def trained():
        return weights(sl.train(f"digits/{objective}", images, overrides=TINY | settings))

    first = trained()
    torch.manual_seed(5)
    assert same(first, trained())


@COMPILER
@pytest.mark.slow
def test_a_gradient_of_a_gradient_is_not_trained_compiled(images):
    changes = {"objective.name": "input_gradient", "training.compile": True}
    with pytest.raises(TrainingError, match=r"training\.compile = true: a gradient cannot be differentiated"):
        sl.train("digits/standard", images, overrides=TINY | changes)


def test_without_a_compiler_compiled_training_is_refused(images, monkeypatch):
    monkeypatch.setattr("saliency_lab._common.compiling.compiler", lambda: None)
    with pytest.raises(TrainingError, match="no C\\+\\+ compiler"):
        sl.train("digits/standard", images, overrides=TINY | {"training.compile": True})


TWO = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import saliency_lab as sl
from saliency_lab.training import loop
from test_train import tiny_images, TINY
loop.SAVE_EVERY_SECONDS, loop.LOOK_EVERY_BATCHES = 0.002, 1  # so that the processes' clocks disagree
sl.show_progress(False)
sl.train("digits/asgt", tiny_images(), out=sys.argv[1], accelerator="cpu", devices=int(sys.argv[3]),
         strategy="ddp" if sys.argv[3] == "2" else "auto", overrides=TINY)
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives_within_rounding(tmp_path):
    script = tmp_path / "train_on.py"
    script.write_text(TWO)
    for devices in "12":
        subprocess.run(
            [sys.executable, str(script), str(tmp_path / devices), str(Path(__file__).parent), devices],
            check=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
            | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=300,
        )
    logs = [list(csv.DictReader((tmp_path / d / "log.csv").open())) for d in "12"]
    for one, two in zip(*logs, strict=True):
        for term in ("loss", "loss_clean", "loss_adversarial", "loss_divergence"):
            assert float(one[term]) == pytest.approx(float(two[term]), rel=2e-4)
    one, two = (sl.load_model(tmp_path / d).state_dict() for d in "12")
    assert all(torch.allclose(one[name], two[name], atol=2e-4) for name in one)
    assert json.loads((tmp_path / "1/recipe.json").read_text()) == json.loads(
        (tmp_path / "2/recipe.json").read_text()
    )


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_on_a_processor_without_it_is_announced(images, monkeypatch, native):
    monkeypatch.setattr("saliency_lab.training.api.has_bfloat16", lambda: native)
    short = TINY | {"training.epochs": 1, "training.precision": "bf16-mixed"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sl.train("digits/standard", images, overrides=short)
    assert any("no instructions for bfloat16" in str(each.message) for each in caught) != native
