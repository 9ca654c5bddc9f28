"""What results show of themselves in Jupyter: well-formed, escaped, small, without own colours."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import saliency_lab as sl
from saliency_lab._common.html import picture, shrunk, strip
from saliency_lab.data import Split
from saliency_lab.models import ModelCard

NASTY = "<script>alert('&')</script>"
LARGEST = 400_000  # characters; a notebook with fifty of them is still one that opens


class Page(HTMLParser):
    """Checks that tags are closed in order; collects what is asked about."""

    def __init__(self, page):
        super().__init__()
        self.open, self.images, self.tags, self.text = [], [], set(), []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def colourful(count, side):
    draws = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, side, side), generator=draws, dtype=torch.uint8)


def data():
    split = Split(colourful(60, 300), torch.arange(60) % 30)
    return sl.ImageData(NASTY, split, split, split, tuple(f"{NASTY} {k}" for k in range(30)))


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 4)).eval()


def batch():
    return colourful(12, 20).float() / 255, torch.arange(12) % 4


def attributions():
    x, y = batch()

    def nan_in_one(model, x, classes, note):
        return torch.where(x > 0.99, torch.nan, x - 0.5)

    nan_in_one.__name__ = NASTY
    return sl.attribute(net(), x, y, nan_in_one, note=NASTY)


def own_attack():
    def stand_still(model, x, y, eps):
        return x

    stand_still.__name__ = NASTY
    return stand_still


def card():
    return ModelCard(
        classes=(NASTY, "b"), recipe={"name": NASTY}, metrics={NASTY: 1.0, "none": None}, created="now"
    )


def study():
    study = sl.Study({NASTY: net()}, batch()).attribute({NASTY: {"method": "saliency"}})
    return study.score("sparseness").attack("pgd", eps=0.1, steps=2)


SHOWN = {
    "data": data,
    "card": card,
    "recipe": lambda: sl.load_recipe("digits/asgt", {"description": NASTY}),
    "attributions": attributions,
    "attack": lambda: sl.attack(net(), *batch(), own_attack(), eps=0.1),
    "broken": lambda: sl.attack(net(), *batch(), "pgd", eps=0.5, steps=2),
    "curve": lambda: sl.robustness_curve(net(), *batch(), eps=(0, 0.1), steps=2),
    "audit": lambda: sl.audit(net(), *batch(), eps=0.1, steps=2),
    "map attack": lambda: sl.attack_map(
        nn.Sequential(net(), nn.ReLU(), nn.Linear(4, 4)), batch()[0], eps=0.1
    ),
    "sanity check": lambda: sl.sanity_check(net(), *batch(), ["saliency", "random"]),
    "scores": lambda: sl.evaluate_detailed(net(), *batch(), attributions().values, "sparseness"),
    "comparison": lambda: study().compare(),
    "study": study,
}


@pytest.fixture(scope="module", params=SHOWN)
def shown(request):
    return request.param, SHOWN[request.param]()._repr_html_()


def test_it_is_well_formed_and_what_users_write_is_text(shown):
    name, html = shown
    page = Page(html)
    assert "table" in page.tags and not page.tags & {"script", "style", "link"}
    if name not in {"curve", "audit", "broken", "map attack", "sanity check", "scores"}:
        assert any(NASTY in text for text in page.text)


def test_it_has_no_colours_and_asks_for_nothing_from_elsewhere(shown):
    _, html = shown
    assert "color" not in html and "background" not in html
    assert "http" not in html and len(html) < LARGEST


def test_pictures_carry_their_data_and_say_what_they_are(shown):
    name, html = shown
    images = Page(html).images
    expected = {
        "data": 12,
        "attributions": 1,
        "study": 1,
        "map attack": 3,
        "broken": min(8, len(images)),
    }.get(name, 0)
    assert len(images) == expected and (images or name != "broken")
    for image in images:
        assert len(image["alt"]) > 10 and image["src"].startswith(
            ("data:image/png;base64,", "data:image/webp;base64,")
        )
        assert max(decoded(image["src"]).size) <= 2 * (64 + 3) * 8


def decoded(src):
    return Image.open(io.BytesIO(base64.b64decode(src.split(",")[1])))


def test_thumbnails_of_photographs_have_two_pixels_per_css_pixel():
    (image,) = Page(strip(torch.rand(3, 3, 224, 224), "three photographs")).images
    assert decoded(image["src"]).size == (3 * 128 + 2 * 6, 128)
    assert "height:64px" in image["style"] and "image-rendering:auto" in image["style"]
    (image,) = Page(strip(torch.rand(3, 1, 28, 28), "three digits")).images
    assert decoded(image["src"]).size[1] == 28 and "image-rendering:pixelated" in image["style"]


def test_a_strip_holds_the_images_in_a_row():
    x = torch.zeros(2, 1, 3, 4)
    x[1] = 1.0
    image = np.asarray(decoded(Page(strip(x, "two images")).images[0]["src"]))
    assert image.shape == (3, 4 + 1 + 4, 4)
    assert (image[:, :4, :3] == 0).all() and (image[:, 5:] == 255).all()
    assert image[0, :, 3].tolist() == [255] * 4 + [0] + [255] * 4  # the gap shows the page


def test_large_images_are_made_smaller_and_small_ones_left_alone():
    assert shrunk(np.zeros((2, 100, 50, 3), np.uint8), 20).shape == (2, 20, 10, 3)
    small = np.zeros((2, 5, 50, 3), np.uint8)
    assert shrunk(small, 50) is small


def test_an_alt_text_cannot_leave_its_quotes():
    (image,) = Page(picture(np.zeros((1, 1, 3), np.uint8), '" onerror="alert(1)')).images
    assert image["alt"] == '" onerror="alert(1)' and "onerror" not in image


def test_a_data_set_counts_its_classes():
    text = " ".join(Page(sl.load_dataset("digits")._repr_html_()).text)
    assert "1,294 images" in text and "0: 128 train, 36 test" in text
