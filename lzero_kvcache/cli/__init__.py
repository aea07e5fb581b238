"""The command line: 'lzero-kvcache'. One file per command; what a command needs is imported when it runs."""
import click

from .bench import bench


@click.group(context_settings=dict(help_option_names=['-h', '--help']))
@click.version_option(package_name='lzero-kvcache')
def main() -> None:
    """UniZero's KV cache: managed, configurable, exact and fast."""


for command in (bench, ):
    main.add_command(command)
