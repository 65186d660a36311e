"""The command `harness`. Results go to stdout or files, progress and errors to stderr.

Exit codes: 0 done, 1 some cells failed, 2 the input was wrong. Heavy imports wait inside the commands."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from harness import cli_compare, cli_evaluate, cli_family, cli_prepare, cli_store, cli_study, cli_sweep, cli_tasks

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich alone doubles the time to the first line
    pretty_exceptions_enable=False,
    help="Train a family of Transformer sizes, ask every size every task, and say which abilities emerge.",
)

cli_sweep.register(app)
cli_evaluate.register(app)
cli_compare.register(app)
cli_family.register(app)
cli_prepare.register(app)
cli_store.register(app)
cli_study.register(app)
cli_tasks.register(app)


def main() -> NoReturn:
    """Run the command; a wrong input is one clear line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except ValueError as error:
        from harness.spec import InputError
        from harness.store import StoreError
        from models.spec import SpecError
        from tasks.base import TaskError

        if not isinstance(error, InputError | StoreError | SpecError | TaskError):
            raise
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"harness: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
