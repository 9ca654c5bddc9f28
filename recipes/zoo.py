"""Train, measure and write the networks that come with the package: `python recipes/zoo.py`.

Finished runs under runs/zoo are read, not trained again. MNIST's files are looked for as `load_dataset` does.
"""

from __future__ import annotations

from pathlib import Path

import saliency_lab as sl
from saliency_lab.models import card_of
from saliency_lab.models.checkpoint import ZOO

NAMES = {
    "digits": ["standard", "sgt", "at", "asgt"],
    "mnist": ["standard", "sgt", "sgt_random", "at", "asgt"],
}
IMAGES, STEPS = 300, 40


def main() -> None:
    """Train, measure and write each."""
    for task, objectives in NAMES.items():
        data = sl.load_dataset(task)
        x, y = data.test.sample(IMAGES, seed=0)
        for objective in objectives:
            name = f"{task}/{objective}"
            model = sl.train(name, data, seed=0, out=Path("runs/zoo") / name)
            card = card_of(model)
            assert card is not None
            eps = sl.load_recipe(name).attack.eps
            found = sl.attack(model, x, y, "pgd", eps=eps, steps=STEPS, seed=0)
            measured = {
                "test_clean": found.clean_accuracy,
                f"test_pgd{STEPS}": found.robust_accuracy,
                "eps": eps,
                "test_images": IMAGES,
            }
            card = card.model_copy(update={"metrics": {**card.metrics, **measured}})
            sl.save_model(model, ZOO / name, card)
    print(sl.list_zoo().to_string())


if __name__ == "__main__":
    main()
