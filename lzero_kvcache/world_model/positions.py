"""Rotary positions of observations and actions, as the release assigns them and as training does."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def rotary_frequencies(table: torch.Tensor) -> np.ndarray:
    """
    Overview:
        The angles that one position turns queries and keys by.
    Arguments:
        - table (:obj:`torch.Tensor`): The stock transformer's rotations, complex, one row per position.
    Returns:
        - frequencies (:obj:`np.ndarray`): :math:`(head_dim / 2, )`.
    """
    return table[1].to(torch.complex128).angle().cpu().numpy()


def rotations(positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """
    Overview:
        What queries and keys at any positions are turned by. The stock table ends at ``2 * max_seq_len``.
    Arguments:
        - positions (:obj:`np.ndarray`): :math:`(B, T)`, of any size: only their differences show in attention.
        - frequencies (:obj:`np.ndarray`): :math:`(head_dim / 2, )`.
    Returns:
        - rotations (:obj:`np.ndarray`): complex64, :math:`(B, T, head_dim / 2)`.
    """
    return np.exp(1j * (positions[..., None] * frequencies)).astype(np.complex64)


def host_timesteps(start_pos: Any, batch_size: int) -> np.ndarray:
    """
    Overview:
        Bring the timesteps of a batch, in whichever form the stock code passes them, to one.
    Arguments:
        - start_pos (:obj:`Union[int, Sequence]`): One timestep for all rows, or one per row; in reanalysis an array
            :math:`(B, T)` of sequences, whose rows stand for T + 1 roots each, the last without a timestep.
        - batch_size (:obj:`int`): The number of rows.
    Returns:
        - timesteps (:obj:`np.ndarray`): :math:`(batch_size, )`.
    Raises:
        - ValueError: If there are fewer or more timesteps than rows.
    """
    if isinstance(start_pos, (list, tuple)) and all(np.ndim(position) == 0 for position in start_pos):
        timesteps = np.array([int(position) for position in start_pos])
    else:
        timesteps = np.asarray([np.asarray(pos).tolist() for pos in start_pos] if np.ndim(start_pos) else start_pos)
    if timesteps.ndim == 2 and timesteps.size != batch_size:
        timesteps = np.pad(timesteps, ((0, 0), (0, 1)))
    if timesteps.size not in (1, batch_size):
        raise ValueError(f'start_pos has {timesteps.size} timesteps for {batch_size} rows: needed is one for each')
    return np.broadcast_to(timesteps.reshape(-1).astype(np.int64), (batch_size, ))


def history_positions(timesteps: Sequence[int], num_observations_tokens: int) -> np.ndarray:
    """
    Overview:
        Positions of an episode's tokens: an observation at twice its timestep, the action before it one earlier.
    Arguments:
        - timesteps (:obj:`Sequence[int]`): Timesteps of successive observations.
        - num_observations_tokens (:obj:`int`): Tokens per observation.
    Returns:
        - positions (:obj:`np.ndarray`): Of observation, action, observation, ..., observation.
    """
    blocks = [[2 * step - 1, *range(2 * step, 2 * step + num_observations_tokens)] for step in timesteps]
    return np.asarray(blocks).reshape(-1)[1:]


class SearchPositions:
    """
    Overview:
        Rotary positions of the tokens that a search appends.
    Arguments:
        - mode (:obj:`str`): 'aligned': root + 1, + 2, ..., as in training; 'release': as the release computes them from
            what the search hands down as its depth. UniZero's counts it from 1; Sampled UniZero's hands the number of
            the expanded node down, which is the simulation that made it. In reanalysis both tokens share one position.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def of_expansion(
            self, timesteps: np.ndarray, parent_depths: np.ndarray, search_depth: Sequence[int], reanalyze: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Overview:
            Positions of the action and of the latent state of each new node.
        Arguments:
            - timesteps (:obj:`np.ndarray`): Timesteps of the roots, :math:`(B, )`.
            - parent_depths (:obj:`np.ndarray`): Actions between root and expanded node, :math:`(B, )`.
            - search_depth (:obj:`Sequence[int]`): What the search passes as its depth, :math:`(B, )`, or nothing.
            - reanalyze (:obj:`bool`): Whether the search reanalyses the replay buffer.
        Returns:
            - action, latent (:obj:`Tuple[np.ndarray, np.ndarray]`): :math:`(B, )` each.
        """
        if self._mode == 'aligned':
            steps = timesteps + parent_depths
            return 2 * steps + 1, 2 * steps + 2
        reported = np.asarray(search_depth, dtype=np.int64) if len(search_depth) else parent_depths + 1
        steps = timesteps + reported
        if reanalyze:
            return 2 * steps + 3, 2 * steps + 3
        return 2 * steps + 1, 2 * steps + 2

    def of_reset_latent(self, timesteps: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """
        Overview:
            Position of a node's latent state where its context starts over from it.
        Arguments:
            - timesteps (:obj:`np.ndarray`): Timesteps of the roots, :math:`(B, )`.
            - depths (:obj:`np.ndarray`): Actions since the root, :math:`(B, )`.
        Returns:
            - positions (:obj:`np.ndarray`): :math:`(B, )`; the release takes the root's.
        """
        return 2 * (timesteps + depths) if self._mode == 'aligned' else 2 * timesteps
