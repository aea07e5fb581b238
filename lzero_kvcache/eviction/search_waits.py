"""How long a choice of a search has to wait until it is the best one."""
from typing import NamedTuple

import numpy as np

# A choice whose rivals are better by far waits for longer than any search lasts.
LONGEST_WAIT = 500
TIE = 1e-9


class Choices(NamedTuple):
    """
    What a search chooses from: its nodes, and the untried actions of each node. The largest score is chosen.

    Attributes:
        values: Between 0 and 1, ``[2, M]``: of nodes, and of what a node has not tried; so are the next four.
        priors: Of the actions that lead there.
        visits: So far, and one.
        bonuses: Priors times the exploration of the parent; what they are worth is divided by ``visits``.
        scores: Values and what the bonuses are worth.
        exploration: Of each node, ``[N]``.
        tries: Visits of all children of each node, ``[N]``.
        expected: What each node's untried actions are worth, in the environment's units, ``[N]``.
        ranges: Of all values of a node's tree, in the same units, ``[N]``.
    """
    values: np.ndarray
    priors: np.ndarray
    visits: np.ndarray
    bonuses: np.ndarray
    scores: np.ndarray
    exploration: np.ndarray
    tries: np.ndarray
    expected: np.ndarray
    ranges: np.ndarray


def visits_until_chosen(choices: Choices, pairs: np.ndarray, pb_c_init: float) -> np.ndarray:
    """
    How many visits of its parent go to others before a choice is the best one, if values stay as they are. A better
    rival is visited until its share of exploration has shrunk to the choice's score, or until exploration has grown so
    far that the choice outdoes the rival's value, whichever comes first.

    Args:
        choices: All of them.
        pairs: Two choices of the same parent, and the parent, ``[3, P]``. An untried action has the number of its node
            plus M.
        pb_c_init: Of the selection rule: exploration grows by so much with the root of the visits.

    Returns:
        At least 0, ``[2, M]``.
    """
    values, priors, visits, bonuses, scores = (array.ravel() for array in choices[:5])
    one, other, parents = pairs
    of_one, of_other = scores.take(one), scores.take(other)
    waiting = np.where(of_one < of_other, one, other)
    rivals = one + other - waiting
    score = np.minimum(of_one, of_other)
    rival_value = values.take(rivals)
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        margins = score - rival_value
        shrinking = np.ceil(bonuses.take(rivals) / margins - visits.take(rivals) - TIE)
        needed = (rival_value - values.take(waiting)) * visits.take(waiting) / priors.take(waiting)
        growing = (needed / pb_c_init) ** 2 - choices.tries.take(parents)
        shrinking[margins <= TIE] = np.inf
        # Not 'growing <= 0', for nan.
        growing[~(growing > 0)] = np.inf
    until = np.minimum(np.maximum(np.minimum(shrinking, growing), 1), LONGEST_WAIT)
    until[np.maximum(of_one, of_other) <= score + TIE] = 0
    return np.bincount(waiting, until, minlength=len(values)).reshape(choices.values.shape)
