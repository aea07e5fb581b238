"""What batch queues, 'timeout' and 'docker stop' send means what Ctrl-C means, in the main process alone."""
import os
import signal
import subprocess
import sys

import click
from click.testing import CliRunner

from lzero_kvcache.cli import CommandGroup

COMMAND = '''
import os, signal, time
import click
from lzero_kvcache.cli import CommandGroup

@click.group(cls=CommandGroup)
def main():
    pass

@main.command()
def wait():
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b'here')
        time.sleep(60)
        os._exit(0)
    os.read(reader, 4)
    os.kill(child, signal.SIGTERM)
    try:
        print('child ended by', os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print('saving', flush=True)
        input()
        print('saved', flush=True)
        raise SystemExit(130)

main(['wait'])
'''


def test_the_main_process_is_interrupted_once_and_its_children_end():
    process = subprocess.Popen(
        [sys.executable, '-c', COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True
    )
    assert process.stdout.readline() == f'child ended by {int(signal.SIGTERM)}\n'
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == 'saving\n'
    # 'timeout' sends it to the process and to its group.
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate('\n')
    assert (said, process.returncode) == ('saved\n', 143)


def test_other_statuses_and_the_handlers_of_others_are_left_alone():
    @click.group(cls=CommandGroup)
    def main():
        pass

    @main.command()
    @click.option('--raises', is_flag=True)
    def end(raises):
        if raises:
            os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit(3)

    former = signal.getsignal(signal.SIGTERM)
    assert CliRunner().invoke(main, ['end']).exit_code == 3
    assert signal.getsignal(signal.SIGTERM) == former
    assert CliRunner().invoke(main, ['end', '--raises']).exit_code == 143
    heard = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        assert CliRunner().invoke(main, ['end', '--raises']).exit_code == 3
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)
