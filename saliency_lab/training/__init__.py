"""Recipes, objectives and the training loop: from a recipe to a model."""

from saliency_lab.training.api import train
from saliency_lab.training.objectives import OBJECTIVES, Objective
from saliency_lab.training.recipe import Recipe, list_recipes, load_recipe, parse_override
from saliency_lab.training.step import AttackSpec, Step

__all__ = [
    "OBJECTIVES",
    "AttackSpec",
    "Objective",
    "Recipe",
    "Step",
    "list_recipes",
    "load_recipe",
    "parse_override",
    "train",
]
