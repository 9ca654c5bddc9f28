"""The explorer, driven by its controls' values as a browser would set them, but without one."""

import base64
import io
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import saliency_lab as sl
from saliency_lab.attribution.api import run_call
from saliency_lab.explorer.panels import PanelSource, StudyAttack
from saliency_lab.models import ModelCard
from saliency_lab.plotting.painting import tiles

pytest.importorskip("ipywidgets", reason="needs ipywidgets: pip install '.[notebook]'")


def small_net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    net.card = ModelCard(classes=("cat", "<b>dog</b>", "owl"))
    return net


@pytest.fixture(scope="module")
def sample():
    draws = torch.Generator().manual_seed(0)
    return torch.rand(12, 1, 6, 6, generator=draws), torch.arange(12) % 3


@pytest.fixture(scope="module")
def models():
    return {"plain": small_net(0), "other": small_net(1)}


@pytest.fixture
def study(models, sample):
    study = sl.Study(models, sample).attribute(["saliency", "input_x_gradient"])
    return study.score(["sparseness", "complexity"]).attack("pgd", eps=0.1, steps=3)


def chosen(dropdown, text):
    """The value of the option that contains `text`."""
    (value,) = [value for label, value in dropdown.options if text in label]
    return value


def rows_of(view):
    return [row for _, row in view.images.options]


def test_the_first_view_shows_what_the_study_holds(study):
    view = sl.explore(study)
    assert rows_of(view) == list(range(12)) and view.images.value == (0, 1, 2, 3)
    assert view.methods.value == ("saliency", "input_x_gradient")
    images = pictures(view)
    assert len(images) == 4 * (1 + 2 * 2) + 1  # with the scale
    assert images["image 0"].size == (6, 6) and "plain / saliency, image 3" in images
    assert "attribution as a share of the map" in view.picture.value


def pictures(view):
    """Alt text → image, of everything on the page."""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)"', view.picture.value)
    return {alt: Image.open(io.BytesIO(base64.b64decode(data))) for alt, data in found}


def set_images(view):
    view.images.value = (5,)


def set_models(view):
    view.models.value = view.models.value[:1]


def set_methods(view):
    view.methods.value = ("occlusion",)


def set_blend(view):
    view.blend.value = 0.7


def set_scale(view):
    view.scale.value = "shared"


def set_category(view):
    view.category.value = 1


def set_smooth(view):
    view.smooth.value = 1.0


def set_size(view):
    view.size.value = 10.0


def set_attack(view):
    view.attack.value = view.attack.options[1][1]


@pytest.mark.parametrize(
    "change",
    [
        set_images,
        set_models,
        set_methods,
        set_blend,
        set_scale,
        set_category,
        set_smooth,
        set_size,
        set_attack,
    ],
    ids=lambda f: f.__name__,
)
def test_every_control_changes_the_picture(study, change):
    view = sl.explore(study)
    before = view.picture.value
    change(view)
    assert view.picture.value not in {"", before}
    assert not view.problems.value


def test_a_class_is_listed_by_name_and_holds_its_images(study, sample):
    view = sl.explore(study)
    assert [label for label, _ in view.category.options] == ["all", "cat", "<b>dog</b>", "owl"]
    view.category.value = 2
    assert rows_of(view) == (sample[1] == 2).nonzero()[:, 0].tolist()
    assert view.images.value == (2, 5, 8, 11)


def test_outcomes_agree_with_attacks_called_directly(study, models, sample):
    view = sl.explore(study)
    for count in (1, 2):
        view.models.value = tuple(member for _, member in view.models.options)[:count]
        results = [sl.attack(model, *sample, "pgd", eps=0.1, steps=3) for model in models.values()][:count]
        expected = {
            "wrong": torch.stack([~result.clean_correct for result in results]).any(0),
            " by": torch.stack([result.success for result in results]).any(0),
            "not changed": torch.stack([result.robust for result in results]).all(0),
        }
        for text, mask in expected.items():
            label = [option for option, _ in view.outcome.options if option.startswith(text.strip() or text)]
            wanted = label[0] if text != " by" else "changed by pgd, ε = 0.1"
            view.outcome.value = dict(view.outcome.options)[wanted]
            assert rows_of(view) == mask.nonzero()[:, 0].tolist()


def test_sorting_by_a_metric_puts_best_or_worst_first(study):
    view = sl.explore(study)
    view.models.value, view.methods.value = view.models.value[:1], ("saliency",)
    scores = study.scores.query("model == 'plain' and method == 'saliency'")
    for metric, sign in (("sparseness", -1), ("complexity", 1)):
        values = scores[scores.metric == metric].sort_values("sample").score.to_numpy()
        view.metric.value, view.order.value = metric, True
        best = np.argsort(sign * values, kind="stable").tolist()
        assert rows_of(view) == best and view.images.value == tuple(best[:4])
        view.order.value = False
        assert rows_of(view) == np.argsort(-sign * values, kind="stable").tolist()


def test_images_without_a_score_come_last_either_way(models, sample):
    def first_pixel(model, x, y, maps):
        return [float(image[0, 0, 0]) if i % 2 else float("nan") for i, image in enumerate(x)]

    study = sl.Study(models, sample).attribute("saliency").score(first_pixel)
    view = sl.explore(study)
    view.metric.value = "first_pixel"
    for order in (True, False):
        view.order.value = order
        assert set(rows_of(view)[:6]) == {1, 3, 5, 7, 9, 11}
    assert "Neither side" in view.status.value
    assert all(label.endswith(" · no score") for label, _ in view.images.options[6:])


def test_a_choice_of_images_survives_what_does_not_change_the_list(study):
    view = sl.explore(study)
    view.images.value = (7, 9)
    view.methods.value = ("saliency",)
    assert view.images.value == (7, 9)
    view.category.value = 0
    assert view.images.value == (0, 3, 6, 9)


def test_a_live_map_is_the_one_that_attribute_makes_and_is_made_once(study, models, sample, monkeypatch):
    drawn, calls = [], []
    monkeypatch.setattr(
        "saliency_lab.explorer.widget.tiles",
        lambda images, maps, **named: drawn.append(maps) or tiles(images, maps, **named),
    )
    monkeypatch.setattr(
        "saliency_lab.explorer.panels.run_call",
        lambda *given: calls.append(given) or run_call(*given),
    )
    view = sl.explore(study)
    view.models.value = view.models.value[:1]
    view.methods.value = ("smoothgrad",)
    whole = sl.attribute(models["plain"], *sample, "smoothgrad").values
    assert torch.equal(drawn[-1]["plain / smoothgrad"], whole[:4])
    view.images.value = (2, 3, 4)
    view.blend.value = 0.5
    assert torch.equal(drawn[-1]["plain / smoothgrad"], whole[[2, 3, 4]])
    assert [len(x) for _, x, *_ in calls] == [4, 1]  # image 4 alone was missing


def test_errors_are_shown_next_to_the_maps_that_there_are(study):
    view = sl.explore(study)
    view.methods.value = ("saliency", "attention_rollout")
    assert "<b>plain / attention_rollout, other / attention_rollout</b>" in view.problems.value
    assert view.problems.value.count("needs a vision transformer") == 1  # the same message is shown once
    assert "traceback" not in view.problems.value
    assert "saliency" in view.picture.value and "rollout" not in view.picture.value
    view.methods.value = ("attention_rollout",)
    assert view.picture.value == "" and view.problems.value
    view.methods.value = ("saliency",)
    assert view.picture.value and not view.problems.value


def test_a_bug_of_the_model_is_shown_with_its_traceback(sample):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            raise ZeroDivisionError("<i>no</i>")

    view = sl.explore(sl.Study({"broken": Broken()}, sample))
    assert view.methods.value == ("saliency",)  # nothing is stored, so the first method is computed
    assert "ZeroDivisionError: &lt;i&gt;no" in view.problems.value and "traceback" in view.problems.value
    assert "<i>" not in view.problems.value


def test_seeds_of_a_model_are_models_to_pick(sample):
    study = sl.Study({"plain": [small_net(0), small_net(1)]}, sample).attribute("saliency")
    view = sl.explore(study)
    assert [label for label, _ in view.models.options] == ["plain (seed 0)", "plain (seed 1)"]
    first, second = (member for _, member in view.models.options)
    view.models.value = (first,)
    before = view.picture.value
    view.models.value = (second,)
    assert view.picture.value != before


def test_a_study_loaded_without_models_shows_what_it_holds_and_says_so(study, tmp_path):
    loaded = sl.Study.load(study.save(tmp_path / "store").store.folder)
    view = sl.explore(loaded)
    assert [value for _, value in view.methods.options] == ["saliency", "input_x_gradient"]
    assert "loaded without its models" in view.status.value
    assert [label for label, _ in view.category.options] == ["all", "cat", "<b>dog</b>", "owl"]
    assert view.images.options[0] == ("cat · image 0", 0)
    assert view.picture.value and not view.problems.value
    assert len(view.outcome.options) == 4


def test_a_picture_is_bounded(sample, models):
    x, y = (each.repeat(10, *[1] * (each.ndim - 1)) for each in sample)
    view = sl.explore(sl.Study(models, (x, y)).attribute("saliency"))
    view.images.value = tuple(range(120))
    assert "40 shown" in view.status.value and "first 40 of the 120" in view.status.value


def test_nothing_chosen_shows_a_message(study):
    view = sl.explore(study)
    view.models.value = ()
    assert view.picture.value == "" and "pick a model" in view.status.value


def test_nothing_of_the_model_or_the_generators_is_changed(study, models):
    model = models["plain"].train()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    view = sl.explore(study)
    view.methods.value = ("smoothgrad",)
    assert model.training and flags == [parameter.requires_grad for parameter in model.parameters()]
    assert torch.equal(state, torch.get_rng_state())
    model.eval()


def test_what_is_no_study_and_a_missing_ipywidgets_are_refused(study, monkeypatch):
    with pytest.raises(sl.SaliencyLabError, match="takes a study, not dict"):
        sl.explore({})
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(sl.SaliencyLabError, match=r"pip install '\.\[notebook\]'"):
        sl.explore(study)


def below(view, alt):
    """The line of text below the picture with this alternative text."""
    return re.search(rf'alt="{re.escape(alt)}"[^>]*/><div[^>]*>([^<]*)</div>', view.picture.value)[1]


def test_predictions_are_shown_with_probability_and_whether_they_are_right(study, models, sample):
    view = sl.explore(study)
    names = ("cat", "&lt;b&gt;dog&lt;/b&gt;", "owl")
    marks = set()
    for model in ("plain", "other"):
        shares = models[model](sample[0]).softmax(1)
        for row in view.images.value:
            label = int(shares[row].argmax())
            mark = "✓" if label == sample[1][row] else "✗"
            marks.add(mark)
            expected = f"{mark} {names[label]}, {100 * shares[row].max().item():.0f} %"
            assert below(view, f"{model} / saliency, image {row}") == expected
    assert marks == {"✓", "✗"}


def test_an_attack_shows_attacked_images_with_their_maps_and_predictions(study, models, sample):
    view = sl.explore(study)
    view.models.value = view.models.value[:1]
    view.methods.value = ("saliency",)
    view.images.value = (0, 1, 2)
    plain = pictures(view)
    view.attack.value = chosen(view.attack, "pgd, ε = 0.1")
    shown = pictures(view)
    result = sl.attack(models["plain"], *sample, "pgd", eps=0.1, steps=3)
    x = result.adversarial[:3]
    expected = tiles(x, {"m": sl.attribute(models["plain"], x, sample[1][:3], "saliency")}, scale="panel")
    for row in range(3):
        assert shown[f"image {row}"] == plain[f"image {row}"]
        assert np.array_equal(np.asarray(shown[f"plain: attacked {row}"]), expected.images[row])
        assert np.array_equal(np.asarray(shown[f"plain / saliency, image {row}"]), expected.maps["m"][row])
        label = int(models["plain"](x)[row].argmax())
        assert below(view, f"plain / saliency, image {row}")[2:].startswith(
            ("cat", "&lt;b&gt;dog", "owl")[label]
        )
    assert not view.problems.value


def test_an_attack_and_a_method_by_functions_are_repeated_in_their_session_only(models, sample, tmp_path):
    def darker(model, x, y, eps):
        return (x - eps).clamp(0, 1)

    def ink(model, x, classes):
        return 1 - x

    study = sl.Study(models, sample, store=tmp_path).attribute(["saliency", ink]).attack(darker, eps=0.1)
    view = sl.explore(study)
    view.methods.value = ("ink",)
    view.images.value = (0,)
    view.attack.value = view.attack.options[1][1]
    assert not view.problems.value
    panel = view._panels.read(study.members[0], "ink", [0], view.attack.value)
    assert torch.equal(panel.maps, 1 - (sample[0][:1] - 0.1).clamp(0, 1))
    view = sl.explore(sl.Study(models, sample).merge(tmp_path))
    view.attack.value = view.attack.options[1][1]
    assert "is a function that this process does not have" in view.problems.value and view.picture.value == ""
    view.attack.value = ""
    assert view.picture.value and not view.problems.value


def test_maps_of_attacked_images_have_the_settings_of_the_study(models, sample, tmp_path):
    methods = {"smooth": {"method": "smoothgrad", "n": 3, "stdev": 0.3, "target": "prediction"}}
    made = sl.Study(models, sample, store=tmp_path).attribute(methods).attack("fgsm", eps=0.1)
    attacked = StudyAttack("fgsm", 0.1)
    x = sl.attack(models["plain"], *sample, "fgsm", eps=0.1).adversarial[:2]
    expected = sl.attribute(
        models["plain"], x, method="smoothgrad", n=3, stdev=0.3, target="prediction"
    ).values
    for study in (made, sl.Study(models, sample).merge(tmp_path)):
        panel = PanelSource(study).read(study.members[0], "smooth", [0, 1], attacked)
        assert torch.equal(panel.maps, expected)


def test_maps_of_attacked_images_explain_the_classes_that_the_study_explains(models, sample, tmp_path):
    classes = (sample[1] + 1) % 3
    targets = {"given": classes, "contrast": ("label", 0), "pair": (classes, "label")}
    methods = {name: {"method": "saliency", "target": target} for name, target in targets.items()}
    study = sl.Study(models, sample, store=tmp_path).attribute(methods).attack("fgsm", eps=0.1)
    rows, attacked = [1, 4], StudyAttack("fgsm", 0.1)
    x = sl.attack(models["plain"], *sample, "fgsm", eps=0.1).adversarial[rows]
    y, others = sample[1][rows], classes[rows]
    again = sl.Study(models, sample).merge(tmp_path)
    for name, target in {"given": others, "contrast": ("label", 0), "pair": (others, "label")}.items():
        expected = sl.attribute(models["plain"], x, y, "saliency", target=target).values
        panel = PanelSource(study).read(study.members[0], name, rows, attacked)
        assert torch.equal(panel.maps, expected)
        stored = PanelSource(again).read(study.members[0], name, rows, attacked)
        if name == "contrast":
            assert torch.equal(stored.maps, expected)
        else:  # a store has the hash of a tensor alone
            assert "a tensor among its settings" in stored.message


def test_a_photograph_is_overlaid_and_its_tiles_have_two_pixels_per_point():
    x = torch.rand(2, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3)).eval()
    view = sl.explore(sl.Study({"net": net}, (x, torch.tensor([0, 1]))).attribute("saliency"))
    assert view.blend.value == 0.7 and view.size.value == 12.0
    assert pictures(view)["image 0"].size == (320, 320)
    assert pictures(view)["saliency, image 0"].size == (320, 320)
    view.smooth.value = 2.0
    assert "smoothed with σ = 2 pixels" in view.picture.value
