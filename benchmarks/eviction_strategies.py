"""The tables of docs/strategies.md, from what 'lzero-kvcache simulate' has written for each trace."""
import csv
from pathlib import Path

import click

RESULTS = Path(__file__).parent / 'results' / 'strategies'
SHARES = (5, 10, 25, 50)
# Whose sizes the columns of recomputed tokens are.
SMALL = (10, 25)
OPTIMUM = "Belady's optimum"


def read(path: Path, phase: str = 'collect') -> dict[tuple[str, int], tuple[float, int]]:
    """Hits of the recur pool in percent, and tokens that were computed again, by strategy and size of the pool."""
    measured = {}
    with open(path, newline='') as file:
        for row in csv.DictReader(file):
            if row['phase'] != phase or not row['recur_pool_percent'] or row['model'] != '1':
                continue
            hits, misses = int(row['recur_hits']), int(row['recur_misses'])
            measured[row['strategy'], int(row['recur_pool_percent'])] = (
                100 * hits / (hits + misses), int(row['rebuilt_tokens'] or 0)
            )
    return measured


def table(name: str) -> str:
    """One trace's table, the best strategies first."""
    measured = read(RESULTS / name / 'results.csv')
    strategies = sorted({strategy for strategy, _ in measured},
                        key=lambda strategy: -sum(measured[strategy, share][0] for share in SHARES))
    lines = ['| strategy | 5 % | 10 % | 25 % | 50 % | tokens computed again at 10 % | at 25 % |',
             '| --- | --- | --- | --- | --- | --- | --- |']
    for strategy in strategies:
        cells = [strategy if strategy == OPTIMUM else f'`{strategy}`']
        cells += [f'{measured[strategy, share][0]:.1f}' for share in SHARES]
        cells += [f'{measured[strategy, share][1]:,}' for share in SMALL]
        lines.append(f"| {' | '.join(cells)} |")
    return '\n'.join(lines)


def against_optimum(titles: dict[str, str]) -> str:
    """What share of the optimum's hits 'tree' has, by trace: collect, and eval, which has no noise at its roots."""
    lines = ["| | collect, 10 % (goal 0.75) | collect, 25 % (goal 0.90) | eval, 10 % | eval, 25 % |",
             '| --- | --- | --- | --- | --- |']
    for name, title in titles.items():
        cells = [title]
        for phase in ('collect', 'eval'):
            measured = read(RESULTS / name / 'results.csv', phase)
            cells += [f"{measured['tree', share][0] / measured[OPTIMUM, share][0]:.2f}" for share in SMALL]
        lines.append(f"| {' | '.join(cells)} |")
    return '\n'.join(lines)


TITLES = {
    'cartpole': 'CartPole', 'pendulum': 'Pendulum, 11 actions', 'breakout': 'Breakout', 'pong': 'Pong',
    'dmc': 'cartpole-swingup, Sampled UniZero',
}


@click.command(help=__doc__)
@click.option('--out', type=click.Path(path_type=Path, dir_okay=False), help='A file.  [default: the screen]')
def main(out: Path) -> None:
    text = '\n\n'.join([against_optimum(TITLES), *(f'{TITLES[name]}\n\n{table(name)}' for name in TITLES)])
    if out is None:
        click.echo(text)
    else:
        out.write_text(f'{text}\n')


if __name__ == '__main__':
    main()
