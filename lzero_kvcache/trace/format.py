"""What a trace consists of: docs/traces.md says what it means."""
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

RUN = 'run.json'
BLOCK = '{:06}.npz'
PHASES = ('collect', 'eval', 'reanalyze', 'unknown')
STRAYS, EXPANSION, DROP = range(len(PHASES), len(PHASES) + 3)

EVENT = np.dtype([('kind', 'u1'), ('rows', '<u4')])
# As ``SearchNodes`` has them.
COLUMNS = [('parents', '<i4'), ('actions', '<i2'), ('depths', '<u2'), ('reward_bins', '<f4'), ('value_bins', '<f4')]
OF_ROOTS = [('env_ids', '<i2'), ('beginnings', 'u1'), ('tokens', '<u2')]

# From and to, or one or the other. What is too large for a replay is for its memory to tell.
INTEGERS = (1, 2 ** 31)
ALLOWED = dict(context_length=(4, 2 ** 15), discount_factor=(0.0, 1.0), samples_actions=(False, True),
               on_miss=('rebuild', 'reset'), window=('shift', 'rebuild'))


@dataclass(frozen=True)
class ManagerFacts:
    """What a replay has to know of a world model and its pools, named as in ``KVCacheConfig`` and ``SearchNodes``."""
    env_num: int
    num_simulations: int
    init_size: int
    wm_size: int
    on_miss: str
    window: str
    context_length: int
    num_observations_tokens: int
    num_actions: int
    samples_actions: bool
    discount_factor: float

    @classmethod
    def from_json(cls, given: Any) -> 'ManagerFacts':
        """Those of a file; a ValueError if they are none."""
        facts = {field.name: given.get(field.name) if isinstance(given, dict) else None for field in fields(cls)}
        for field, value in zip(fields(cls), facts.values()):
            one, other = allowed = ALLOWED.get(field.name, INTEGERS)
            is_number = field.type in (int, float)
            if type(value) is not field.type or not (one <= value <= other if is_number else value in allowed):
                raise ValueError(
                    f"{field.name} of a manager is {value!r}: allowed is {one} {'to' if is_number else 'or'} {other}"
                )
        return cls(**facts)

    @property
    def node_type(self) -> np.dtype:
        """The record of a node. Where actions are sampled, it has no logits."""
        num_logits = 0 if self.samples_actions else self.num_actions
        return np.dtype([*COLUMNS, *OF_ROOTS, ('policies', '<f4', (num_logits, ))])

    @property
    def nodes_of_search(self) -> int:
        """What a recur pool that never evicts holds."""
        return self.num_simulations * self.env_num
