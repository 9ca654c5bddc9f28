"""The networks that come with the package are the files they say, and reach what their cards say."""

from __future__ import annotations

import hashlib

import pytest

import saliency_lab as sl
from saliency_lab._common.errors import CheckpointError, DataNotFoundError
from saliency_lab.models import card_of
from saliency_lab.models.checkpoint import WEIGHTS, ZOO, zoo_names

MEGABYTES = 6


def test_the_zoo_is_small_and_of_both_tasks() -> None:
    assert {name.split("/")[0] for name in zoo_names()} == {"digits", "mnist"}
    assert sum(path.stat().st_size for path in ZOO.glob(f"*/*/{WEIGHTS}")) <= MEGABYTES * 10**6
    assert sl.list_zoo().index.tolist() == zoo_names()


@pytest.mark.parametrize("name", zoo_names())
def test_a_network_reaches_what_its_card_says(name: str) -> None:
    model = sl.load_model(name)
    card = card_of(model)
    assert card is not None
    assert hashlib.sha256((ZOO / name / WEIGHTS).read_bytes()).hexdigest() == card.sha256
    assert (card.recipe or {})["name"] == name
    try:
        data = sl.load_dataset(name.split("/")[0])
    except DataNotFoundError as error:
        pytest.skip(f"needs the data: {error}")
    images = int(card.metrics["test_images"] or 0)
    x, y = data.test.sample(images, seed=0)
    found = sl.attack(model, x, y, "pgd", eps=card.metrics["eps"], steps=40, seed=0)
    one = 1 / images  # another processor rounds otherwise: an image at the border may tip over
    assert found.clean_accuracy == pytest.approx(card.metrics["test_clean"], abs=one)
    assert found.robust_accuracy == pytest.approx(card.metrics["test_pgd40"], abs=2 * one)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = sl.build_model("lenet5", num_classes=10, input_shape=(1, 28, 28))
    sl.save_model(own, "digits/at")
    assert card_of(sl.load_model("digits/at", model=own)).architecture != "small_cnn"
    with pytest.raises(CheckpointError, match="list_zoo"):
        sl.load_model("digits/att")
