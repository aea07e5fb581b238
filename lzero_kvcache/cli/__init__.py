"""The command line: 'lzero-kvcache'. One file per command; what a command needs is imported when it runs."""
from typing import Any

import click

from ..untrusted import printable
from .ab import ab
from .bench import bench
from .doctor import doctor
from .eval import evaluate
from .run import run
from .sigterm import sigterm_as_interrupt
from .simulate import simulate
from .trace import trace


class CommandGroup(click.Group):
    """
    Overview:
        Says in a sentence which package is missing, and takes SIGTERM for Ctrl-C. What a file from elsewhere brings
        into a message is shown, and not obeyed by the terminal.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """
        Overview:
            Run the command.
        Raises:
            - click.ClickException: If a package is missing that this one, LightZero or DI-engine needs.
        """
        try:
            with sigterm_as_interrupt():
                return super().invoke(ctx)
        except click.ClickException as error:
            error.message = printable(error.message)
            raise
        except ModuleNotFoundError as error:
            from ..doctor.requirements import how_to_install

            module = (error.name or '').split('.')[0]
            command = how_to_install(module)
            if command is None:
                raise
            raise click.ClickException(
                f"'{ctx.info_name} {ctx.invoked_subcommand}' needs {module}, which is not installed: {command}\n"
                f"'{ctx.info_name} doctor' looks for whatever else is missing."
            ) from error


@click.group(cls=CommandGroup, context_settings=dict(help_option_names=['-h', '--help']))
@click.version_option(package_name='lzero-kvcache')
def main() -> None:
    """UniZero's KV cache: managed, configurable, exact and fast."""


for command in (run, evaluate, ab, trace, simulate, doctor, bench):
    main.add_command(command)
