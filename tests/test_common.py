"""The conventions every package relies on: state put back, draws keyed by the sample, bad inputs refused."""

import importlib
import io
import json
import math
import os
import pkgutil
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import saliency_lab as sl
from saliency_lab._common import progress as bars
from saliency_lab._common.checks import check_images, check_labels
from saliency_lab._common.errors import InputError
from saliency_lab._common.files import LONGEST_STEM, distinct_stems, write_json
from saliency_lab._common.inference import device_of, undisturbed
from saliency_lab._common.plugins import import_object
from saliency_lab._common.seeding import sample_normal, sample_seeds, sample_uniform
from saliency_lab._common.settings import Settings, parse_settings
from saliency_lab._common.toml_files import read_toml
from saliency_lab.attacks import transfer_attack
from saliency_lab.attribution import attribute
from saliency_lab.experiment.schema import read_declaration
from saliency_lab.metrics.catalogue import METRICS


def test_mode_and_flags_come_back_after_an_exception():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2)).train()
    model[1].eval()
    model[2].weight.requires_grad_(False)
    with pytest.raises(KeyError), undisturbed(model):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert [module.training for module in model] == [True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True]


class Merging(nn.Linear):
    """An adapter of low rank, which is merged into the weight in eval mode, as in loralib."""

    def __init__(self):
        super().__init__(16, 2)
        self.down, self.up = nn.Parameter(torch.randn(1, 16)), nn.Parameter(torch.randn(2, 1))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode is self.merged:
            change = self.up @ self.down
            self.weight.data += -change if mode else change
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.down.T @ self.up.T)


def test_a_module_that_changes_with_its_mode_changes_back():
    model, x = nn.Sequential(nn.Flatten(), Merging()).train(), torch.rand(3, 1, 4, 4)
    before, expected = model[1].weight.clone(), model(x).detach()
    sl.attribute(model, x, torch.tensor([0, 1, 0]), "saliency")
    assert model.training and not model[1].merged
    torch.testing.assert_close(model[1].weight, before)
    torch.testing.assert_close(model(x).detach(), expected)
    model(x).sum().backward()
    assert model[1].down.grad is not None


def of_its_batch():
    return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), nn.Linear(16, 2))


def test_a_model_that_looks_at_the_batch_in_eval_mode_is_warned_about(recwarn):
    sound = nn.Sequential(nn.BatchNorm2d(1), nn.InstanceNorm2d(1))
    with undisturbed(sound):
        assert not recwarn.list
    with pytest.warns(UserWarning, match="Sequential has batch .* depends on the others of its pass"):
        attribute(of_its_batch(), torch.rand(3, 1, 4, 4), target=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda *given: sl.attack(*given, "fgsm", eps=0.1),
        lambda *given: sl.robustness_curve(*given, "fgsm", eps=(0, 0.1)),
        lambda *given: sl.steps_curve(*given, eps=0.1, steps=(0, 1)),
        lambda *given: sl.minimal_epsilon(*given, "fgsm", tolerance=0.5),
        lambda model, x, y: sl.attribute(model, x, "saliency", target=y),
        lambda model, x, y: sl.evaluate(model, x, y, x - 0.5, "pixel_flipping"),
    ],
    ids=["attack", "robustness_curve", "steps_curve", "minimal_epsilon", "attribute", "evaluate"],
)
def test_a_warning_points_to_the_line_of_the_user(call):
    """However deep the call; a line of the package would be shown once for all models of a program."""
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)
    for _ in range(2):  # the second model is warned about as well
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            call(of_its_batch(), x, y)
        shown = [each for each in caught if "running statistics" in str(each.message)]
        assert shown
        assert {each.filename for each in shown} == {__file__}


def test_what_is_no_module_is_refused():
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, not str"), undisturbed("runs/model"):
        pass
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, not function"):
        device_of(lambda x: x)


@pytest.mark.parametrize("draw", [sample_uniform, sample_normal])
def test_a_draw_belongs_to_the_sample_wherever_it_stands(draw):
    x = torch.rand(6, 1, 4, 4)
    order = torch.tensor([3, 0, 5])
    whole = draw(sample_seeds(x, 0, "noise"), (2, 4, 4))
    assert torch.equal(draw(sample_seeds(x[order], 0, "noise"), (2, 4, 4)), whole[order])
    assert not torch.equal(draw(sample_seeds(x, 1, "noise"), (2, 4, 4)), whole)
    assert not torch.equal(draw(sample_seeds(x, 0, "start"), (2, 4, 4)), whole)


SEEDED = {
    "attack": lambda model, x, y, seed: sl.attack(model, x, y, "fgsm", eps=0.1, seed=seed),
    "transfer_attack": lambda model, x, y, seed: transfer_attack(model, model, x, y, eps=0.1, seed=seed),
    "robustness_curve": lambda model, x, y, seed: sl.robustness_curve(model, x, y, eps=(0, 0.1), seed=seed),
    "attack_map": lambda model, x, y, seed: sl.attack_map(model, x, eps=0.1, seed=seed),
    "audit": lambda model, x, y, seed: sl.audit(model, x, y, eps=0.1, seed=seed),
    "attribute": lambda model, x, y, seed: sl.attribute(model, x, y, "saliency", seed=seed),
    "sanity_check": lambda model, x, y, seed: sl.sanity_check(model, x, y, "saliency", seed=seed),
    "evaluate": lambda model, x, y, seed: sl.evaluate(model, x, y, x, "sparseness", seed=seed),
    "Study": lambda model, x, y, seed: sl.Study({"net": model}, (x, y), seed=seed),
    "build_model": lambda model, x, y, seed: sl.build_model("small_cnn", seed=seed),
    "sample": lambda model, x, y, seed: sl.load_dataset("digits").test.sample(4, seed=seed),
    "train": lambda model, x, y, seed: sl.train("digits/standard", seed=seed),
}


@pytest.mark.parametrize("seed", [1.5, "0", True, -1, 2**63])
@pytest.mark.parametrize("entry_point", SEEDED)
def test_what_is_no_seed_is_refused_at_every_entry_point(entry_point, seed):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match="seed"):
        SEEDED[entry_point](model, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), seed)


def test_a_seed_of_numpy_is_a_number_in_the_result():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    for entry_point in ("attack", "robustness_curve", "attack_map", "audit"):
        json.dumps(SEEDED[entry_point](model, x, y, np.int64(2)).to_dict())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(3, 4, 4), r"shape \(N, C, H, W\)"),
        (torch.zeros(0, 1, 4, 4), "N ≥ 1"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), r"x\.float\(\) / 255"),
        (torch.full((2, 1, 4, 4), 1.5), r"image 0 spans \[1\.5, 1\.5\]"),
        (torch.tensor([0.0, float("nan")]).reshape(2, 1, 1, 1), "image 1 holds NaN"),
        ([[0.0]], "torch tensor, not list"),
    ],
)
def test_bad_images_are_named(images, words):
    with pytest.raises(InputError, match=words):
        check_images(images)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 10]), "label 1 is 10"),
        (torch.tensor([-1, 0]), "label 0 is -1"),
        (torch.tensor([0.0, 1.0]), r"y\.long\(\)"),
        (torch.tensor([0]), r"shape \(2,\)"),
        ("pgd", "not the text 'pgd'; name a method by keyword, method='pgd'"),
    ],
)
def test_bad_labels_are_named(labels, words):
    with pytest.raises(InputError, match=words):
        check_labels(labels, 2, num_classes=10)


def test_a_log_gets_whole_lines_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(bars, "_enabled", True)
    assert list(bars.progress(range(3), label="short")) == [0, 1, 2]
    assert capsys.readouterr().err == ""  # a minute had not passed
    monkeypatch.setattr(bars, "SECONDS_A_LINE", 0.0)
    with bars.progress(label="long", total=2) as bar:
        bar.set_postfix_str("loss 1.0")
        bar.update()
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("long: ") and "\r" not in line for line in lines)
    assert lines[-1].startswith("long: 2/2 [")
    assert "loss 1.0" in lines[-1]


def test_bars_leave_no_threads_behind(monkeypatch):
    """tqdm starts one for every class of bars, which stays."""
    monkeypatch.setattr(bars, "watched", lambda: False)
    list(bars.progress(range(2), label="first"))
    before = threading.active_count()
    for _ in range(5):
        list(bars.progress(range(2), label="work"))
    assert threading.active_count() == before


class _Writer:
    def write(self, text):
        pass

    def flush(self):
        pass


@pytest.mark.parametrize("stream", [None, _Writer(), "closed"])
def test_work_needs_no_stream_to_show_a_bar_on(monkeypatch, stream):
    """Services and pythonw have none, and what a log is wrapped in may do no more than write."""
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(bars, "_enabled", True)
    monkeypatch.setattr(bars, "SECONDS_A_LINE", 0.0)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(bars.progress(range(3), label="work")) == [0, 1, 2]


def test_a_setting_that_must_be_given_says_what_it_is():
    with pytest.raises(InputError, match=r"'masks' must be given: `masks` \(N, 1, H, W\)"):
        parse_settings(METRICS["pointing_game"].settings, {}, of="metric 'pointing_game'")


def _settings_models(base: type[Settings] = Settings) -> list[type[Settings]]:
    return [each for cls in base.__subclasses__() for each in (cls, *_settings_models(cls))]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, [math.inf], (math.nan,)], ids=str)
def test_no_setting_of_the_package_is_infinite_or_undefined(value):
    """Step sizes, learning rates, weights and decay of attacks, recipes, methods and metrics alike."""
    for module in pkgutil.walk_packages(sl.__path__, "saliency_lab."):
        importlib.import_module(module.name)
    checked = set()
    for model in _settings_models():
        for name, field in model.model_fields.items():
            if model.__module__.startswith("saliency_lab.") and "float" in str(field.annotation):
                with pytest.raises(ValidationError) as refused:
                    model.model_validate({name: value})
                assert name in {problem["loc"][0] for problem in refused.value.errors()}, (model, name)
                checked.add(name)
    assert {"learning_rate", "weight_decay", "step_size", "weight", "stdev"} <= checked


def test_an_infinite_value_of_a_recipe_is_named():
    with pytest.raises(sl.SaliencyLabError, match=r"'optimizer.learning_rate'.*finite number"):
        sl.training.load_recipe("digits/standard", {"optimizer.learning_rate": math.inf})
    with pytest.raises(sl.SaliencyLabError, match=r"finite number ≥ 0"):
        sl.training.load_recipe("digits/at", {"attack.eps": math.inf})


def test_settings_of_ones_own_need_no_docstring():
    class Own(Settings):
        strength: float

    with pytest.raises(InputError, match=r"^objective 'mine:Own': 'strength' must be given$"):
        parse_settings(Own, {}, of="objective 'mine:Own'")


DEEP, HUGE = "[" * 3000 + "]" * 3000, "9" * 5000


@pytest.mark.parametrize(("value", "message"), [(DEEP, "nested too deeply"), (HUGE, "5000 digits")])
def test_values_that_no_parser_takes_are_errors_that_name_the_file(tmp_path, value, message):
    toml = tmp_path / "mine.toml"
    toml.write_text(f"a = {value}\n")
    for read in (sl.load_recipe, read_declaration):
        with pytest.raises(InputError, match=f"mine.toml' is .*{message}"):
            read(toml)
    sl.save_model(sl.load_model("digits/standard"), tmp_path / "net")
    (tmp_path / "net" / "model.json").write_text(f'{{"seed": {value}}}')
    with pytest.raises(sl.SaliencyLabError, match=f"model.json' is damaged .*{message}"):
        sl.load_model(tmp_path / "net")
    images = torch.rand(2, 1, 28, 28), torch.tensor([0, 1])
    sl.Study({"net": sl.load_model("digits/standard")}, images, store=tmp_path / "store").attribute(
        "saliency"
    )
    (tmp_path / "store" / "study.json").write_text(f'{{"seed": {value}}}')
    with pytest.raises(InputError, match=r"no readable study\.json"):
        sl.Study.load(tmp_path / "store")
    assert "study.json" in sl.verify(tmp_path / "store")["file"].tolist()


@pytest.mark.parametrize("spec", ["./my.py:Net", "models/my:Net", ":Net", "my:", ".my:Net", "my.py"])
def test_a_path_is_not_taken_for_a_module(spec):
    with pytest.raises(InputError, match=r"write module:attribute, such as my:Net, not a path"):
        import_object(spec)


def test_a_file_is_flushed_through_a_handle_that_may_write_as_windows_demands(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    flushed = []

    def fsync(handle):
        flushed.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "file.json", {})
    assert flushed == [os.O_RDWR]


def test_files_of_different_things_have_different_names_that_fit():
    wanted = {"a 1": "a_1", "a_1": "a_1", "A 1": "A_1", "é" * 300: "é" * 300, "é" * 299: "é" * 299}
    stems = distinct_stems(wanted)
    assert list(stems) == list(wanted)
    assert stems["a 1"] == "a_1"
    assert len({stem.casefold() for stem in stems.values()}) == len(wanted)
    assert max(len(stem.encode()) for stem in stems.values()) <= LONGEST_STEM + 9
    assert distinct_stems(wanted) == stems


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 3000 + "]" * 3000, r"deeply|valid TOML"),
        ("a = " + "1" * 5000, "valid TOML"),
    ],
)
def test_a_hostile_toml_file_is_refused(text, words, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_toml(path, "study")
