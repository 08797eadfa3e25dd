"""The command line. Starting it imports next to nothing: every command imports what it needs when it runs.

Exit codes: 0 done; 1 the work could not be done (one line says why); 2 the command line was wrong; 130 interrupted;
141 the reader of the output went away; 143 terminated. What a command has started ends with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from pipelines import console
from pipelines.commands import archives, flow, models, packing, rows, searching, serving, upkeep, uses

app = typer.Typer(
    name="hilbertflow",
    help="Archive model checkpoints and embeddings in layers, and search them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

COMMANDS = {
    command.__name__: command
    for command in (
        flow.run, flow.submit, flow.status, flow.stop,
        archives.ls, archives.info, upkeep.verify, archives.restore, upkeep.rm,
        upkeep.cp, upkeep.gc, upkeep.repair,
        searching.search, models.similar,
        rows.upsert, rows.delete, rows.compact,
        uses.duplicates, uses.clusters, uses.outliers, uses.recommend,
        archives.export,
        packing.compress, packing.decompress,
        serving.serve, serving.bench,
        flow.schema,
    )
}  # fmt: skip
INTERRUPTED, TERMINATED = 130, 143
GO_ON = ("run", "cp", "repair", "compact")
app.add_typer(models.models, name="models")
for name, command in COMMANDS.items():
    app.command(name, no_args_is_help=name != "schema")(command)


class Terminated(BaseException):
    """SIGTERM came; nothing but `call` catches it, and everything that is open is closed on the way."""


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            console.say(f"hilbertflow {version('hilbertflow')}")
        except PackageNotFoundError:
            console.say("hilbertflow (a checkout that is not installed)")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Archive model checkpoints and embeddings in layers, and search them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    mine = os.getpid()

    def terminated(*_: object) -> None:
        if os.getpid() != mine:  # a fork of this process, which whoever made it ends
            os._exit(TERMINATED)
        signal.signal(signal.SIGTERM, lambda *_: None)  # once is enough: what ends is not to be broken off
        raise Terminated

    signal.signal(signal.SIGTERM, terminated)
    leave(call(list(sys.argv[1:] if arguments is None else arguments)))


def leave(code: int) -> NoReturn:
    """End the process with this exit code, at once.

    Libraries here keep native threads to the end; an interpreter that winds down under them now and then aborts, and
    what was a clear error becomes exit code 134.
    """
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def call(arguments: list[str]) -> int:
    """Run the command line and return its exit code; every failure is one line on standard error."""
    # Clients of object stores leave sessions to the end of the process, which asyncio would complain of then.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        code = app(args=arguments, prog_name="hilbertflow", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Terminated:
        code = TERMINATED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads on: let the last flush succeed
        return 141
    except Exception as error:
        return _report(error, arguments)
    if code in (INTERRUPTED, TERMINATED):  # typer gives the first for Ctrl-C
        goes_on = arguments and arguments[0] in GO_ON
        said = "interrupted" if code == INTERRUPTED else "stopped"
        console.fail(f"{said}{'; the same command goes on where it stopped' if goes_on else ''}")
    return code if isinstance(code, int) else 0


def _report(error: Exception, arguments: list[str]) -> int:
    usage = getattr(error, "format_message", None)
    if usage is not None:  # of typer's parser
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            known = [name for name in arguments[:1] if name in COMMANDS]
            console.fail(f"{usage().rstrip('.')}; see {' '.join(['hilbertflow', *known, '--help'])}")
        return 2
    if os.environ.get("HILBERTFLOW_DEBUG"):
        traceback.print_exception(error)
    from operators.errors import HilbertflowError

    cause = _cause(error, HilbertflowError)
    if cause is not None:
        console.fail(str(cause))
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
        place = f" at {os.path.basename(frame.filename)}:{frame.lineno}" if frame else ""
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}{place}: {lines[-1] if lines else ''}"
        console.fail(f"unexpected error: {what} (HILBERTFLOW_DEBUG=1 shows where it came from)")
    return 1


def _cause(error: BaseException | None, kind: type[Exception]) -> Exception | None:
    """The error of our own inside what Ray wrapped around it, as another process raised it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, kind) and not type(error).__name__.startswith("RayTaskError"):
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    main()
