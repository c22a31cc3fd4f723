"""`graphopt`: the group of commands, and the one place where failures become messages and exit codes.

0 done; 1 bad input or failure; 2 wrong usage; 3 the gate or a pass's target cannot be met; 130 interrupted. Only click is
imported here: `graphopt --help` answers at once, and each command imports what it needs when it runs.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import click

from graphopt import __version__
from graphopt.cli.compare import compare
from graphopt.cli.cost import cost
from graphopt.cli.passes import passes
from graphopt.cli.plan import plan
from graphopt.cli.profile_device import profile_device
from graphopt.cli.run import run
from graphopt.cli.startup import quick_start
from graphopt.errors import GraphoptError, OptionError, PipelineError

_INTERRUPTED = 130
_PIPE_CLOSED = 141


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"graphopt {__version__}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def graphopt() -> None:
    """Make ONNX models small and fast.

    \b
    graphopt run MODEL                 rewrite a model without changing what it computes
    graphopt cost MODEL --per-node     where the time and the memory go
    graphopt compare REFERENCE MODEL   costs side by side, and whether both compute the same
    graphopt passes NAME               what a pass does, and its options
    graphopt profile-device -o FILE    measure this machine, for predictions of time
    """


for _command in (run, plan, cost, compare, passes, profile_device):
    graphopt.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. `arguments` are those of the process by default."""
    state = {"verbose": False}
    try:
        with warnings.catch_warnings(), quick_start():
            _quiet_libraries()
            code = _invoke(list(sys.argv[1:] if arguments is None else arguments), state)
            sys.stdout.flush()
            return code
    except click.UsageError as error:
        return _fail(error, _usage_message(error), 2, state)
    except GraphoptError as error:
        return _fail(error, _message(error), error.exit_code, state)
    except (KeyboardInterrupt, click.Abort) as error:
        stop = error.__cause__ if isinstance(error, click.Abort) else error  # click turns one into the other
        said = f": {stop}" if isinstance(stop, KeyboardInterrupt) and stop.args else ""
        click.echo(f"graphopt: interrupted{said}", err=True)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left; nothing more can be said to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except MemoryError as error:
        return _fail(error, "not enough memory", 1, state)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(error, f"{place}{error.strerror or error}", 1, state)
    except Exception as error:  # whatever is left is a defect of ours: users get one line that says so
        message = f"internal error ({type(error).__name__}: {error}); please report it, with what -v prints"
        return _fail(error, message, 1, state)


def _invoke(arguments: list[str], state: dict[str, bool]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without Unicode still gets the report
            stream.reconfigure(errors="backslashreplace")
    try:
        with graphopt.make_context("graphopt", arguments, obj=state) as context:
            graphopt.invoke(context)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    return 0


def _quiet_libraries() -> None:
    """What the libraries below log or warn about is not addressed to the users of this command."""
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())


def _message(error: GraphoptError) -> str:
    """One line, but for errors in a pipeline's text, which show the line and point at the character."""
    return str(error) if isinstance(error, PipelineError | OptionError) else " ".join(str(error).split())


def _usage_message(error: click.UsageError) -> str:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message()
    path = error.ctx.command_path if error.ctx is not None else "graphopt"
    return f"{' '.join(error.format_message().split())} ({path} --help lists the options)"


def _fail(error: BaseException, message: str, code: int, state: dict[str, bool]) -> int:
    if state["verbose"] and not isinstance(error, click.UsageError):
        click.echo("".join(traceback.format_exception(error)), err=True)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(message, err=True)
    else:
        click.echo(f"graphopt: error: {message}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
