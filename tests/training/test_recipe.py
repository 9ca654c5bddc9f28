import pytest

import saliency_lab as sl
from saliency_lab._common.errors import RecipeError, UnknownNameError
from saliency_lab.training import OBJECTIVES, load_recipe, parse_override
from saliency_lab.training.schedules import learning_rate_factor, ramp


def write(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text)
    return path


def test_every_bundled_recipe_is_valid_and_says_what_it_does():
    table = sl.list_recipes()
    assert {"mnist/standard", "mnist/sgt", "mnist/at", "mnist/asgt", "digits/asgt"} <= set(table.index)
    assert (table.description.str.len() > 10).all()


def test_digits_recipes_are_those_of_mnist_on_other_data():
    ours, theirs = load_recipe("digits/asgt"), load_recipe("mnist/asgt")
    assert ours.objective == theirs.objective
    assert ours.model == theirs.model
    assert ours.attack.eps == theirs.attack.eps


def test_extends_merges_tables_and_the_later_wins(tmp_path):
    write(tmp_path, '[data]\nname = "digits"\n[attack]\neps = 0.3\nsteps = 3', "a.toml")
    write(tmp_path, "[attack]\nsteps = 5", "b.toml")
    recipe = load_recipe(write(tmp_path, 'extends = ["a", "b"]\n[attack]\nnorm = "l2"'))
    assert (recipe.attack.eps, recipe.attack.steps, recipe.attack.norm) == (0.3, 5, "l2")
    assert recipe.name == "mine"


def test_extends_takes_bundled_recipes_and_their_parts(tmp_path):
    recipe = load_recipe(write(tmp_path, 'extends = "mnist/asgt"\n[attack]\neps = 0.3'))
    assert recipe.objective == load_recipe("mnist/asgt").objective
    assert (recipe.attack.eps, recipe.attack.warmup) == (0.3, 0.2)
    recipe = load_recipe(write(tmp_path, 'extends = ["objectives/trades", "tasks/cifar10-resnet18"]'))
    assert (recipe.objective.name, recipe.model.name, recipe.attack.eps) == ("trades", "resnet18", 0.02)


def test_another_objective_takes_none_of_the_base_keys_along(tmp_path):
    write(tmp_path, '[data]\nname = "digits"\n[objective]\nname = "sgt"\nweight = 3.0', "a.toml")
    recipe = load_recipe(write(tmp_path, 'extends = "a"\n[objective]\nname = "trades"'))
    assert recipe.objective == OBJECTIVES["trades"]()
    assert load_recipe(tmp_path / "a.toml", {"objective.name": "at"}).objective == OBJECTIVES["at"]()
    assert load_recipe(tmp_path / "a.toml", {"objective.fraction": 0.1}).objective.weight == 3.0


@pytest.mark.parametrize(
    "overrides",
    [
        {"objective.weight": 0.1, "objective.name": "sgt", "training.epochs": 2},
        {"objective.weight": 0.1, "objective": {"name": "sgt"}, "training": {"epochs": 2}},
    ],
)
def test_overrides_mean_the_same_in_any_order(overrides):
    for order in (overrides, dict(reversed(overrides.items()))):
        recipe = load_recipe("digits/standard", order)
        assert (recipe.objective.name, recipe.objective.weight, recipe.training.epochs) == ("sgt", 0.1, 2)
    assert overrides.get("objective") in (None, {"name": "sgt"})  # the caller's own is not written to


@pytest.mark.parametrize("overrides", [{"attack": 3, "attack.eps": 0.1}, {"attack.eps": 0.1, "attack": 3}])
def test_overrides_that_exclude_each_other_are_named(overrides):
    with pytest.raises(RecipeError, match=r"'attack' is set to 3, so .*eps' cannot be set too"):
        load_recipe("digits/standard", overrides)


def test_overrides_that_are_no_mapping_are_refused():
    for given in (5, [1], {1: 2}):
        for source in (load_recipe("digits/standard"), load_recipe("digits/standard").model_dump()):
            with pytest.raises(RecipeError, match="overrides"):
                load_recipe(source, given)
    for given in (["attack.eps=0.1"], []):
        with pytest.raises(RecipeError, match="overrides must be a mapping, such as"):
            sl.train("digits/standard", overrides=given)
        with pytest.raises(RecipeError, match="overrides must be a mapping, such as"):
            load_recipe("digits/standard", given)


def test_a_short_name_gets_suggestions_that_end_like_it():
    with pytest.raises(UnknownNameError, match=r"did you mean .*'digits/at' or .*'mnist/at'"):
        load_recipe("at")
    with pytest.raises(UnknownNameError, match=r"known: .* and \d+ more$") as caught:
        load_recipe("zzz")
    assert len(str(caught.value)) < 2000


def test_a_users_recipe_is_not_called_what_it_extends_is_called(tmp_path):
    write(tmp_path, 'extends = "mnist/at"\nname = "base"\ndescription = "the first"', "base.toml")
    child = load_recipe(write(tmp_path, 'extends = "base"\n[attack]\neps = 0.3', "child.toml"))
    assert (child.name, child.description) == ("child", "")
    assert child.attack.warmup == load_recipe("mnist/at").attack.warmup
    base = load_recipe(tmp_path / "base.toml")
    assert (base.name, base.description) == ("base", "the first")
    assert (
        load_recipe(write(tmp_path, 'extends = "mnist/at"')).description
        == load_recipe("mnist/at").description
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[data]\nname = "digits"\n[atack]\neps = 0.1', ["'atack'", "did you mean 'attack'"]),
        ('[data]\nname = "digits"\n[attack]\nepps = 0.1', ["'epps'", "did you mean 'eps'", "[attack]"]),
        ('[data]\nname = "digits"\n[attack]\neps = -0.1', ["attack.eps", "-0.1"]),
        ('[data]\nname = "digits"\n[attack]\neps = "8/0"', ["attack.eps", "8/0"]),
        ('[data]\nname = "digits"\n[training]\nepochs = "ten"', ["training.epochs", "integer", "'ten'"]),
        ('[data]\nname = "digits"\n[training]\nepochs = 0', ["training.epochs", "given: 0"]),
        ('[data]\nname = "digits"\n[objective]\nname = "sgtt"', ["'sgtt'", "did you mean 'sgt'"]),
        ('[data]\nname = "digits"\n[objective]\nname = "sgt"\nrank = 1', ["objective 'sgt'", "'rank'"]),
        ('[data]\nname = "digits"\n[objective]\nname = "sgt"\nranking = "abs"', ["ranking", "'absolute'"]),
        ('[data]\nname = "digits"\n[objective]\nweight = 1.0', ["objective's name"]),
        ('[data]\nname = "digits"\n[training]\npatience = 3', ["patience", "select"]),
        *(
            (f"name = '{name}'\n[data]\nname = \"digits\"", ["'name'", "must be a plain name"])
            for name in ("/tmp/there", "../there", "a/../../there", "", "C:/there", "a//b")
        ),
        ("[attack]\neps = 0.1", ["'data' must be given"]),
        ("[data\nname", ["not valid TOML"]),
        ('extends = "nowhere"', ["nowhere.toml"]),
        (
            '[data]\nname = "digits"\n[training]\nlearning_rate = 1',
            ["'learning_rate'", "optimizer.learning_rate"],
        ),
        ('[data]\nname = "digits"\n[training]\nlr = 1', ["'lr'", "write 'optimizer.learning_rate'"]),
        ('epochs = 1\n[data]\nname = "digits"', ["'epochs'", "write 'training.epochs'"]),
        ('steps = 1\n[data]\nname = "digits"', ["write 'attack.steps' or 'validation.steps'"]),
        ('[data]\nname = "digits"\n[training]\nseed = 1', ["table [training]: 'seed'; write 'seed'"]),
        ('extends = "digits/standrd"', ["standrd.toml", "did you mean 'digits/standard'?"]),
        ('extends = "tasks/mnst"', ["mnst.toml", "did you mean 'tasks/mnist'?"]),
        ('extends = "mine"', ["extends itself"]),
    ],
)
def test_a_bad_recipe_names_the_file_and_the_key(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    for word in ["mine.toml" if words != ["nowhere.toml"] else "", *words]:
        assert word in str(caught.value)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(sl.SaliencyLabError, match="unknown recipe 'mnist/agst'; did you mean 'mnist/asgt'"):
        load_recipe("mnist/agst")
    with pytest.raises(sl.SaliencyLabError, match=r"cannot read the recipe 'nowhere\.toml' \(No such file"):
        load_recipe("nowhere.toml")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("attack.eps=8/255", "attack.eps", "8/255"),
        ("training.epochs=3", "training.epochs", 3),
        ("training.channels_last=true", "training.channels_last", True),
        ("objective.ranking=random", "objective.ranking", "random"),
        ('data.name="digits"', "data.name", "digits"),
    ],
)
def test_overrides_are_toml_or_text(text, key, value):
    assert parse_override(text) == (key, value)
    with pytest.raises(RecipeError, match="key=value"):
        parse_override("attack.eps")


def test_epsilon_as_pixels_and_a_recipe_through_its_own_dump():
    recipe = load_recipe("mnist/asgt", {"attack.eps": "8/255"})
    assert recipe.attack.eps == 8 / 255
    assert load_recipe(recipe.model_dump()) == recipe
    assert load_recipe(recipe.model_dump(mode="json")) == recipe


def test_a_users_own_objective_by_module_and_attribute(tmp_path, monkeypatch):
    (tmp_path / "mine_module.py").write_text(
        "from saliency_lab.training import Objective\n"
        "class Mine(Objective):\n"
        '    name = "mine_module:Mine"\n'
        "    strength: float = 1.0\n"
        "    def terms(self, step):\n"
        '        return {"mine": self.strength * step.logits(step.x).square().mean()}\n'
        "NUMBER = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe("digits/standard", {"objective.name": "mine_module:Mine", "objective.strength": 2.0})
    assert recipe.objective.strength == 2.0
    with pytest.raises(RecipeError, match="'NUMBER' must be a subclass"):
        load_recipe("digits/standard", {"objective.name": "mine_module:NUMBER"})
    with pytest.raises(RecipeError, match="cannot import 'nowhere_at_all'"):
        load_recipe("digits/standard", {"objective.name": "nowhere_at_all:Mine"})


def test_schedules_at_their_end_points():
    assert learning_rate_factor("constant", 0.7) == 1.0
    assert learning_rate_factor("cosine", 0.0) == 1.0
    assert learning_rate_factor("cosine", 0.5) == pytest.approx(0.5)
    assert learning_rate_factor("one_cycle", 0.0) == 0.0
    assert learning_rate_factor("one_cycle", 0.3) == pytest.approx(1.0)
    assert learning_rate_factor("one_cycle", 1.0) == pytest.approx(0.0)
    assert learning_rate_factor("step", 0.49) == 1.0
    assert ramp(0.0, 0.2) == 0.0
    assert ramp(0.2, 0.2) == 1.0


@pytest.mark.parametrize("norm", ["l1", "severity"])
def test_training_refuses_a_norm_that_pgd_does_not_have(norm: str) -> None:
    with pytest.raises(RecipeError, match=r"attack\.norm"):
        load_recipe("digits/at", {"attack.norm": norm})
