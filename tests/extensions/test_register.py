"""A user's own objects: registered, by `module:attribute`, and as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import Field
from torch import nn

import saliency_lab as sl
from saliency_lab._common import registry
from saliency_lab._common.errors import InputError

PACKAGE = Path(__file__).parent / "example_package"

STUDY = """
seeds = [0]
methods = ["blurred_gradient"]
metrics = ["centre", "sparseness"]

[data]
name = "few_digits"
images = 12

[recipes.squeezed]
recipe = "squeezed.toml"

[attacks.bright]
attack = "saliency_lab_example:brighten"
eps = [0.1]
share = 0.5
"""

RECIPE = """
name = "squeezed"

[data]
name = "few_digits"
val_fraction = 0.1

[model]
name = "linear"

[objective]
name = "squeeze"
weight = 0.02

[training]
epochs = 1
"""


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


def grow(model, x, classes, factor: float = 2.0):
    return x * factor


def mean_of(model, x, y, maps, scale: float = 1.0):
    return scale * maps.mean((1, 2, 3))


def nothing(model, x, y, eps, times: int = 1):
    return x


@pytest.mark.usefixtures("unregistered")
def test_a_name_an_import_and_the_object_give_the_same(net, images, tmp_path, monkeypatch):
    x, y = images
    (tmp_path / "mine_too.py").write_text(
        "def grow(model, x, classes, factor: float = 2.0):\n    return x * factor\n"
    )
    monkeypatch.chdir(tmp_path)
    sl.register("method", "grown")(grow)
    maps = [sl.attribute(net, x, y, given, factor=3.0) for given in ("grown", grow, "mine_too:grow")]
    assert [each.method for each in maps] == ["grown", "grown", "grow"]
    assert all(torch.equal(each.values, x * 3) for each in maps)
    assert all(each.settings == {"factor": 3.0} for each in maps)


@pytest.mark.usefixtures("unregistered")
def test_settings_are_validated_from_the_signature(net, images):
    x, y = images
    for given in (grow, sl.register("method", "grown")(grow), "grown"):
        with pytest.raises(InputError, match="'facter'; did you mean 'factor'"):
            sl.attribute(net, x, y, given, facter=3.0)
        with pytest.raises(InputError, match=r"'factor'.*valid number"):
            sl.attribute(net, x, y, given, factor="much")
    with pytest.raises(InputError, match="'scael'; did you mean 'scale'"):
        sl.evaluate(net, x, y, x, mean_of, scael=2.0)
    with pytest.raises(InputError, match="'tims'; did you mean 'times'"):
        sl.attack(net, x, y, nothing, eps=0.1, tims=2)
    assert torch.equal(
        torch.as_tensor(sl.evaluate(net, x, y, x, mean_of, scale=2.0)).float(), 2 * x.mean((1, 2, 3))
    )


@pytest.mark.usefixtures("unregistered")
def test_a_settings_model_may_be_given(net, images):
    class Positive(sl.Settings):
        factor: float = Field(1.0, gt=0)

    sl.register("method", "positive", settings=Positive)(grow)
    with pytest.raises(InputError, match="greater than 0"):
        sl.attribute(net, *images, "positive", factor=-1.0)


@pytest.mark.usefixtures("unregistered")
def test_a_function_of_any_keyword_is_given_all(net, images):
    def free(model, x, classes, **more):
        return x * more["factor"]

    assert torch.equal(sl.attribute(net, *images, free, factor=4.0).values, images[0] * 4)


@pytest.mark.usefixtures("unregistered")
def test_a_metric_of_known_direction_has_a_best_model(net, images):
    study = sl.Study({"a": net, "b": nn.Sequential(nn.Flatten(), nn.Linear(16, 3))}, images)
    study.attribute("input_x_gradient").score({"plain": {"metric": mean_of}})
    assert set(study.compare().table()["rank"]) == {""}
    sl.register("metric", "directed", better="higher")(mean_of)
    study.score("directed")
    table = study.compare().table()
    assert "best" in set(table[table["metric"] == "directed"]["rank"])


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize(
    ("arguments", "keywords", "words"),
    [
        (("mehtod",), {}, "did you mean 'method'"),
        (("method", "a:b"), {}, "without a colon"),
        (("method", ""), {}, "without a colon"),
        (("method",), {"better": "higher"}, "for metrics only"),
        (("metric",), {"better": "upper"}, "higher"),
        (("model",), {"settings": sl.Settings}, "for a method, a metric or an attack"),
        (("method",), {"settings": dict}, "subclass of saliency_lab.Settings"),
        (("method", "saliency"), {}, "registered already"),
    ],
)
def test_a_wrong_registration_is_refused(arguments, keywords, words):
    sl.list_methods()  # the built-in names are known from here on
    with pytest.raises(InputError, match=words):
        sl.register(*arguments, **keywords)(grow)


@pytest.mark.usefixtures("unregistered")
def test_a_name_is_registered_once_but_a_module_may_be_reloaded():
    sl.register("method", "again")(grow)
    sl.register("method", "again")(grow)
    with pytest.raises(InputError, match="registered already"):
        sl.register("method", "again")(mean_of)


@pytest.mark.usefixtures("unregistered")
def test_what_is_registered_is_listed():
    sl.register("method", "my_method")(grow)
    sl.register("metric", "my_metric", better="lower")(mean_of)
    sl.register("attack", "my_attack")(nothing)
    assert sl.list_methods().loc["my_method", "settings"] == "factor=2.0"
    assert sl.list_metrics().loc["my_metric", "better"] == "lower"
    assert "times=1" in sl.list_attacks().loc["my_attack", "settings"]


@pytest.mark.usefixtures("unregistered")
def test_models_and_data_sets_of_any_form(images):
    data = sl.load_dataset("digits")
    sl.register("dataset", "mine")(data)
    assert sl.load_dataset("mine") is data and sl.load_dataset(data) is data
    assert sl.list_datasets().loc["mine", "found"] == "registered"
    with pytest.raises(InputError, match="'root' has no effect on your own data set 'mine'"):
        sl.load_dataset("mine", root="somewhere")

    def tiny(num_classes, input_shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], num_classes))

    sl.register("model", "tiny")(tiny)
    built = sl.build_model("tiny", num_classes=3, input_shape=(1, 4, 4))
    assert built(images[0]).shape == (4, 3) and "tiny" in sl.list_models().index
    with pytest.raises(InputError, match="normalises inside"):
        sl.build_model("tiny", num_classes=3, input_shape=(1, 4, 4), mean=0.5)
    sl.register("model", "needy")(lambda depth: nn.Identity())
    with pytest.raises(InputError, match="'needy' cannot be called with num_classes and input_shape alone"):
        sl.build_model("needy")


@pytest.mark.usefixtures("unregistered")
def test_a_model_trained_by_registered_names_is_read_again(tmp_path, digits):
    sl.register("model", "tiny")(
        lambda num_classes, input_shape: nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))
    )
    changes = {"model.name": "tiny", "training.epochs": 1}
    net = sl.train("digits/standard", digits, overrides=changes, out=tmp_path / "run")
    read = sl.load_model(tmp_path / "run")
    x, _ = digits.test.sample(3, seed=0)
    assert torch.equal(net(x), read(x))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example package is installed."""
    target = tmp_path_factory.mktemp("installed")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(target), str(PACKAGE)], check=True)
    root = str(Path(sl.__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(target), root]), "SALIENCY_LAB_PROGRESS": "0"}


def _run(environment: dict[str, str], folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_package_is_found_in_python_in_the_shell_and_in_a_study(installed, tmp_path):
    code = """
import json, saliency_lab as sl
lists = [sl.list_methods(), sl.list_metrics(), sl.list_attacks(), sl.list_datasets(), sl.list_models()]
print(json.dumps([sorted(table.index) for table in lists]))
"""
    names = [set(each) for each in json.loads(_run(installed, tmp_path, "-c", code))]
    assert all(
        name in listed
        for name, listed in zip(
            ("blurred_gradient", "centre", "brighten", "few_digits", "linear"), names, strict=True
        )
    )
    shell = ("-m", "saliency_lab.cli")
    chosen = (
        "--method",
        "blurred_gradient",
        "--metric",
        "centre",
        "--set",
        "centre.border=3",
        "--images",
        "8",
    )
    _run(installed, tmp_path, *shell, "score", "digits/at", *chosen)
    _run(
        installed,
        tmp_path,
        *shell,
        "attribute",
        "digits/at",
        "--method",
        "saliency_lab_example:blurred_gradient",
        "--images",
        "8",
        "--rows",
        "2",
    )
    _run(
        installed,
        tmp_path,
        *shell,
        "attack",
        "digits/at",
        "--method",
        "brighten",
        "--eps",
        "0.1",
        "--images",
        "8",
    )
    (tmp_path / "squeezed.toml").write_text(RECIPE)
    (tmp_path / "study.toml").write_text(STUDY)
    _run(installed, tmp_path, *shell, "study", "study.toml", "--trust", "--out", "store")
    _run(installed, tmp_path, *shell, "report", "store")
    page = (tmp_path / "store" / "report.html").read_text(encoding="utf-8")
    assert "blurred gradient" in page and "centre" in page and "bright" in page
