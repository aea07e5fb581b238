"""
Search for long on small models while everything happens to their caches that can, in random order, and see whether
memory stays flat, every count adds up, and predictions still equal a forward without a cache.
"""
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Optional

import click
import psutil
import torch
from invariants import held_contexts
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from soak_memory import (
    OF_A_SEARCH,
    QUANTITIES,
    WINDOWS,
    Context,
    Sample,
    containers_of_the_package,
    items_of_containers,
    objects_of_this_process,
)
from soak_report import show_results, write_results
from soak_world import World

from lzero_kvcache import EVICTION_REGISTRY
from lzero_kvcache.output import output_to

MIB = 2 ** 20
# So many things happen in one world before another one has its turns.
LONGEST_VISIT = 40


class SoakFailure(Exception):
    """Something did not hold."""


class Soak:
    """
    Several worlds, one for each eviction strategy, that have their turns at random.

    Arguments: the search steps (recurrent inferences of a batch) of the whole soak; a seed (the C++ tree draws its own
    random numbers, from the clock, so that two soaks with one seed are alike, but not the same); the share of the
    searches whose nodes are all compared with the oracle; the number of samples; the strategies, all if None.
    """

    def __init__(
            self, steps: int, seed: int = 0, compares_nodes: float = 0.05, num_samples: int = 50,
            strategies: Optional[Sequence[str]] = None
    ) -> None:
        self.steps, self.seed = steps, seed
        self.step = 0
        self.samples: list[Sample] = []
        self._rng = Random(seed)
        strategies = list(sorted(EVICTION_REGISTRY) if strategies is None else strategies)
        self._rng.shuffle(strategies)
        # Those of whoever else has searched in this process.
        self._others = objects_of_this_process()
        self.worlds = [
            World(number, strategy, seed, compares_nodes, self._count_step)
            for number, strategy in enumerate(strategies)
        ]
        self._interval = max(1, steps // num_samples)
        self._begun = time.monotonic()
        self._most: Counter = Counter()
        self._progress: Optional[Progress] = None

    @property
    def seconds(self) -> float:
        """Since the soak was made."""
        return time.monotonic() - self._begun

    def run(self, screen: Console) -> None:
        """
        Search until there are enough steps, then play on with every node compared. Raises SoakFailure where something
        does not hold.
        """
        columns = (
            TextColumn('soak'), BarColumn(), MofNCompleteColumn(), TextColumn('search steps'),
            TextColumn('{task.fields[found]}'), TimeElapsedColumn()
        )
        with Progress(*columns, console=screen) as self._progress:
            self._task = self._progress.add_task('soak', total=self.steps, found='')
            while self.step < self.steps:
                world = self._rng.choice(self.worlds)
                for _ in range(self._rng.randint(1, LONGEST_VISIT)):
                    self._let_turn(world)
                    if self.step >= self._interval * (len(self.samples) + 1):
                        self._sample(screen)
                        break
            for world in self.worlds:
                with self._failures_named(world):
                    world.play_compared()
                    world.check()

    def check_flatness(self) -> None:
        """Raises SoakFailure if something has grown."""
        if len(self.samples) < WINDOWS:
            raise SoakFailure(f'{len(self.samples)} samples say nothing about growth: needed are at least {WINDOWS}')
        for quantity in QUANTITIES:
            if not quantity.is_flat(self.samples):
                raise SoakFailure(
                    f'Grown: {quantity.title}, {max(quantity.maxima(self.samples)[2:]):,.1f} at most in the last three '
                    f'fifths of {self.step:,} search steps, where the second fifth allows '
                    f'{quantity.limit(self.samples):,.1f}'
                )

    def done(self) -> Counter:
        """What has happened in all worlds."""
        return sum((world.done for world in self.worlds), Counter())

    def comparisons(self) -> tuple[int, float]:
        """Predictions that were compared with the oracle, and the largest difference."""
        players = [player for world in self.worlds for player in world.players()]
        return sum(player.compared for player in players), max(player.largest_difference for player in players)

    def _count_step(self) -> None:
        self.step += 1
        self._progress.update(self._task, completed=min(self.step, self.steps))

    def _let_turn(self, world: World) -> None:
        with self._failures_named(world):
            if world.turn() == 'learn':
                # An optimiser's step is one for every model of the process.
                for each in self.worlds:
                    each.weights_have_changed()
            world.check()
        now = dict(
            live_tokens=sum(len(each.inference.store) for each in self.worlds),
            entries=sum(len(pool) for each in self.worlds for pool in each.pools()),
            nodes=sum(each.num_nodes for each in self.worlds),
        )
        for name, figure in now.items():
            self._most[name] = max(self._most[name], figure)

    def _sample(self, screen: Console) -> None:
        self._check_owners()
        busy_items = self._items()
        for world in self.worlds:
            with self._failures_named(world):
                world.rest()
        alive = self._check_owners()
        self.samples.append(Sample(
            step=self.step, seconds=round(self.seconds, 1), most_live_tokens=self._most['live_tokens'],
            most_entries=self._most['entries'], most_nodes=self._most['nodes'],
            slab_mb=sum(world.slab_bytes() for world in self.worlds) / MIB,
            busy_items=busy_items, rest_items=self._items(),
            rest_objects=alive['all'] - self._others['all'],
            rest_rss_mb=round(psutil.Process().memory_info().rss / MIB, 2),
        ))
        self._most.clear()
        compared, difference = self.comparisons()
        found = f'{compared:,} predictions compared, off by {difference:.1e} at most'
        self._progress.update(self._task, found=found)
        # A bar is drawn on a terminal only; elsewhere lines show that the soak is alive.
        if not screen.is_terminal:
            rss = self.samples[-1].rest_rss_mb
            screen.print(f'{self.step:,} search steps, {self.seconds:.0f} s, {rss:.1f} MiB, {found}', highlight=False)

    def _items(self) -> int:
        return items_of_containers([world.inference for world in self.worlds] + containers_of_the_package())

    def _check_owners(self) -> Counter:
        """
        Every search and every context that is alive is a running search, or one of a running search, a pool or an
        episode. Returns how many objects there are.
        """
        searches = [world.inference.search for world in self.worlds if world.inference.search is not None]
        contexts = {id(context) for search in searches for context in search.contexts if context is not None}
        for world in self.worlds:
            contexts.update(id(context) for _, context in held_contexts(world.inference))
        alive = objects_of_this_process()
        for kind, owned in (*((kind, len(searches)) for kind in OF_A_SEARCH), (Context, len(contexts))):
            if alive[kind] - self._others[kind] != owned:
                raise SoakFailure(
                    f'{alive[kind] - self._others[kind]:,} objects of {kind.__name__} are alive after {self.step:,} '
                    f'search steps, but running searches, pools and episodes have {owned:,}'
                )
        return alive

    @contextmanager
    def _failures_named(self, world: World) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise SoakFailure(
                f'{type(error).__name__} after {self.step:,} search steps (seed {self.seed}) in the world of '
                f'{world.settings}: {str(error) or "see the traceback"}'
            ) from error


# Allocator and strategies take about 16,000 to fill up, and the second fifth is what later ones are held against.
FEWEST_STEPS_OF_GROWTH = 80_000


@click.command(help=__doc__)
@click.option('--steps', type=click.IntRange(min=1), default=100_000, show_default=True, help='Search steps.')
@click.option('--seed', type=int, default=0, show_default=True)
@click.option('--compare', type=click.FloatRange(0, 1), default=0.05, show_default=True,
              help='The share of the searches whose nodes are all compared; roots always are.')
@click.option('--samples', type=click.IntRange(min=WINDOWS), default=50, show_default=True,
              help='How often memory is looked at.')
@click.option('--out', type=click.Path(path_type=Path, file_okay=False), default='data_soak', show_default=True,
              help='A folder for soak.json, samples.csv, memory.png and output.log.')
def main(steps: int, seed: int, compare: float, samples: int, out: Path) -> None:
    # The models are small: a second thread costs more than it brings.
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    failure = None
    with output_to(out / 'output.log') as screen:
        soak = Soak(steps, seed, compare, samples)
        try:
            soak.run(screen)
            if steps < FEWEST_STEPS_OF_GROWTH:
                screen.print(f'Whether memory grows is judged from {FEWEST_STEPS_OF_GROWTH:,} search steps on: before '
                             'that, the second fifth is still warming up.', soft_wrap=True)
            else:
                soak.check_flatness()
        except SoakFailure as error:
            failure = str(error)
            if error.__cause__ is not None:
                screen.print(''.join(traceback.format_exception(None, error.__cause__, error.__cause__.__traceback__)),
                             markup=False, highlight=False)
        finally:
            write_results(soak, out, failure)
        show_results(soak, screen)
        screen.print(f'Samples, plot, and what the models print: {out}', soft_wrap=True)
    if failure is not None:
        raise click.ClickException(failure)
    click.echo('Everything held.')


if __name__ == '__main__':
    main()
