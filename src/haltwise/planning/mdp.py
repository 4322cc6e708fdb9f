"""Finite decision processes, by value iteration and by EM over a mixture of horizons."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import got, real_number, whole_number

__all__ = [
    "FiniteMDP",
    "PlannedPolicy",
    "expectation_maximization",
    "require_distribution",
    "require_numbers",
    "require_stochastic",
    "value_iteration",
]

_ROUNDING = 1e-9  # by which rows of probabilities may miss 1


@final
class FiniteMDP(NamedTuple):
    """A finite decision process with A actions in S states; best in float64.

    Attributes:
        transition: Probability of the next state, [A, S, S]: action, state, next state.
        reward: Expected reward of an action in a state, shape [A, S].
    """

    transition: Tensor
    reward: Tensor


@final
class PlannedPolicy(NamedTuple):
    """A policy and what it is worth.

    Attributes:
        policy: Probability of each action in each state, shape [A, S].
        value: Expected discounted reward from each state, shape [S].
        log_likelihoods: log P(R = 1) before each iteration and after the last.
    """

    policy: Tensor
    value: Tensor
    log_likelihoods: Tensor


def value_iteration(mdp: FiniteMDP, continuation: float, *, tolerance: float = 1e-13) -> Tensor:
    """The greatest expected discounted reward from each state (Bellman 1957).

    Args:
        mdp: Of A actions in S states.
        continuation: The discount gamma, in [0, 1).
        tolerance: The error allowed, in units of the largest value; in (0, 1).

    Returns:
        Shape [S].

    Raises:
        InputError: The process, the discount or the tolerance is impossible.

    Examples:
        Two states: stay for 1 at every step, or leave for a state that pays 3.

        >>> transition = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> reward = torch.tensor([[1.0, 3.0], [0.0, 3.0]])
        >>> value_iteration(FiniteMDP(transition.double(), reward.double()), 0.5)
        tensor([3.0000, 6.0000], dtype=torch.float64)
    """
    continuation = _possible(mdp, continuation)
    tolerance = real_number("tolerance", tolerance)
    require(0 < tolerance < 1, f"tolerance must lie in (0, 1), got {tolerance}")
    value = torch.zeros_like(mdp.reward[0])
    # |V_n - V| <= gamma^n |V_0 - V|, the largest value.
    num_iterations = math.ceil(math.log(tolerance) / math.log(continuation)) if continuation else 1
    for _ in range(num_iterations):
        value = (mdp.reward + continuation * (mdp.transition @ value)).amax(0)
    return value


def expectation_maximization(
    mdp: FiniteMDP,
    continuation: float,
    *,
    start: Tensor | None = None,
    greedy: bool = False,
    num_iterations: int = 100,
) -> PlannedPolicy:
    """Plan by EM in a mixture of finite processes (Toussaint & Storkey 2006).

    A horizon T with p(T) = (1 - gamma) gamma^T is drawn, and a binary R is 1 with the probability
    that the reward at T alone says. Then

        P(R = 1) = (1 - gamma) E sum_T gamma^T reward_T,

    so to maximise the likelihood of R = 1 is to maximise the discounted reward. The E-step's
    messages, summed over all horizons, are the values of the present policy, by one linear solve;
    the M-step is pi(a | s) <- pi(a | s) Q(a, s) / sum, or with `greedy` all of it on the largest
    Q(a, s), which is policy iteration. A state in which no action leads to a reward keeps its
    policy.

    Args:
        mdp: Of A actions in S states, rewards in [0, 1].
        continuation: gamma, in [0, 1).
        start: Probability of beginning in each state, shape [S]; uniform if None. Only the
            likelihood depends on it, since the M-step is made in every state.
        greedy: Whether each state takes its best action alone.
        num_iterations: Of the EM, at most: a greedy plan ends when no action changes.

    Raises:
        InputError: The process, the discount, a reward or the start is impossible.

    Examples:
        >>> transition = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> reward = torch.tensor([[0.1, 0.3], [0.0, 0.3]])
        >>> mdp = FiniteMDP(transition.double(), reward.double())
        >>> expectation_maximization(mdp, 0.5, greedy=True).value
        tensor([0.3000, 0.6000], dtype=torch.float64)
    """
    continuation = _possible(mdp, continuation)
    num_iterations = whole_number("num_iterations", num_iterations, least=0)
    low, high = (bound.item() for bound in mdp.reward.aminmax())
    require(
        low >= 0 and high <= 1,
        f"rewards are probabilities here, in [0, 1], got {low if low < 0 else high:g}; shift and "
        "scale them, which changes no plan",
    )
    num_states = mdp.reward.shape[1]
    if start is None:
        start = mdp.reward.new_full((num_states,), 1 / num_states)
    require_distribution("start", start, mdp.reward[0])
    policy = torch.full_like(mdp.reward, 1 / len(mdp.reward))
    value = _policy_value(mdp, policy, continuation)
    likelihoods = [start @ value]
    for _ in range(num_iterations):
        gains = mdp.reward + continuation * (mdp.transition @ value)  # Q(a, s)
        weighed = (_greedy(gains) if greedy else policy) * gains
        new = _greedy(gains) if greedy else weighed / weighed.sum(0)
        new = torch.where(weighed.sum(0) > 0, new, policy)
        if greedy and torch.equal(new, policy):
            break
        policy, value = new, _policy_value(mdp, new, continuation)
        likelihoods.append(start @ value)
    log_likelihoods = math.log1p(-continuation) + torch.stack(likelihoods).log()
    return PlannedPolicy(policy, value, log_likelihoods)


def _greedy(gains: Tensor) -> Tensor:
    """All on the first of the largest, shape [A, S]."""
    return torch.zeros_like(gains).scatter_(0, gains.argmax(0, keepdim=True), 1.0)


def _policy_value(mdp: FiniteMDP, policy: Tensor, continuation: float) -> Tensor:
    """Expected discounted reward under a policy [A, S], shape [S]."""
    transition = torch.einsum("as,asn->sn", policy, mdp.transition)
    reward = (policy * mdp.reward).sum(0)
    identity = torch.eye(len(reward), dtype=reward.dtype, device=reward.device)
    value: Tensor = torch.linalg.solve(identity - continuation * transition, reward)
    return value


def require_numbers(**tensors: Tensor) -> None:
    """Refuse what are no tensors of real numbers of one dtype on one device, and empty ones."""
    for name, value in tensors.items():
        require(isinstance(value, Tensor), f"{name} must be a tensor, got {type(value).__name__}")
        require(value.numel() > 0, f"{name} must hold numbers, got shape {list(value.shape)}")
    kinds = {(value.dtype, value.device) for value in tensors.values()}
    (dtype, _), *others = kinds
    require(
        not others and dtype.is_floating_point,
        f"{' and '.join(tensors)} must be of one floating-point dtype on one device, best "
        "torch.float64, got "
        + ", ".join(f"{value.dtype} on {value.device}" for value in tensors.values()),
    )


def require_distribution(name: str, value: Tensor, like: Tensor) -> None:
    """Refuse anything but probabilities of the S states, in the shape and dtype of `like` [S]."""
    kind = f"a tensor of {like.dtype} in shape {list(like.shape)}"
    require(isinstance(value, Tensor), f"{name} must be {kind}, {got(value)}")
    require(
        value.shape == like.shape and value.dtype == like.dtype,
        f"{name} must be {kind}, the probability of each state, got {value.dtype} in shape "
        f"{list(value.shape)}",
    )
    total, least = value.sum().item(), value.min().item()
    rounding = max(_ROUNDING, torch.finfo(value.dtype).eps * len(value))
    require(
        least >= 0 and abs(total - 1) <= rounding,
        f"{name} must be probabilities that sum to 1; the least is {least:g}, and they sum to "
        f"{total:.12g}",
    )


def require_stochastic(transition: Tensor) -> None:
    """Refuse a matrix [..., S, S] whose rows are not probabilities."""
    sums = transition.sum(-1)
    worst = sums.flatten()[(sums - 1).abs().argmax()].item()
    require(
        bool((transition >= 0).all()) and abs(worst - 1) < _ROUNDING,
        "rows of a transition must be probabilities that sum to 1, in float64; the least entry is "
        f"{transition.min().item():g}, and a row sums to {worst:.12g}",
    )


def _possible(mdp: FiniteMDP, continuation: float) -> float:
    """The continuation, after the process has been checked."""
    require(
        isinstance(mdp, FiniteMDP),
        f"a finite decision process must be a FiniteMDP(transition, reward), got "
        f"{type(mdp).__name__}",
    )
    require_numbers(transition=mdp.transition, reward=mdp.reward)
    shape = tuple(mdp.transition.shape)
    require(
        mdp.transition.ndim == 3 and shape == (*mdp.reward.shape, shape[-1]) and shape[0] > 0,
        "a finite decision process needs transitions [A, S, S] and rewards [A, S], got "
        f"{list(shape)} and {list(mdp.reward.shape)}",
    )
    continuation = real_number("continuation", continuation)
    require(0 <= continuation < 1, f"the continuation must lie in [0, 1), got {continuation}")
    require_stochastic(mdp.transition)
    require(bool(mdp.reward.isfinite().all()), "rewards must be finite")
    return continuation
