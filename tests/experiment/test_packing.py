"""Packed results: the page of a study is redrawn from one small file, without data, images or networks."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from saliency_lab._common.errors import InputError
from saliency_lab.cli.app import app
from saliency_lab.experiment import images
from saliency_lab.experiment.packing import unpack_results
from saliency_lab.experiment.schema import read_declaration
from saliency_lab.reporting.networks import trained_networks
from saliency_lab.study import Study
from saliency_lab.study.cache.store import FolderStore
from saliency_lab.training.run import LOG

TOML = """
recipes = { plain = "digits/standard", noisy = "digits/noise" }
overrides = { "training.epochs" = 2 }
seeds = [0, 1]
methods = { saliency = {}, wide = { method = "smoothgrad", n = 2, stdev = 0.3 } }
metrics = ["pixel_flipping"]

[data]
name = "digits"
images = 12

[attacks.pgd]
eps = [0.1, 0.2]
steps = 1

[[claims]]
question = "Does noise help?"
model = "noisy"
over = "plain"
metric = "robust_accuracy"
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A study's file, its page and its packed results."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "noise.toml").write_text(TOML)
    command = [
        "study",
        f"{folder / 'noise.toml'}",
        "--out",
        f"{folder / 'store'}",
        "--page",
        f"{folder / 'page'}",
    ]
    done = CliRunner().invoke(app, [*command, "--pack", f"{folder / 'noise.tar.xz'}"])
    assert done.exit_code == 0, done.output
    return folder


def without_figures(page: Path) -> str:
    """The page without its figures and the processor."""
    return re.sub(r"(?m)^(!\[.*|\*.*\*|## Figures)\n+|^- processor.*\n", "", page.read_text())


@pytest.mark.long
def test_the_page_is_redrawn_without_data_or_training(packed, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the data are not needed")

    monkeypatch.setattr(images, "load_data", never)
    command = [
        "study",
        f"{packed / 'noise.toml'}",
        "--from",
        f"{packed / 'noise.tar.xz'}",
        "--page",
        f"{tmp_path}",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    page = without_figures(tmp_path / "noise.md")
    assert page == without_figures(packed / "page" / "noise.md")
    assert "| method | wide | method = smoothgrad, n = 2, stdev = 0.3, " in page
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert {"noise-robustness-pgd.svg", "noise-learning-clean.svg", "noise-learning-robust.svg"} <= drawn
    assert not [name for name in drawn if "curves" in name]


@pytest.mark.long
def test_tables_are_equal_and_nothing_of_an_image_is_packed(packed, tmp_path):
    study, runs = unpack_results(read_declaration(packed / "noise.toml"), [packed / "noise.tar.xz"], tmp_path)
    original = Study.load(packed / "store")
    for table in ("scores", "robustness", "audits"):
        pd.testing.assert_frame_equal(getattr(study, table), getattr(original, table))
    assert study.labels == original.labels
    cards = [json.loads(path.read_text()) for path in (packed / "store").glob("models/*/model.json")]
    assert {run.card.sha256 for run in runs} == {card["sha256"] for card in cards}
    with tarfile.open(packed / "noise.tar.xz") as archive:
        names = archive.getnames()
    assert not [name for name in names if "/maps/" in name or name.endswith("model.safetensors")]
    assert study.x.is_meta and study.x.shape == original.x.shape
    assert (packed / "noise.tar.xz").stat().st_size < 40_000


@pytest.mark.long
def test_a_collapsed_seed_is_named_and_drawn_alone(packed, tmp_path):
    declared = read_declaration(packed / "noise.toml")
    study, runs = unpack_results(declared, [packed / "noise.tar.xz"], tmp_path)
    networks = trained_networks(runs, study.models)
    assert networks is not None and len(networks.notes) == 1
    (kept,) = (run for run in runs if (run.model, run.seed) == ("plain", 1))
    log = pd.read_csv(kept.folder / LOG)
    after = log.iloc[[-1]].assign(epoch=3, val_clean=0.1, val_constant_share=1.0)
    pd.concat([log, after]).to_csv(kept.folder / LOG, index=False)  # `select` kept the epoch before
    networks = trained_networks(runs, study.models)
    assert networks is not None and len(networks.notes) == 1
    log.to_csv(kept.folder / LOG, index=False)
    (run,) = (run for run in runs if (run.model, run.seed) == ("noisy", 1))
    log = pd.read_csv(run.folder / LOG)
    log.assign(val_clean=0.95, val_constant_share=1.0).to_csv(run.folder / LOG, index=False)
    networks = trained_networks(runs, study.models)
    assert networks is not None and len(networks.notes) == 1  # nearly all labels are that class
    log.assign(val_clean=0.1, val_constant_share=1.0).to_csv(run.folder / LOG, index=False)
    networks = trained_networks(runs, study.models)
    assert networks is not None and "Collapsed" in networks.notes[1] and "noisy (seed 1)" in networks.notes[1]
    (ax,) = networks.figures[0].draw().axes
    alone = [line.get_ydata().tolist() for line in ax.lines if line.get_label() == "_seeds"]
    assert len(alone) == 2 and [0.1, 0.1] in alone
    assert len(ax.collections) == 1  # the band of the other model
    (run.folder / LOG).unlink()  # a network whose log was lost has no curve
    networks = trained_networks(runs, study.models)
    assert networks is not None and [row[7].text for row in networks.table.rows].count("") == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"training.epochs" = 2',
            '"training.epochs" = 3',
            "'plain' .seed 0. that was trained by another",
        ),
        ("Does noise help?", "Does it?", "results of another study, or of this one before"),
        ("noisy", "loud", "results of another study, or of this one before"),
        ("images = 12", "images = 20", "images = 12, and the study declares images = 20"),
        ("images = 12", 'images = 12\nsplit = "val"', "split = 'test', and the study declares split = 'val'"),
        ("seeds = [0, 1]", "seeds = [0, 1]\nseed = 7", "seed = 0, and the study declares seed = 7"),
        ("seeds = [0, 1]", "seeds = [0]", "with seed 1, which the study does not declare"),
    ],
)
def test_results_of_another_study_are_refused(packed, tmp_path, old, new, message):
    (tmp_path / "other.toml").write_text(TOML.replace(old, new))
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(InputError, match=message):
        unpack_results(
            read_declaration(tmp_path / "other.toml"), [packed / "noise.tar.xz"], tmp_path / "unpacked"
        )


@pytest.mark.long
def test_a_damaged_file_is_refused(packed, tmp_path):
    declared = read_declaration(packed / "noise.toml")
    content = bytearray((packed / "noise.tar.xz").read_bytes())
    content[len(content) // 2] ^= 1
    for name, damaged in {"bit": content, "half": content[: len(content) // 2], "empty": b""}.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read"):
            unpack_results(declared, [tmp_path / name], tmp_path / f"{name}-unpacked")
    with pytest.raises(InputError, match="cannot be read"):
        unpack_results(declared, [tmp_path / "missing"], tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "../outside"},
        {"name": "/outside"},
        {"name": "link", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    ],
)
def test_a_hostile_file_writes_nothing(tmp_path, entry):
    study = tmp_path / "noise.toml"
    study.write_text(TOML)
    with tarfile.open(tmp_path / "hostile.tar.xz", "w:xz") as archive:
        info = tarfile.TarInfo()
        for key, value in entry.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b""))
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(InputError, match="no file of packed results"):
        unpack_results(read_declaration(study), [tmp_path / "hostile.tar.xz"], target)
    assert not list(target.iterdir()) and not (tmp_path / "deep" / "outside").exists()


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["notes.txt", "study.json"])
def test_a_file_of_something_else_is_named_as_such(tmp_path, name):
    (tmp_path / "noise.toml").write_text(TOML)
    (tmp_path / "target").mkdir()
    other = write_archive(tmp_path / "other.tar.xz", {name: b"{}"})
    with pytest.raises(
        InputError, match=r"'.*other.tar.xz' is no file of packed results: it has no readable"
    ):
        unpack_results(read_declaration(tmp_path / "noise.toml"), [other], tmp_path / "target")


@pytest.mark.long
@pytest.mark.parametrize("written", [b"zz", b"[1]", b"\xff"])
def test_what_a_file_says_of_its_images_may_be_damaged(packed, tmp_path, written):
    with tarfile.open(packed / "noise.tar.xz") as archive:
        files = {each.name: archive.extractfile(each).read() for each in archive.getmembers()}
    assert "sample.json" in files
    damaged = write_archive(tmp_path / "damaged.tar.xz", files | {"sample.json": written})
    (tmp_path / "target").mkdir()
    with pytest.raises(InputError, match=r"'.*damaged.tar.xz' is no file of packed results: its sample.json"):
        unpack_results(read_declaration(packed / "noise.toml"), [damaged], tmp_path / "target")


def study_in_shell(*options: str | Path) -> str:
    done = CliRunner().invoke(app, ["study", *map(str, options)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.long
def test_parts_of_several_machines_give_the_page_of_one(packed, tmp_path):
    """Each part is computed in a store of its own; they are joined in another order than the study's."""
    study = packed / "noise.toml"
    for name, options in {"b": ["--seeds", "1"], "a": ["--seeds", "0"]}.items():
        output = study_in_shell(
            study, "--out", tmp_path / name, *options, "--pack", tmp_path / f"{name}.tar.xz"
        )
        assert "could not be" not in output
    parts = ["--from", tmp_path / "b.tar.xz", "--from", tmp_path / "a.tar.xz"]
    study_in_shell(study, *parts, "--page", tmp_path, "--pack", tmp_path / "both.tar.xz")
    whole = without_figures(packed / "page" / "noise.md")
    seconds = re.compile(r"\| \d+ \| `")  # of training
    assert seconds.sub("", without_figures(tmp_path / "noise.md")) == seconds.sub("", whole)
    assert "incomplete" not in whole
    study_in_shell(study, "--from", tmp_path / "both.tar.xz", "--page", tmp_path / "again")
    assert (tmp_path / "again" / "noise.md").read_bytes() == (tmp_path / "noise.md").read_bytes()


@pytest.mark.long
def test_a_part_says_what_it_lacks(packed, tmp_path):
    study, part = packed / "noise.toml", tmp_path / "part.tar.xz"
    options = ["--only", "noisy", "--seeds", "1", "--out", tmp_path / "store"]
    plan = study_in_shell(study, *options, "--plan")
    assert "6 of 6 are missing" in plan and "cannot see where to go" not in plan
    study_in_shell(study, *options, "--pack", part, "--page", tmp_path)
    written = (tmp_path / "noise.md").read_text()
    assert "**This page is incomplete.** There are no results here of plain, noisy (seed 0), which" in written
    assert (
        "No answer: nothing that was measured answers the claim 'Does noise help?'. Not measured: plain."
        in written
    )
    assert written.splitlines()[2].startswith("1 model, on 12 test images")
    study_in_shell(study, "--from", part, "--page", tmp_path / "again")
    first = without_figures(tmp_path / "noise.md")
    assert " --page DIR --only noisy --seeds 1\n" in first  # a packed part does not know its options
    assert without_figures(tmp_path / "again" / "noise.md") == first.replace(" --only noisy --seeds 1", "")


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "noise"], "unknown model of the study: 'noise'; did you mean 'noisy'?"),
        (["--seeds", "2"], "no network is trained with seed 2 here; declared seeds: 0, 1"),
        (["--only", ","], "--only must name models of the study"),
        (["--only", "noisy", "--from", "a"], "--only and --seeds choose what is computed"),
        (["--seeds", "one"], "--seeds must be whole numbers such as 0,1,2, not 'one'"),
    ],
)
def test_a_part_that_is_not_declared_is_refused(tmp_path, options, message):
    (tmp_path / "noise.toml").write_text(TOML)
    for wanted in ([], ["--plan"]):
        command = ["study", f"{tmp_path / 'noise.toml'}", "--out", f"{tmp_path / 'store'}", *options, *wanted]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2 and message in " ".join(done.output.split())
    assert not (tmp_path / "store").exists()


@pytest.mark.long
def test_another_network_of_the_same_recipe_and_seed_is_refused(packed, tmp_path):
    with tarfile.open(packed / "noise.tar.xz") as archive:
        archive.extractall(tmp_path / "other", filter="data")
    store = FolderStore(tmp_path / "other")
    listed = store.read_manifest()
    assert listed is not None
    changed = [
        each._replace(weights=each.weights[::-1]) if each[:2] == ("plain", 1) else each
        for each in listed.members
    ]
    store.write_manifest(listed.model_copy(update={"members": changed}))
    with tarfile.open(tmp_path / "other.tar.xz", "w:xz") as archive:
        for path in filter(Path.is_file, (tmp_path / "other").rglob("*")):
            archive.add(path, path.relative_to(tmp_path / "other"))
    files = [packed / "noise.tar.xz", tmp_path / "other.tar.xz"]
    (tmp_path / "target").mkdir()
    with pytest.raises(InputError, match=r"'plain' \(seed 1\) is another network in '.*other.tar.xz'"):
        unpack_results(read_declaration(packed / "noise.toml"), files, tmp_path / "target")


GIVEN = """
recipes = ["digits/standard"]
overrides = { "training.epochs" = 1, "validation.images" = 10, "validation.steps" = 1 }
methods = ["saliency"]
metrics = ["sparseness"]

[data]
name = "digits"
images = 10

[models]
given = ["digits/at", "digits/sgt"]

[audits.fgsm]
eps = 0.1
images = 10
"""


@pytest.mark.long
def test_parts_of_a_study_with_finished_networks_are_joined_in_any_order(tmp_path):
    study = tmp_path / "given.toml"
    study.write_text(GIVEN)
    for name in ("standard", "given"):
        pack = tmp_path / f"{name}.tar.xz"
        study_in_shell(
            study, "--only", name, "--out", tmp_path / name, "--pack", pack, "--page", tmp_path / name
        )
    alone = (tmp_path / "standard" / "given.md").read_text()
    assert "There are no results here of given" in alone and "What was given" not in alone
    pages = []
    for names in (("standard", "given"), ("given", "standard")):
        parts = [each for name in names for each in ("--from", tmp_path / f"{name}.tar.xz")]
        study_in_shell(study, *parts, "--page", tmp_path / names[0])
        pages.append((tmp_path / names[0] / "given.md").read_text())
    assert pages[0] == pages[1] and "digits/sgt" in pages[0]
    assert "points were transferred to standard from none; given from given." in pages[0]


FINISHED = """
[data]
name = "digits"
images = 8

[models]
standard = "digits/standard"
at = ["digits/at", "digits/asgt"]

[methods]
few = { method = "smoothgrad", n = 2, stdev = 0.1 }

[metrics]
sparseness = {}
"""


def test_what_changed_since_it_was_packed_is_refused(tmp_path):
    """Maps are not packed, so their settings are; parts of other settings must not be compared."""
    study, changed = tmp_path / "few.toml", tmp_path / "changed.toml"
    study.write_text(FINISHED)
    study_in_shell(study, "--only", "standard", "--out", tmp_path / "a", "--pack", tmp_path / "a.tar.xz")
    study_in_shell(study, "--from", tmp_path / "a.tar.xz", "--page", tmp_path)
    page = (tmp_path / "few.md").read_text()
    assert "| method | few | method = smoothgrad, n = 2, stdev = 0.1, " in page
    for old, new, message in (
        (
            "n = 2",
            "n = 5",
            "with methods.few.settings.n = 2, and the study declares methods.few.settings.n = 5",
        ),
        ("few =", "many =", "with methods.many.method = None"),
        ("[data]", "compact_maps = true\n[data]", "methods.few.stored as = None, and the study declares"),
        (
            '"digits/asgt"]',
            '"digits/sgt"]',
            "models.at = ['digits/at', 'digits/asgt'], and the study declares",
        ),
        (', "digits/asgt"', "", "models.at = ['digits/at', 'digits/asgt'], and the study declares"),
    ):
        changed.write_text(FINISHED.replace(old, new))
        done = CliRunner().invoke(app, ["study", str(changed), "--from", str(tmp_path / "a.tar.xz")])
        assert done.exit_code == 2 and message in " ".join(done.output.split()), (new, done.output)


def test_a_study_with_masks_is_packed_joined_and_redrawn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_networks.py").write_text(
        "import math\n\nfrom torch import nn\n\n\ndef make(num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))\n"
    )
    study = tmp_path / "masks.toml"
    study.write_text(
        'methods = ["saliency"]\nmetrics = ["pointing_game"]\n[data]\nname = "planted"\nimages = 8\n'
        '[models]\none = "own_networks:make"\ntwo = "own_networks:make"'
    )
    for name in ("one", "two"):
        options = ["--only", name, "--out", tmp_path / name, "--pack", tmp_path / f"{name}.tar.xz"]
        study_in_shell(study, "--trust", *options)
    parts = ["--from", tmp_path / "one.tar.xz", "--from", tmp_path / "two.tar.xz"]
    study_in_shell(study, "--trust", *parts, "--page", tmp_path, "--pack", tmp_path / "both.tar.xz")
    study_in_shell(study, "--trust", "--from", tmp_path / "both.tar.xz", "--page", tmp_path / "again")
    page = (tmp_path / "masks.md").read_text()
    assert "pointing_game" in page and "| method | saliency |" in page
    assert (tmp_path / "again" / "masks.md").read_text() == page


def test_parts_computed_in_one_store_stay_listed(tmp_path):
    study = tmp_path / "few.toml"
    study.write_text(FINISHED)
    for name in ("standard", "at"):
        study_in_shell(study, "--only", name, "--out", tmp_path / "store")
    assert set(Study.load(tmp_path / "store").models) == {"standard", "at"}
    study_in_shell(study, "--out", tmp_path / "store")
    assert set(Study.load(tmp_path / "store").models) == {"standard", "at"}


def test_audits_of_parts_by_seeds_say_what_points_were_transferred_from(packed, tmp_path):
    """One seed of a recipe has no other seed of it to be attacked from."""
    study = tmp_path / "noise.toml"
    study.write_text(TOML + "\n[audits.fgsm]\neps = 0.1\nimages = 10\n")
    for seed in ("0", "1"):
        options = ["--seeds", seed, "--out", packed / "store", "--pack", tmp_path / f"{seed}.tar.xz"]
        study_in_shell(study, *options)
    parts = ["--from", tmp_path / "0.tar.xz", "--from", tmp_path / "1.tar.xz"]
    study_in_shell(study, *parts, "--page", tmp_path)
    page = (tmp_path / "noise.md").read_text()
    assert "points were transferred to plain from noisy; noisy from plain." in page


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [("steps = 3", "steps = 2", "steps = 3"), ("images = 4", "images = 6", "images = 4")],
)
def test_audits_with_different_settings_are_not_joined(tmp_path, old, new, differs):
    """The networks that points are transferred from differ from part to part, and nothing else may."""
    study, audit = tmp_path / "few.toml", "\n[audits.pgd]\neps = 0.1\nsteps = 3\nimages = 4\n"
    for name, text in (("standard", audit), ("at", audit.replace(old, new))):
        study.write_text(FINISHED + text)
        study_in_shell(study, "--only", name, "--out", tmp_path / name, "--pack", tmp_path / f"{name}.tar.xz")
    parts = ["--from", f"{tmp_path / 'standard.tar.xz'}", "--from", f"{tmp_path / 'at.tar.xz'}"]
    done = CliRunner().invoke(app, ["study", f"{study}", *parts, "--page", f"{tmp_path}"])
    message = " ".join(done.output.split())
    assert (
        done.exit_code == 2 and f"'audit of pgd, ε = 0.1' was run on 'standard' with {differs} and" in message
    )
