"""Keyword settings, validated: a misspelt or ill-typed one is an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import isabstract
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, field_validator

from saliency_lab._common.arguments import shown
from saliency_lab._common.checks import check_seed, parse_epsilon
from saliency_lab._common.errors import InputError, UnknownNameError, unknown_name

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

LARGEST_COUNT = 10**8
"""The largest whole number that a setting may be, other than a seed."""


class ClearErrors(ModelMetaclass):
    """Make a call of the class raise an `InputError` that names the field, in place of pydantic's error."""

    def __call__(cls, *given: Any, **fields: Any) -> Any:
        """Make an instance."""
        model = cast("type[BaseModel]", cls)
        if not given:
            _check_keys(model, fields, cls.__name__)
        try:
            return super().__call__(*given, **fields)
        except ValidationError as error:
            raise InputError(f"{cls.__name__}: {_describe(error, model)}") from None


class Settings(BaseModel, metaclass=ClearErrors):
    """Base of every settings model: its fields are the keyword settings that are accepted.

    Settings are immutable. An unknown key is an error, and so is a value of another type than the field's, a
    number that is not finite, and a count above 10⁸.

    Examples
    --------
    >>> class Smoothing(Settings):
    ...     stdev: float = 0.1
    >>> Smoothing(stdev=0.2)
    Smoothing(stdev=0.2)
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @field_validator("*", mode="after", check_fields=False)
    @classmethod
    def _not_too_large(cls, value: Any, field: ValidationInfo) -> Any:
        """Refuse a count for which neither time nor memory would suffice."""
        if field.field_name == "seed" and value is not None:
            return check_seed(value)
        if isinstance(value, int) and abs(value) > LARGEST_COUNT:
            raise ValueError(
                f"must be at most {LARGEST_COUNT:,}, not {value:,}: so many numbers of 4 bytes take "
                f"{4 * abs(value) / 1e9:,.0f} GB of memory"
            )
        return value


Epsilon = Annotated[float, BeforeValidator(parse_epsilon)]
"""A perturbation size ≥ 0 in image units; text such as "8/255" is accepted."""


def _parse_positive(value: float | str) -> float:
    number = parse_epsilon(value, name="the value")
    if number == 0:
        raise InputError(f'the value must be > 0, such as 0.1 or "8/255", not {value!r}')
    return number


PositiveEpsilon = Annotated[float, BeforeValidator(_parse_positive)]
"""A perturbation size > 0 in image units; text such as "8/255" is accepted."""

S = TypeVar("S", bound=BaseModel)


def parse_settings(model: type[S], given: Mapping[str, Any], *, of: str) -> S:
    """Validate `given` against a settings model; `of` names what they belong to, for the error.

    Raises
    ------
    InputError
        Names the key, what was given, and what would do.
    """
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{of}: settings must be names with values, not {shown(given)}")
    _check_keys(model, given, of)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise InputError(f"{of}: {_describe(error, model)}") from None


def list_settings(model: type[BaseModel]) -> str:
    """Write the keywords of a settings model with their defaults, for a table.

    >>> class Steps(Settings):
    ...     steps: int = 28
    >>> list_settings(Steps)
    'steps=28'
    """
    return ", ".join(
        key if field.is_required() else f"{key}={field.get_default(call_default_factory=True)!r}"
        for key, field in model.model_fields.items()
    )


def as_keywords(settings: Mapping[str, Any]) -> str:
    """Write settings on one line, as they are given in a call.

    >>> as_keywords({"steps": 2, "loss": "ce"})
    "steps=2, loss='ce'"
    """
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())


_ELSEWHERE = {
    "alpha": "step_size",
    "iterations": "steps",
    "lr": "learning_rate",
    "n_iter": "steps",
    "nt_samples": "n",
    "n_samples": "n",
    "num_samples": "n",
    "stdevs": "stdev",
    "sigma": "stdev",
    "sliding_window_shapes": "window",
    "strides": "stride",
    "nr_runs": "runs",
    "nr_samples": "samples",
    "perturb_baseline": "baseline",
    "perturb_radius": "radius",
    "target_layer": "layer",
    "target_layers": "layer",
}
"""Names of settings in PyTorch, Captum, Quantus, pytorch-grad-cam and torchattacks, and the names here."""


def _check_keys(
    model: type[BaseModel], given: Mapping[str, Any], of: str, whole: type[BaseModel] | None = None
) -> None:
    """Refuse unknown keys, also in nested tables, with the place that has them or the nearest known one.

    `whole` is the outermost model; none: `model` itself.
    """
    whole = whole or model
    aliases = {field.alias for field in model.model_fields.values()}
    for key, value in given.items():
        if key in aliases:
            continue
        if key not in model.model_fields:
            if model.model_config.get("extra") == "allow":
                continue
            meant = _ELSEWHERE.get(key, "")
            if meant in model.model_fields:
                raise UnknownNameError(f"unknown setting of {of}: '{key}'; it is called '{meant}' here")
            if model is not whole and key in whole.model_fields:
                raise UnknownNameError(
                    f"unknown setting of {of}: '{key}'; write '{key}' on its own, above the first [table]"
                )
            for name in (key, meant):
                if places := _places_of(whole, name):
                    listed = " or ".join(map(repr, places))
                    raise UnknownNameError(f"unknown setting of {of}: '{key}'; write {listed}")
            if not model.model_fields:
                raise UnknownNameError(f"unknown setting of {of}: '{key}'; it has no settings")
            raise unknown_name(f"setting of {of}:", key, model.model_fields)
        inner = _table_of(model, key)
        if inner is not None and isinstance(value, Mapping):
            _check_keys(inner, value, f"{of}, table [{key}]", whole)
        element = _as_table(next(iter(get_args(model.model_fields[key].annotation)), None))
        if element is not None and isinstance(value, list):
            for each in value:
                if isinstance(each, Mapping):
                    _check_keys(element, each, f"{of}, table [[{key}]]", whole)


def _table_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Return the model of the table `key`; none for a plain value, and where a name in it picks the class."""
    return _as_table(model.model_fields[key].annotation)


def _as_table(annotation: Any) -> type[BaseModel] | None:
    """Return an annotation that is the model of a table; None for any other."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and not isabstract(annotation):
        return annotation
    return None


def _places_of(model: type[BaseModel], key: str) -> list[str]:
    """Return the places inside `model` that have a setting `key`, written with dots, the outermost first."""
    places = [key] if key in model.model_fields else []
    for name in model.model_fields:
        if (inner := _table_of(model, name)) is not None:
            places += [f"{name}.{place}" for place in _places_of(inner, key)]
    return places


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Write one clause per problem: the dotted key, the reason, and the value that was given."""
    clauses: dict[str, str] = {}
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if not _is_alternative(part))
        if problem["type"] == "missing":
            summaries = [(base.__doc__ or "").strip().partition("\n")[0] for base in model.__mro__]
            about = next((f": {text}" for text in summaries if f"`{key}`" in text), "")
            field = model.model_fields.get(key)
            tensor = field is not None and "Tensor" in f"{field.annotation}"
            clauses[key] = f"'{key}' must be given{about.removesuffix('.')}" + (
                f" (it is a tensor, so it can only be given in Python, as {key}=…)" if tensor else ""
            )
            continue
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("dict_type", "model_type"):
            reason = "Input should be a table of names and values"
        if key in clauses:  # another type that would have done
            before, bracket, given = clauses[key].partition(" (given: ")
            clauses[key] = f"{before} or {reason.removeprefix('Input should be ')}{bracket}{given}"
            continue
        given = "" if problem["type"] == "value_error" else f" (given: {shown(problem['input'])})"
        clauses[key] = f"'{key}': {reason}{given}" if key else f"{reason}{given}"
    return "; ".join(clauses.values())


def _is_alternative(part: int | str) -> bool:
    """Return whether a part of a problem's place is not a key but one of the types that were tried."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool"))
