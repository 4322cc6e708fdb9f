"""What a descent does beside its evaluations: L-BFGS's direction, and a record of what it saw."""

import torch
import triton
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise._kernels.fused import launching
from haltwise._kernels.fused.problems import direction_kernel, note_kernel, tiling
from haltwise._kernels.operands import require_operand

__all__ = ["direct", "note"]


def direct(grad: Tensor, scale: Tensor, inverse: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """-H gamma of float32 problems by the two loops, shape [M, D].

    Args:
        grad: gamma, shape [M, D], D at most `MAX_COORDINATES`.
        scale: Of the inverse Hessian to begin with, shape [M].
        inverse: 1 / <s, y> of every pair, the newest first, 0 where there is none, shape [M, P].
        steps: s, shape [M, P, D].
        changes: y, likewise.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """
    num_rows, dim = grad.shape
    pairs = num_rows, inverse.shape[1], dim
    given = [
        ("the gradients", grad, (num_rows, dim)),
        ("the scales", scale, (num_rows,)),
        ("the inverse products", inverse, pairs[:2]),
        ("the steps", steps, pairs),
        ("the changes", changes, pairs),
    ]
    for name, tensor, shape in given:
        require_operand(name, tensor, shape, torch.float32, grad.device)
    directions = torch.empty_like(grad, memory_format=torch.contiguous_format)
    if num_rows:
        operands = [tensor.detach().contiguous() for _, tensor, _ in given]
        grid, settings = tiling(num_rows, dim)
        columns = int(triton.next_power_of_2(pairs[1]))
        with launching(grad.device):
            direction_kernel[grid](
                *(*operands, directions, num_rows, dim), PAIRS=pairs[1], COLUMNS=columns, **settings
            )
    return directions


def note(
    rows: dict[str, Tensor], items: Tensor, params: Tensor, loss: Tensor, grad: Tensor
) -> None:
    """Note an evaluation of float32 problems in their rows.

    Args:
        rows: As those of `haltwise.processes.descent.note_in_rows`, which says what they are.
        items: The problems, int64 [M].
        params: Where they were evaluated, shape [M, D], D at most `MAX_COORDINATES`.
        loss: Shape [M].
        grad: Shape [M, D].

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """
    (num_rows, dim), device = grad.shape, grad.device
    given = [
        ("the problems", items, (num_rows,)),
        ("the parameters", params, (num_rows, dim)),
        ("the losses", loss, (num_rows,)),
        ("the gradients", grad, (num_rows, dim)),
    ]
    for name, tensor, shape in given:
        dtype = torch.int64 if tensor is items else torch.float32
        require_operand(name, tensor, shape, dtype, device)
    number, places = len(rows["count"]), rows["points"].shape[1] if "points" in rows else 0
    one, vector, several = (number,), (number, dim), (number, places, dim)
    kept = {"count": one, "loss": one, "params": vector, "grad": vector, "at": one}
    kept |= {"points": several, "grads": several, "last": one}
    for name, row in rows.items():
        dtype = torch.int64 if name in ("count", "at") else torch.float32
        require_operand(f"the row {name!r}", row, kept[name], dtype, device)
        if not row.is_contiguous():
            raise InputError(f"the row {name!r} must be contiguous: it is written in place")
    if num_rows:
        grid, settings = tiling(num_rows, dim)
        given_rows = (tensor.detach().contiguous() for _, tensor, _ in given)
        # What is not kept is not touched: any pointer will do.
        written = (rows.get(name, rows["count"]) for name in kept)
        with launching(device):
            note_kernel[grid](
                *(*given_rows, *written, num_rows, dim, number - 1),
                BEST="loss" in rows,
                PLACES=places,
                **settings,
            )
