"""The whole job on an embedded data set, small enough for minutes on a laptop."""

from __future__ import annotations

from pathlib import Path

from saliency_lab.data import load_dataset
from saliency_lab.plotting.style import save
from saliency_lab.study.study import Study
from saliency_lab.training import train

RECIPES = ("standard", "sgt", "at", "asgt")
METHODS = ("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad")
METRICS = ("faithfulness_correlation", "pixel_flipping", "sparseness")
EPS = (0.05, 0.1, 0.15, 0.2, 0.25)
IMAGES = 200


def run_demo(out: str | Path) -> tuple[Study, list[Path]]:
    """Train four recipes on the digits, attribute, score, attack; return the study and the files written.

    Everything is kept under `out`; a second call reads it.
    """
    out = Path(out)
    data = load_dataset("digits")
    models = {name: train(f"digits/{name}", data, seed=0, out=out / "models" / name) for name in RECIPES}
    study = Study(models, data.test.sample(IMAGES, seed=0), store=out)
    study.attribute(METHODS).score(METRICS).attack("pgd", eps=EPS, steps=40)
    comparison = study.compare(baseline="standard")
    written = study.write_tables()
    figures = {
        "maps": comparison.plot.maps(n=6),
        "robustness": comparison.plot.robustness(),
        "tradeoff": comparison.plot.tradeoff("robust_accuracy", "sparseness", eps=0.2),
    }
    for name, figure in figures.items():
        save(figure, out / f"{name}.png")
        written.append(out / f"{name}.png")
    return study, written
