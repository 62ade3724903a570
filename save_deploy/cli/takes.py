"""Commands that take an options dataclass: its fields become command-line options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from save_deploy.errors import SaveDeployError
from save_deploy.options import KEY, Option

Verb = Callable[..., None]


def takes(options: type, *, leave_out: Sequence[str] = ()) -> Callable[[Verb], Verb]:
    """Convert verb(options, **own) to a command with an option for each field of the dataclass.

    The verb's own parameters follow. Nested dataclasses are flattened; their fields are named
    `calibration.table`, as in leave_out. A field without an option keeps its default. Raises
    SaveDeployError for an option without those it needs, or together with one it excludes.
    """
    fields = {path: f for path, f in _fields(options) if path not in leave_out}
    parameters = [_parameter(path, *f) for path, f in fields.items()]

    def decorate(verb: Verb) -> Verb:
        own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

        @functools.wraps(verb)
        def command(**given: Any) -> None:
            context = given.pop("ctx")
            values = {path: given.pop(_name(path, how)) for path, (how, _, _) in fields.items()}
            _check(context, {path: how for path, (how, _, _) in fields.items()})
            verb(_build(options, values, fields), **given)

        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        made = [context, *parameters, *own]
        command.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in made}  # Typer reads both
        return command

    return decorate


Field = tuple[Option, Any, Any]  # option, type, default


def _fields(options: type, prefix: str = "") -> Iterator[tuple[str, Field]]:
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kind, path = hints[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kind) and KEY not in field.metadata:
            yield from _fields(typing.cast(type, kind), f"{path}.")
        elif KEY in field.metadata:
            yield path, (field.metadata[KEY], kind, field.default)


def typer_option(field: Any, kind: Any) -> Any:
    """Return Typer's description of a field made by option(), for a parameter of this type."""
    return _typer_info(field.metadata[KEY], kind, field.default)


def _parameter(path: str, how: Option, kind: Any, default: Any) -> inspect.Parameter:
    if how.parse is not None:
        kind, default = str, how.text
    elif _is_tuple(kind):  # repeatable
        kind, default = list[typing.get_args(kind)[0]], _listed(default)  # type: ignore[misc]
    required = default is dataclasses.MISSING
    return inspect.Parameter(
        _name(path, how),
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[kind, _typer_info(how, kind, default)],
    )


def _typer_info(how: Option, kind: Any, default: Any) -> Any:
    settings: dict[str, Any] = {"help": how.help, "metavar": how.metavar, "show_default": True}
    if how.low is not None or how.high is not None:
        number = float if _plain(kind) is float else int
        settings |= {
            k: number(v) for k, v in (("min", how.low), ("max", how.high)) if v is not None
        }
    if how.panel:
        settings["rich_help_panel"] = how.panel
    if how.default_text is not None:
        settings["show_default"] = how.default_text or False
    elif default is None or default == []:
        settings["show_default"] = False
    return typer.Option(*how.names, **settings) if how.names else typer.Argument(**settings)


def _is_tuple(kind: object) -> bool:
    origin: object = typing.get_origin(kind)
    return origin is tuple


def _listed(default: Any) -> Any:
    return default if default is dataclasses.MISSING else list(default)


def _plain(kind: Any) -> Any:
    """Return int for int | None."""
    if isinstance(kind, types.UnionType):
        return next(k for k in typing.get_args(kind) if k is not type(None))
    return kind


def _name(path: str, how: Option) -> str:
    """Return the name of the parameter; for a positional argument without enclosing dataclasses."""
    return path.replace(".", "_") if how.names else path.rpartition(".")[2]


def _build(options: type, values: Mapping[str, Any], fields: Mapping[str, Field]) -> Any:
    hints = typing.get_type_hints(options)
    own: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        inner = {
            path.partition(".")[2]: value
            for path, value in values.items()
            if path.startswith(f"{field.name}.")
        }
        if inner:
            below = {
                p.partition(".")[2]: f for p, f in fields.items() if p.startswith(f"{field.name}.")
            }
            own[field.name] = _build(typing.cast(type, hints[field.name]), inner, below)
        elif field.name in values:
            how, kind, _ = fields[field.name]
            value = values[field.name]
            if how.parse is not None:
                value = how.parse(value)
            elif _is_tuple(kind):
                value = tuple(value or ())
            own[field.name] = value
    return options(**own)


def _check(context: typer.Context, options: Mapping[str, Option]) -> None:
    """Raise for options without effect. Only options given on the command line count."""
    given: set[str] = set()
    known: set[str] = set()
    for parameter in context.command.params:
        names = {*parameter.opts, *parameter.secondary_opts}
        known |= names
        source = context.get_parameter_source(str(parameter.name))
        value = context.params.get(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE" and value is not None:
            given |= names
    shown = lambda how: how.names[-1].strip(" /")
    used = [how for how in options.values() if given & set(_flags(how))]
    for needs in dict.fromkeys(how.needs for how in used):
        lacking = [shown(how) for how in used if how.needs == needs]
        if set(needs) & known and not set(needs) & given:
            raise SaveDeployError(
                "an option that has no effect here",
                got=", ".join(lacking),
                expected=f"{' or '.join(needs)} as well",
            )
    for how in used:
        if against := sorted(set(how.excludes) & given):
            raise SaveDeployError(
                "options that exclude each other",
                got=f"{shown(how)} and {', '.join(against)}",
                expected="one of them",
            )


def _flags(how: Option) -> list[str]:
    return [flag for name in how.names for flag in name.replace(" ", "").split("/") if flag]
