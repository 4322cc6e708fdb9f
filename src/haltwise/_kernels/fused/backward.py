"""Triton kernels of T steps of a stacked LSTM: forward, and backward by recomputation.

N rows, I inputs, L layers of H units, T steps. A program owns `ROWS` rows for all steps. Widths are
padded to `UNITS`, a power of two; padded units have weights of zero and stay zero.

Parameters lie in one block: weight [4H, fan_in + H] and bias [4H] of every layer in turn, then
weight [O, H] and bias [O] of a read-out. A replay writes the gates [L, T, N, 4, H], which its
backward pass replaces by their derivatives, and states [L, T+1, N, H].
"""

import triton
import triton.language as tl

from haltwise._kernels.fused.cell import gradient_features

__all__ = [
    "backward_kernel",
    "forward_kernel",
    "input_kernel",
    "tanh",
    "weight_gradient_kernel",
]

_EXACT = tl.constexpr("tf32x3")


@triton.constexpr_function
def _begin(layer, inputs, size):
    """Where a layer's weight lies; its bias ends where the next layer's weight begins."""
    first = 4 * size * (inputs + size + 1)
    return 0 if layer == 0 else first + (layer - 1) * 4 * size * (2 * size + 1)


@triton.constexpr_function
def _width(layer, inputs, size):
    """Columns of a layer's weight."""
    return (inputs if layer == 0 else size) + size


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Accurate relative to its value near zero, too."""
    square = x * x
    series = -0.05396825396825397 + square * 0.021869488536155203
    series = 1 + square * (-0.3333333333333333 + square * (0.13333333333333333 + square * series))
    return tl.where(square < 0.0625, x * series, 2 / (1 + tl.exp(-2 * x)) - 1)


@triton.jit
def _tiles(block, begin, width, row, column, known, H: tl.constexpr):
    """A tile of a weight's four gates each, its rows and columns in any order."""
    tiles = ()
    for gate in tl.static_range(4):
        at = block + begin + (gate * H + row) * width + column
        tiles = tiles + (tl.load(at, mask=known, other=0.0),)
    return tiles


@triton.jit
def _layer_tiles(
    block, layer: tl.constexpr, BELOW: tl.constexpr, FORWARD: tl.constexpr,
    INPUTS: tl.constexpr, H: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """A layer's tiles of its own state or of the layer below, [fan_in, H], or [H, fan_in]."""
    down, across = tl.arange(0, UNITS)[:, None], tl.arange(0, UNITS)[None, :]
    known = (down < H) & (across < H)
    width: tl.constexpr = _width(layer, INPUTS, H)
    first: tl.constexpr = 0 if BELOW else width - H
    begin: tl.constexpr = _begin(layer, INPUTS, H)
    if FORWARD:
        return _tiles(block, begin, width, across, first + down, known, H)
    else:
        return _tiles(block, begin, width, down, first + across, known, H)


@triton.jit
def _kept_tiles(
    block, KEEP: tl.constexpr, FORWARD: tl.constexpr,
    INPUTS: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The tiles of all layers, unless they are to be loaded where they are used."""
    own, below = (), ()
    if KEEP:
        for layer in tl.static_range(LAYERS):
            own = own + (_layer_tiles(block, layer, False, FORWARD, INPUTS, H, UNITS),)
            if layer > 0:
                below = below + (_layer_tiles(block, layer, True, FORWARD, INPUTS, H, UNITS),)
    return own, below


@triton.jit
def _tiles_of(
    kept, block, layer: tl.constexpr, BELOW: tl.constexpr, KEEP: tl.constexpr,
    FORWARD: tl.constexpr, INPUTS: tl.constexpr, H: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    if KEEP:
        return kept[layer - 1] if BELOW else kept[layer]
    else:
        return _layer_tiles(block, layer, BELOW, FORWARD, INPUTS, H, UNITS)


@triton.jit
def _biases(block, begin, H: tl.constexpr, UNITS: tl.constexpr):
    u = tl.arange(0, UNITS)
    values = ()
    for gate in tl.static_range(4):
        values = values + (tl.load(block + begin + gate * H + u, mask=u < H, other=0.0),)
    return values


@triton.jit
def _input_columns(block, INPUTS: tl.constexpr, H: tl.constexpr, UNITS: tl.constexpr):
    """The first layer's weights of INPUTS inputs, [H] for each gate and input."""
    u = tl.arange(0, UNITS)
    columns = ()
    for gate in tl.static_range(4):
        for i in tl.static_range(INPUTS):
            at = block + (gate * H + u) * (INPUTS + H) + i
            columns = columns + (tl.load(at, mask=u < H, other=0.0),)
    return columns


@triton.jit
def _cell(z, c):
    """Gates, cell and hidden state after a step, from the gates' sums."""
    enter, forget, candidate, leave = _sigmoid(z[0]), _sigmoid(z[1]), tanh(z[2]), _sigmoid(z[3])
    c = forget * c + enter * candidate
    return (enter, forget, candidate, leave), c, leave * tanh(c)


@triton.jit
def _products(z, value, tiles):
    """`z` plus the products of rows with the four gates' tiles."""
    sums = ()
    for gate in tl.static_range(4):
        sums = sums + (tl.dot(value, tiles[gate], acc=z[gate], input_precision=_EXACT),)
    return sums


@triton.jit
def _load_state(state, row, known, H: tl.constexpr, LAYERS: tl.constexpr, UNITS: tl.constexpr):
    """Every layer's rows [ROWS, H] of a state [N, LAYERS, H]."""
    u = tl.arange(0, UNITS)[None, :]
    values = ()
    for layer in tl.static_range(LAYERS):
        at = state + (row[:, None] * LAYERS + layer) * H + u
        values = values + (tl.load(at, mask=known, other=0.0),)
    return values


@triton.jit
def _no_state(LAYERS: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr):
    values = ()
    for _ in tl.static_range(LAYERS):
        values = values + (tl.zeros((ROWS, UNITS), tl.float32),)
    return values


@triton.jit
def _store_state(
    state, values, row, known, H: tl.constexpr, LAYERS: tl.constexpr, UNITS: tl.constexpr
):
    u = tl.arange(0, UNITS)[None, :]
    for layer in tl.static_range(LAYERS):
        tl.store(state + (row[:, None] * LAYERS + layer) * H + u, values[layer], mask=known)


@triton.jit(do_not_specialize=["num_row_steps"])
def input_kernel(
    inputs, block, sums, num_row_steps,
    INPUTS: tl.constexpr, H: tl.constexpr, UNITS: tl.constexpr, PADDED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The first layer's sums over its inputs [T, N, INPUTS], biases included, [T, N, 4, H]."""
    row, gate = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE), tl.program_id(1)
    u, i = tl.arange(0, UNITS), tl.arange(0, PADDED)
    is_row = (row < num_row_steps)[:, None]
    values = tl.load(
        inputs + row[:, None] * INPUTS + i, mask=is_row & (i < INPUTS)[None, :], other=0.0
    )
    of = block + (gate * H + u)[None, :] * (INPUTS + H) + i[:, None]
    weight = tl.load(of, mask=(u < H)[None, :] & (i < INPUTS)[:, None], other=0.0)
    bias = tl.load(block + 4 * H * (INPUTS + H) + gate * H + u, mask=u < H, other=0.0)
    found = tl.dot(values, weight, input_precision=_EXACT) + bias[None, :]
    tl.store(sums + (row[:, None] * 4 + gate) * H + u, found, mask=is_row & (u < H)[None, :])


@triton.jit(do_not_specialize=["num_steps", "num_rows"])
def forward_kernel(
    sums, hidden, cell, block, outputs, hidden_out, cell_out, num_steps, num_rows,
    INPUTS: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr, UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """T steps from the first layer's sums over its inputs, [T, N, 4H], biases included."""
    num_rows = num_rows.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    u = tl.arange(0, UNITS)[None, :]
    known = (row < num_rows)[:, None] & (u < H)
    h, c = (
        _load_state(hidden, row, known, H, LAYERS, UNITS),
        _load_state(cell, row, known, H, LAYERS, UNITS),
    )
    own, below = _kept_tiles(block, KEEP, True, INPUTS, H, LAYERS, UNITS)
    biases = ()
    for layer in tl.static_range(1, LAYERS):
        biases = biases + (_biases(block, _begin(layer + 1, INPUTS, H) - 4 * H, H, UNITS),)
    at = row[:, None]
    for _ in range(num_steps):
        z = ()
        for gate in tl.static_range(4):
            z = z + (tl.load(sums + at * 4 * H + gate * H + u, mask=known, other=0.0),)
        new_h, new_c = (), ()
        for layer in tl.static_range(LAYERS):
            if layer > 0:
                tiles = _tiles_of(below, block, layer, True, KEEP, True, INPUTS, H, UNITS)
                z = _products(_spread(biases[layer - 1], ROWS, UNITS), new_h[layer - 1], tiles)
            tiles = _tiles_of(own, block, layer, False, KEEP, True, INPUTS, H, UNITS)
            _, after, output = _cell(_products(z, h[layer], tiles), c[layer])
            new_h, new_c = new_h + (output,), new_c + (after,)
        h, c = new_h, new_c
        tl.store(outputs + at * H + u, h[LAYERS - 1], mask=known)
        at += num_rows
    _store_state(hidden_out, h, row, known, H, LAYERS, UNITS)
    _store_state(cell_out, c, row, known, H, LAYERS, UNITS)


@triton.jit
def _spread(values, ROWS: tl.constexpr, UNITS: tl.constexpr):
    spread = ()
    for gate in tl.static_range(4):
        spread = spread + (tl.broadcast_to(values[gate][None, :], (ROWS, UNITS)),)
    return spread


@triton.jit
def _level(pooled, plane, row, is_row, group):
    """Mean and inverse root mean square of the gradient of every row's problem, at a step."""
    at = pooled + 2 * (plane + row // group)
    return tl.load(at, mask=is_row, other=0.0), tl.load(at + 1, mask=is_row, other=0.0)


@triton.jit
def _features(grad, mean, INPUTS: tl.constexpr):
    """What rows read: features of their gradients, and of the means if there are 4 inputs."""
    values = gradient_features(grad)
    if INPUTS == 4:
        values = values + gradient_features(mean)
    return values


@triton.jit
def _read_inputs(sums, inputs, columns, INPUTS: tl.constexpr):
    """The first layer's `sums` plus the products of its inputs with their weights."""
    read = ()
    for gate in tl.static_range(4):
        z = sums[gate]
        for i in tl.static_range(INPUTS):
            z += inputs[i][:, None] * columns[gate * INPUTS + i][None, :]
        read = read + (z,)
    return read


@triton.jit
def _read_out_backward(
    d_update, top, grad, mean, inverse, weights, biases, scale, is_row, OUTPUTS: tl.constexpr
):  # fmt: skip
    """Derivatives with respect to the OUTPUTS numbers that are read out of the top layer."""
    direction = tl.sum(top * weights[0][None, :], 1) + biases[0]
    length = scale
    level = mean * inverse
    own = grad * inverse - level
    if OUTPUTS > 1:
        length = scale * tl.exp(tl.sum(top * weights[1][None, :], 1) + biases[1])
    if OUTPUTS > 2:
        direction += (tl.sum(top * weights[2][None, :], 1) + biases[2]) * own
        direction += (tl.sum(top * weights[3][None, :], 1) + biases[3]) * level
    first = d_update * length
    found = (tl.where(is_row, first, 0.0),)
    if OUTPUTS > 1:
        found = found + (tl.where(is_row, first * direction, 0.0),)
    if OUTPUTS > 2:
        found = found + (tl.where(is_row, first * own, 0.0), tl.where(is_row, first * level, 0.0))
    return found


@triton.jit
def _cell_backward(dh, dc, gates, before, after):
    """Derivatives of the gates' sums and of the cell before a step."""
    squashed = tanh(after)
    dc += dh * gates[3] * (1 - squashed * squashed)
    d_sums = (
        dc * gates[2] * (gates[0] * (1 - gates[0])),
        dc * before * (gates[1] * (1 - gates[1])),
        dc * gates[0] * (1 - gates[2] * gates[2]),
        dh * squashed * (gates[3] * (1 - gates[3])),
    )
    return d_sums, dc * gates[1]


@triton.jit
def _collect(d_sums, tiles, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """The products of the four gates' derivatives with their tiles, summed."""
    total = tl.zeros((ROWS, UNITS), tl.float32)
    for gate in tl.static_range(4):
        total = tl.dot(d_sums[gate], tiles[gate], acc=total, input_precision=_EXACT)
    return total


@triton.jit(do_not_specialize=["num_steps", "num_rows", "first_row", "group", "num_problems"])
def backward_kernel(
    given, pooled, hidden, cell, block,
    d_outputs, d_updates, d_means, d_hidden, d_cell,
    features, gates, cells, hiddens,
    d_first_hidden, d_first_cell, d_readouts,
    num_steps, num_rows, first_row, group, num_problems, scale,
    INPUTS: tl.constexpr, H: tl.constexpr, LAYERS: tl.constexpr, OUTPUTS: tl.constexpr,
    UNITS: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Replay T steps into `gates`, `cells` and `hiddens`, and go back through them."""
    num_rows, num_problems = num_rows.to(tl.int64), num_problems.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = row < num_rows
    u = tl.arange(0, UNITS)[None, :]
    known = is_row[:, None] & (u < H)
    at = row[:, None]
    h, c = (
        _load_state(hidden, row, known, H, LAYERS, UNITS),
        _load_state(cell, row, known, H, LAYERS, UNITS),
    )
    own, below = _kept_tiles(block, KEEP, True, INPUTS, H, LAYERS, UNITS)
    biases = ()
    for layer in tl.static_range(LAYERS):
        biases = biases + (_biases(block, _begin(layer + 1, INPUTS, H) - 4 * H, H, UNITS),)
        plane = num_rows * (layer * (num_steps + 1))
        tl.store(hiddens + (plane + at) * H + u, h[layer], mask=known)
        tl.store(cells + (plane + at) * H + u, c[layer], mask=known)
    if OUTPUTS > 0:
        columns = _input_columns(block, INPUTS, H, UNITS)
    for t in range(num_steps):
        if OUTPUTS > 0:
            grad = tl.load(given + t * num_rows + row, mask=is_row, other=0.0)
            plane = t * num_problems
            mean, _ = _level(pooled, plane, first_row + row, is_row, group)
            inputs = _features(grad, mean, INPUTS)
            for i in tl.static_range(INPUTS):
                to = features + (t * num_rows + row) * INPUTS + i
                tl.store(to, inputs[i], mask=is_row)
            z = _read_inputs(_spread(biases[0], ROWS, UNITS), inputs, columns, INPUTS)
        else:
            z = ()
            for gate in tl.static_range(4):
                of = given + (t * num_rows + at) * 4 * H + gate * H + u
                z = z + (tl.load(of, mask=known, other=0.0),)
        new_h, new_c = (), ()
        for layer in tl.static_range(LAYERS):
            if layer > 0:
                tiles = _tiles_of(below, block, layer, True, KEEP, True, INPUTS, H, UNITS)
                z = _products(_spread(biases[layer], ROWS, UNITS), new_h[layer - 1], tiles)
            tiles = _tiles_of(own, block, layer, False, KEEP, True, INPUTS, H, UNITS)
            opened, after, output = _cell(_products(z, h[layer], tiles), c[layer])
            new_h, new_c = new_h + (output,), new_c + (after,)
            plane = num_rows * (layer * num_steps + t)
            for gate in tl.static_range(4):
                tl.store(gates + ((plane + at) * 4 + gate) * H + u, opened[gate], mask=known)
            plane = num_rows * (layer * (num_steps + 1) + t + 1)
            tl.store(hiddens + (plane + at) * H + u, output, mask=known)
            tl.store(cells + (plane + at) * H + u, after, mask=known)
        h, c = new_h, new_c
    tl.debug_barrier()  # other threads read what these have written
    own, below = _kept_tiles(block, KEEP, False, INPUTS, H, LAYERS, UNITS)
    dh, dc = _no_state(LAYERS, ROWS, UNITS), _no_state(LAYERS, ROWS, UNITS)
    if d_hidden is not None:
        dh = _load_state(d_hidden, row, known, H, LAYERS, UNITS)
    if d_cell is not None:
        dc = _load_state(d_cell, row, known, H, LAYERS, UNITS)
    begin: tl.constexpr = _begin(LAYERS, INPUTS, H)
    readers, levels, weight_sums, bias_sums = (), (), (), ()
    for o in tl.static_range(OUTPUTS):
        vector = tl.arange(0, UNITS)
        reader = tl.load(block + begin + o * H + vector, mask=vector < H, other=0.0)
        readers = readers + (reader,)
        levels = levels + (tl.load(block + begin + OUTPUTS * H + o),)
        weight_sums = weight_sums + (tl.zeros((ROWS, UNITS), tl.float32),)
        bias_sums = bias_sums + (tl.zeros((ROWS,), tl.float32),)
    for t in range(num_steps - 1, -1, -1):
        down = dh[LAYERS - 1]
        if d_outputs is not None:
            of = d_outputs + (t * num_rows + at) * H + u
            down += tl.load(of, mask=known, other=0.0)
        if d_means is not None:
            problem = t * num_problems + (first_row + at) // group
            down += tl.load(d_means + problem * H + u, mask=known, other=0.0)
        if OUTPUTS > 0:
            plane = num_rows * ((LAYERS - 1) * (num_steps + 1) + t + 1)
            top = tl.load(hiddens + (plane + at) * H + u, mask=known, other=0.0)
            grad = tl.load(given + t * num_rows + row, mask=is_row, other=0.0)
            d_update = tl.load(d_updates + t * num_rows + row, mask=is_row, other=0.0)
            plane = t * num_problems
            mean, inverse = _level(pooled, plane, first_row + row, is_row, group)
            found = _read_out_backward(
                d_update, top, grad, mean, inverse, readers, levels, scale, is_row, OUTPUTS
            )
            new_weights, new_biases = (), ()
            for o in tl.static_range(OUTPUTS):
                down += found[o][:, None] * readers[o][None, :]
                new_weights = new_weights + (weight_sums[o] + top * found[o][:, None],)
                new_biases = new_biases + (bias_sums[o] + found[o],)
            weight_sums, bias_sums = new_weights, new_biases
        new_dh, new_dc, new_c = (), (), ()
        for layer in tl.static_range(LAYERS - 1, -1, -1):
            plane = num_rows * (layer * (num_steps + 1) + t)
            before = tl.load(cells + (plane + at) * H + u, mask=known, other=0.0)
            plane = num_rows * (layer * num_steps + t)
            opened = ()
            for gate in tl.static_range(4):
                of = gates + ((plane + at) * 4 + gate) * H + u
                opened = opened + (tl.load(of, mask=known, other=0.0),)
            d_z, d_before = _cell_backward(down, dc[layer], opened, before, c[layer])
            for gate in tl.static_range(4):
                tl.store(gates + ((plane + at) * 4 + gate) * H + u, d_z[gate], mask=known)
            tiles = _tiles_of(own, block, layer, False, KEEP, False, INPUTS, H, UNITS)
            new_dh = (_collect(d_z, tiles, ROWS, UNITS),) + new_dh
            new_dc, new_c = (d_before,) + new_dc, (before,) + new_c
            if layer > 0:
                tiles = _tiles_of(below, block, layer, True, KEEP, False, INPUTS, H, UNITS)
                down = dh[layer - 1] + _collect(d_z, tiles, ROWS, UNITS)
        dh, dc, c = new_dh, new_dc, new_c
    if d_first_hidden is not None:
        _store_state(d_first_hidden, dh, row, known, H, LAYERS, UNITS)
        _store_state(d_first_cell, dc, row, known, H, LAYERS, UNITS)
    for o in tl.static_range(OUTPUTS):
        vector = tl.arange(0, UNITS)
        to = d_readouts + tl.program_id(0) * OUTPUTS * (H + 1)
        tl.store(to + o * H + vector, tl.sum(weight_sums[o], 0), mask=vector < H)
        tl.store(to + OUTPUTS * H + o, tl.sum(bias_sums[o], 0))


@triton.jit
def _add_weight_gradient(
    inputs, hiddens, d_sums, partial, begin, end, fan_in: tl.constexpr,
    H: tl.constexpr, UNITS: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One gate's part of a layer's weight and bias, summed over rows `begin` to `end`."""
    gate = tl.program_id(0)
    u, k, i = tl.arange(0, UNITS), tl.arange(0, UNITS), tl.arange(0, PADDED)
    own = tl.zeros((UNITS, UNITS), tl.float32)
    below = tl.zeros((UNITS, PADDED), tl.float32)
    bias = tl.zeros((UNITS, TILE), tl.float32)
    for at in range(begin, end, TILE):
        row = at + tl.arange(0, TILE)
        is_row = row < end
        of = d_sums + (row[None, :] * 4 + gate) * H + u[:, None]
        values = tl.load(of, mask=is_row[None, :] & (u < H)[:, None], other=0.0)
        of = hiddens + row[:, None] * H + k[None, :]
        state = tl.load(of, mask=is_row[:, None] & (k < H)[None, :], other=0.0)
        of = inputs + row[:, None] * fan_in + i[None, :]
        read = tl.load(of, mask=is_row[:, None] & (i < fan_in)[None, :], other=0.0)
        own = tl.dot(values, state, acc=own, input_precision=_EXACT)
        below = tl.dot(values, read, acc=below, input_precision=_EXACT)
        bias += values
    width = fan_in + H
    to = partial + (gate * H + u)[:, None] * width
    tl.store(to + i[None, :], below, mask=(u < H)[:, None] & (i < fan_in)[None, :])
    tl.store(to + fan_in + k[None, :], own, mask=(u < H)[:, None] & (k < H)[None, :])
    tl.store(partial + 4 * H * width + gate * H + u, tl.sum(bias, 1), mask=u < H)


@triton.jit(do_not_specialize=["num_steps", "num_rows", "length", "num_params"])
def weight_gradient_kernel(
    inputs, gates, hiddens, partials, num_steps, num_rows, length, num_params,
    INPUTS: tl.constexpr, H: tl.constexpr, UNITS: tl.constexpr, PADDED: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Every layer's weight gradient from the gates' derivatives, in parts of `length` row-steps."""
    layer, part = tl.program_id(1), tl.program_id(2)
    num_rows = num_rows.to(tl.int64)
    whole = num_steps * num_rows
    begin = part * length
    end = tl.minimum(begin + length, whole)
    state = hiddens + (whole + num_rows) * layer * H
    d_sums = gates + whole * layer * 4 * H
    partial = partials + part * num_params
    if layer == 0:
        _add_weight_gradient(
            inputs, state, d_sums, partial, begin, end, INPUTS, H, UNITS, PADDED, TILE
        )
    else:
        # What the layer below put out at the same step lies a step behind its state before.
        read = state - (whole + num_rows) * H + num_rows * H
        to = (
            partial
            + _begin(1, INPUTS, H)
            + (layer - 1) * (_begin(2, INPUTS, H) - _begin(1, INPUTS, H))
        )
        _add_weight_gradient(read, state, d_sums, to, begin, end, H, H, UNITS, UNITS, TILE)
