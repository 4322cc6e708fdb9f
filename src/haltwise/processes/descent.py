"""What a descent does beside its evaluations, in one launch each where there is a kernel for it."""

from torch import Tensor

from haltwise._core.tensors import are_finite
from haltwise._kernels import fused

__all__ = ["direction_of_pairs", "note_in_rows"]


def direction_of_pairs(
    grad: Tensor, scale: Tensor, inverse: Tensor, steps: Tensor, changes: Tensor
) -> Tensor:
    """-H gamma by the two loops of L-BFGS (Nocedal & Wright 2006, algorithm 7.4), shape [M, D].

    Args:
        grad: gamma, shape [M, D].
        scale: Of the inverse Hessian to begin with, shape [M].
        inverse: 1 / <s, y> of every pair, the newest first; 0 where there is none, which changes
            nothing. Shape [M, P].
        steps: s, shape [M, P, D].
        changes: y, of the gradient along the steps, likewise.

    Examples:
        >>> import torch
        >>> step = torch.tensor([[[0.5, 0.0]]])
        >>> change = 10 * step  # so the curvature along the first coordinate is 10
        >>> inverse = 1 / (step * change).sum(2)
        >>> direction_of_pairs(torch.ones(1, 2), torch.ones(1), inverse, step, change)
        tensor([[-0.1000, -1.0000]])
    """
    if fused.serves_problems(grad, scale.unsqueeze(1), inverse, steps, changes):
        from haltwise._kernels.fused.descent import direct

        return direct(grad, scale, inverse, steps, changes)
    vector, weights, num_pairs = grad, [], inverse.shape[1]
    for k in range(num_pairs):  # from the newest
        weight = inverse[:, k] * (steps[:, k] * vector).sum(1)
        vector = vector - weight.unsqueeze(1) * changes[:, k]
        weights.append(weight)
    vector = scale.unsqueeze(1) * vector
    for k in reversed(range(num_pairs)):
        weight = weights[k] - inverse[:, k] * (changes[:, k] * vector).sum(1)
        vector = vector + weight.unsqueeze(1) * steps[:, k]
    return -vector


def note_in_rows(
    rows: dict[str, Tensor], items: Tensor, params: Tensor, loss: Tensor, grad: Tensor
) -> None:
    """Note an evaluation of M problems in the rows of B, and of one that is nobody's, in place.

    Args:
        rows: Evaluations so far as "count", int64 [B + 1]; if kept, the best one as "loss" [B + 1],
            "params" and "grad" [B + 1, D] and "at", its number, int64 [B + 1]; if kept, the latest
            P as "points" and "grads" [B + 1, P, D], evaluation k in place k modulo P, and as "last"
            the latest loss [B + 1].
        items: The problems, no two the same, B for none; int64 [M].
        params: Where they were evaluated, shape [M, D].
        loss: Shape [M].
        grad: Shape [M, D].
    """
    if fused.serves_problems(params, grad, loss.unsqueeze(1)):
        from haltwise._kernels.fused.descent import note

        note(rows, items, params, loss, grad)
        return
    count = rows["count"].index_select(0, items)
    rows["count"].index_copy_(0, items, count + 1)
    if "last" in rows:
        num_places = rows["points"].shape[1]
        places = items * num_places + count % num_places
        rows["points"].flatten(0, 1).index_copy_(0, places, params)
        rows["grads"].flatten(0, 1).index_copy_(0, places, grad)
        rows["last"].index_copy_(0, items, loss)
    if "loss" in rows:
        better = (loss < rows["loss"].index_select(0, items)) & are_finite(grad).all(1)
        items = items.masked_fill(~better, len(rows["count"]) - 1)
        for name, value in (("loss", loss), ("params", params), ("grad", grad), ("at", count)):
            rows[name].index_copy_(0, items, value)
