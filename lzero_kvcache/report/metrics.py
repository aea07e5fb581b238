"""The numbers of a trial: their names, units and meanings, and how they are written."""
from dataclasses import dataclass
from math import floor, log10
from typing import Optional

MINUS = '\N{MINUS SIGN}'
NOTHING = '\N{EN DASH}'
SPACE = '\N{NO-BREAK SPACE}'
PER_STEPS = 'per 1,000 steps'


@dataclass(frozen=True)
class Metric:
    """
    Overview:
        One column of ``results.csv``.
    Arguments:
        - key (:obj:`str`): The column's name.
        - label (:obj:`str`): The name for readers.
        - meaning (:obj:`str`): One sentence for the legend.
        - unit (:obj:`str`): '' for a plain number, '%' for a share between 0 and 1.
        - better (:obj:`Optional[str]`): 'higher' or 'lower'; None where neither is.
        - compared (:obj:`bool`): Whether differences between arms are shown.
        - counts (:obj:`bool`): Whether it is a number of things.
        - total (:obj:`bool`): Whether the column's number grows with the environment steps: it is shown per 1,000 of
            them, because trials collect whole episodes, some more than others.
    """
    key: str
    label: str
    meaning: str
    unit: str = ''
    better: Optional[str] = None
    compared: bool = False
    counts: bool = False
    total: bool = False

    @property
    def heading(self) -> str:
        """
        Overview:
            The label with the unit.
        """
        return f'{self.label}, {self.unit}' if self.unit else self.label

    def text(self, value: Optional[float], beside: Optional[float] = None) -> str:
        """
        Overview:
            A value as readers see it, without its unit (but for '%').
        Arguments:
            - value (:obj:`Optional[float]`): The value; None where there is none.
            - beside (:obj:`Optional[float]`): A value that it stands beside, whose decimals it takes.
        """
        if value is None:
            return NOTHING
        return f'{self._number(value, beside)}{SPACE}%' if self.unit == '%' else self._number(value, beside)

    def with_unit(self, value: float, beside: Optional[float] = None) -> str:
        """
        Overview:
            A value with its unit, for a sentence.
        Arguments:
            - value (:obj:`float`): The value.
            - beside (:obj:`Optional[float]`): As above.
        """
        text = self.text(value, beside)
        return text if self.unit in ('', '%') else f'{text}{SPACE}{self.unit}'

    def change(self, value: float, beside: Optional[float] = None) -> str:
        """
        Overview:
            A difference of two values, with its sign. That of two shares is in percentage points.
        Arguments:
            - value (:obj:`float`): The difference.
            - beside (:obj:`Optional[float]`): As above.
        """
        text = self._number(value, beside)
        return f'+{text}' if value > 0 and text.strip('0.') else text

    def _number(self, value: float, beside: Optional[float]) -> str:
        if self.unit == '%':
            return number(100 * value, 2)
        beside = value if beside is None else beside
        return number(value, 0 if self.counts and beside == int(beside) else decimals_of(beside))

    @property
    def change_unit(self) -> str:
        """
        Overview:
            The unit of a difference.
        """
        return 'points' if self.unit == '%' else self.unit


def decimals_of(value: float) -> int:
    """
    Overview:
        The decimals that make three significant digits, at most 6.
    Arguments:
        - value (:obj:`float`): A finite number.
    """
    return min(max(2 - floor(log10(abs(value))), 0), 6) if value else 0


def number(value: float, decimals: int) -> str:
    """
    Overview:
        A number with its thousands apart and a real minus sign.
    Arguments:
        - value (:obj:`float`): A finite number.
        - decimals (:obj:`int`): Its decimals.
    """
    text = f'{value:,.{decimals}f}'
    # What rounds to 0 has no sign.
    return text.replace('-', MINUS) if text.strip('-0.,') else text.lstrip('-')


METRICS = (
    Metric('return_last', 'Return at the end',
           'Mean return of the evaluations in the last third of the environment steps.', '', 'higher', True),
    Metric('return_best', 'Best return', 'The best evaluation of the trial. Chance favours it: judge by the return '
           'at the end.', '', 'higher', True),
    Metric('env_steps', 'Environment steps', 'Steps collected for training, all environments together.', counts=True),
    Metric('seconds', 'Wall time', 'From the first search to the end of training, evaluations on the way included.',
           's', 'lower'),
    Metric('evaluation_seconds', 'Evaluation', 'Time of all evaluations, also of the last one, which comes after '
           'training and is no part of the wall time.', 's', 'lower'),
    Metric('env_steps_per_second', 'Throughput', 'Environment steps by wall time, training and evaluation included. '
           'It also depends on whatever else the machine did.', 'steps/s', 'higher', True),
    Metric('search_ms', 'Collect search', 'Mean time of one search while collecting, all environments together.', 'ms',
           'lower', True),
    Metric('hit_rate_init_pools', 'Hit rate of the init pools', 'Root contexts, one pool per environment: the share of '
           'queries that found their context.', '%', 'higher', True),
    Metric('hit_rate_recur_pool', 'Hit rate of the recur pool', 'The same for the nodes of the running search. Misses '
           'here mean that the pool is too small, or its strategy unfit.', '%', 'higher', True),
    Metric('hit_rate_wm_pool', 'Hit rate of the wm pool', 'The same for the rows of the last inference, asked only for '
           'what the recur pool has lost. No query is the best sign.', '%', 'higher'),
    Metric('evictions', 'Evictions', 'Entries that left because their pool was full. Evicting what is never asked for '
           'again costs nothing.', PER_STEPS, total=True),
    Metric('rebuilds', 'Rebuilt contexts', 'Contexts that had to be computed again after a miss.', PER_STEPS, 'lower',
           total=True),
    Metric('rebuilt_tokens', 'Rebuilt tokens', 'The tokens that rebuilding took: the work that misses have cost.',
           PER_STEPS, 'lower', True, total=True),
    Metric('peak_cache_mb', 'Peak cache memory', 'Most memory that keys and values of all pools held, looked at about '
           'a hundred times in the run.', 'MiB',
           'lower', True),
    Metric('peak_memory_mb', 'Peak process memory', 'Most resident memory of the trial\u2019s process: replay buffer, '
           'model, libraries and all.', 'MiB', 'lower', True),
    Metric('peak_gpu_memory_mb', 'Peak GPU memory', 'Most memory that PyTorch\u2019s tensors held on the GPU. What '
           'CUDA itself takes comes on top.', 'MiB', 'lower', True),
)
METRIC = {metric.key: metric for metric in METRICS}
