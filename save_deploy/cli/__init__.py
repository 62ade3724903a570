"""The command line: save-export, save-compare, save-train, save-eval, and save-deploy VERB.

Large libraries are imported only when a verb runs, so --help is fast.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from save_deploy import __version__
from save_deploy.children import safe_path
from save_deploy.cli import (
    bench,
    build,
    cache,
    calibrate,
    checkpoint,
    compare,
    data,
    doctor,
    export,
    inspect,
    mask,
    masks,
    merge,
    polygraphy,
    publish,
    recipes,
    run,
    systems,
    train,
    triton,
    verify,
    web,
)
from save_deploy.cli import eval as evaluate
from save_deploy.cli.everywhere import Speech, with_common_options, with_json_place
from save_deploy.cli.settings import default_map
from save_deploy.errors import SaveDeployError
from save_deploy.extras import named_extras
from save_deploy.progress import (
    Resumable,
    listen_for_interrupts,
    stop_listening,
    was_interrupted,
)
from save_deploy.terminal import check_written, protect_terminal

_HELP = {"help_option_names": ["-h", "--help"]}
INTERRUPTED = 130  # 128 + SIGINT
VERBS: dict[str, Callable[..., None]] = {
    "export": export.export,
    "calibrate": calibrate.calibrate,
    "build": build.build,
    "inspect": inspect.inspect_bundle,
    "merge": merge.merge,
    "bench": bench.bench,
    "compare": compare.compare,
    "train": train.train,
    "eval": evaluate.evaluate,
    "mask": mask.mask,
    "masks": masks.masks,
    "run": run.run,
    "verify": verify.verify,
    "doctor": doctor.doctor,
    "polygraphy": polygraphy.polygraphy,
    "triton": triton.triton,
    "publish": publish.publish,
    "systems": systems.systems,
    "web": web.web,
    "recipes": recipes.recipes,
}
FIRST = ("export", "run", "verify", "compare", "inspect", "build", "doctor")  # in --help
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "data": (
        "Generate datasets and check released ones.",
        {"scenes": data.scenes, "stamps": data.stamps, "check": data.check},
    ),
    "cache": (
        "List and remove cached engines.",
        {"ls": cache.cache_ls, "rm": cache.cache_rm},
    ),
    "checkpoint": (
        "Inspect and convert weight files.",
        {"inspect": checkpoint.inspect, "convert": checkpoint.convert},
    ),
}


def _version(show: bool) -> None:
    if show:
        from save_deploy.machine import versions

        for package, found in {"save-deploy": __version__, **versions()}.items():
            print(f"{package} {found}")
        raise typer.Exit


def _group() -> typer.Typer:
    app = typer.Typer(
        context_settings=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help=__doc__.splitlines()[0] if __doc__ else None,
    )

    @app.callback(
        help="Deploy SAVE, audio-visual segmentation on SAM: from checkpoint to verified bundle."
    )
    def _root(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                callback=_version,
                is_eager=True,
                help="Print the versions of save-deploy, Python and the installed backends.",
            ),
        ] = False,
    ) -> None: ...

    for name, verb in VERBS.items():
        app.command(name, rich_help_panel=None if name in FIRST else "Further commands")(
            with_common_options(verb, _version)
        )
    for name, (what, verbs) in GROUPS.items():
        group = typer.Typer(no_args_is_help=True, help=what)
        for verb_name, verb in verbs.items():
            group.command(verb_name)(with_common_options(verb, _version))
        app.add_typer(group, name=name, rich_help_panel="Further commands")
    return app


def _single(name: str) -> typer.Typer:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, context_settings=_HELP)(with_common_options(VERBS[name], _version))
    return app


def _run(app: typer.Typer) -> None:
    """Run the app and exit: 0 success, 1 usage or input error, 2 over budget, 3 backend unavailable,
    130 interrupted."""
    listen_for_interrupts()
    # collections at the end of the process would walk all objects, which takes seconds
    atexit.register(gc.freeze)
    given = list(itertools.takewhile(lambda word: word != "--", sys.argv[1:]))
    if given and not {"-h", "--help"} & set(
        given
    ):  # Typer's help uses color codes and contains no file names
        protect_terminal()
    command, speech = typer.main.get_command(app), Speech()
    speech.watch_json(command)
    invoke = command.invoke

    def invoke_or_stop(context: Any) -> Any:  # Typer replaces a KeyboardInterrupt by its own class
        try:
            return invoke(context)
        except KeyboardInterrupt as interrupt:
            raise _Stopped(isinstance(interrupt, Resumable)) from None
        except Exception:
            if was_interrupted():  # a library converted the interrupt to its own error
                raise _Stopped(False) from None
            raise

    command.invoke = invoke_or_stop  # type: ignore[method-assign, assignment]
    try:
        _require_folder()
        words = [*with_json_place(given, _verb(command, given)), *sys.argv[1 + len(given) :]]
        settings = {} if _asks_only(given) else default_map(command, words, [*VERBS, *GROUPS])
        try:
            with safe_path(), named_extras(), speech.applied():
                code = command.main(words, standalone_mode=False, default_map=settings)
        finally:
            stop_listening()  # what is left is the end of the process
        check_written()
    except SaveDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except _Stopped as stopped:
        _say_interrupted(resumable=stopped.resumable)
        sys.exit(INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except MemoryError:
        print(f"error: {SaveDeployError('not enough memory for this input')}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # not handled by the verb
        said = SaveDeployError("a file cannot be read or written", got=str(error))
        print(f"error: {said}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if isinstance(error, UnicodeEncodeError):  # some libraries accept only UTF-8 names
            print(f"error: {_not_utf8(error)}", file=sys.stderr)
            sys.exit(1)
        if not hasattr(error, "format_message"):  # not a usage error, so a bug of ours
            raise
        if said := error.format_message():  # nothing after the help of a command without arguments
            print(f"error: {said}", file=sys.stderr)
        sys.exit(1)
    if code == INTERRUPTED:  # Typer handled Ctrl-C itself
        _say_interrupted()
    sys.exit(code if isinstance(code, int) else 0)


def _verb(command: Any, given: list[str]) -> str:
    return next(iter(given), "") if hasattr(command, "commands") else str(command.name)


def _asks_only(given: list[str]) -> bool:
    """Whether nothing is done: help, versions."""
    return bool({"-h", "--help", "--version"} & set(given))


def _require_folder() -> None:
    """Raise SaveDeployError if the current folder was removed: some libraries would exit."""
    try:
        os.getcwd()
    except OSError as error:
        raise SaveDeployError(
            "the current folder no longer exists",
            got=str(error),
            expected="a folder",
            hint="cd to an existing folder",
        ) from None


class _Stopped(Exception):
    """A verb was interrupted. resumable: the same command continues the work."""

    def __init__(self, resumable: bool) -> None:
        self.resumable = resumable


def _not_utf8(error: UnicodeEncodeError) -> SaveDeployError:
    return SaveDeployError(
        "a name that is not UTF-8", got=str(error.object), expected="UTF-8", hint="rename the file"
    )


def _say_interrupted(*, resumable: bool = False) -> None:
    again = "; run the same command again to resume" if resumable else ""
    print(f"\ninterrupted; no partial output remains{again}", file=sys.stderr)


def main() -> None:
    _run(_group())


def export_main() -> None:
    _run(_single("export"))


def calibrate_main() -> None:
    _run(_single("calibrate"))


def build_main() -> None:
    _run(_single("build"))


def inspect_main() -> None:
    _run(_single("inspect"))


def run_main() -> None:
    _run(_single("run"))


def doctor_main() -> None:
    _run(_single("doctor"))


def compare_main() -> None:
    _run(_single("compare"))


def train_main() -> None:
    _run(_single("train"))


def eval_main() -> None:
    _run(_single("eval"))
