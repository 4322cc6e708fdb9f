"""The same meta-gradient by hand in JAX: one jitted `lax.scan`, optionally checkpointed.

Optional: `pip install jax`. Losses, features, halter and objective are those of `naive.py`.
"""

import os
from collections.abc import Callable

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from workloads import Workload

from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.tasks.module import ModuleBatch

__all__ = ["meta_gradient"]

Array = jax.Array
Weights = dict[str, list[Array]]
_TINY, _HUGE = 1e-30, 1e30


def _numpy(value: object) -> np.ndarray:
    return value.detach().numpy()  # type: ignore[attr-defined]


def _weights(workload: Workload) -> Weights:
    rule, halter = workload.optimizer.rule, workload.optimizer.halting.halter
    return {
        "weights": [jnp.asarray(_numpy(w)) for w in rule.weights],
        "biases": [jnp.asarray(_numpy(b)) for b in rule.biases],
        "readout": [jnp.asarray(_numpy(v)) for v in (rule.readout_weight, rule.readout_bias)],
        "memory": [
            jnp.asarray(_numpy(v)) for v in (halter.memory_weights[0], halter.memory_biases[0])
        ],
        "halter_weights": [jnp.asarray(_numpy(w)) for w in halter.weights],
        "halter_biases": [jnp.asarray(_numpy(b)) for b in halter.biases],
    }


def _preprocess(grad: Array) -> Array:
    least = np.exp(-10.0).astype(grad.dtype)
    return jnp.stack(
        (jnp.log(jnp.maximum(jnp.abs(grad), least)) / 10, jnp.clip(grad / least, -1, 1)), -1
    )


def _cell(weight: Array, bias: Array, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    gates = jnp.concatenate((x, h), -1) @ weight.T + bias
    i, f, g, o = jnp.split(gates, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _signals(t: Array, loss: Array, vectors: Array) -> Array:
    """The columns of `SIGNALS` from gamma_t, g_t, y, g_{t-1} and gamma_{t-1}."""
    products = jnp.clip(vectors @ jnp.swapaxes(vectors, -1, -2), -_HUGE, _HUGE)
    dim = vectors.shape[-1]
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(products, axis1=-2, axis2=-1), _TINY))
    cosines = products / lengths[..., None] / lengths[..., None, :]
    logs = jnp.log(lengths) - 0.5 * np.log(dim)
    secant, grad_square = products[..., 2, 3], products[..., 0, 0]
    curvature = jnp.clip(secant / jnp.maximum(products[..., 3, 3], _TINY), 1e-8, _HUGE)
    inverse = jnp.clip(secant / jnp.maximum(products[..., 2, 2], _TINY), 0, 1e8)
    known = (t > 0).astype(loss.dtype)
    columns = (
        jnp.full_like(loss, t),
        loss,
        logs[..., 0],
        logs[..., 1],
        -products[..., 0, 1],
        known * 0.5 * curvature * products[..., 1, 1],
        known * 0.5 * inverse * grad_square,
        known * 0.5 * grad_square / curvature,
        -products[..., 0, 3],
        known * jnp.log(curvature),
        -cosines[..., 0, 1],
        cosines[..., 0, 4],
        cosines[..., 1, 3],
    )
    return jnp.stack(columns, -1)


def _features(
    seen: Array, price: Array, memory: tuple[Array, Array, Array]
) -> tuple[Array, tuple[Array, Array, Array]]:
    """`haltwise.halting.features.optimization` of one step."""
    previous, last_loss, lowest = memory
    t, loss = seen[:, 0], seen[:, 1]
    first = t == 0

    def priced(gain: Array, largest: float = 1e8) -> Array:
        return jnp.arcsinh(jnp.clip(gain / price, -largest, largest)) / 4

    lowest = jnp.minimum(lowest, loss)
    gain, bend, least, most, overshoot = (seen[:, i] for i in (4, 5, 6, 7, 8))
    now = jnp.stack(
        (
            seen[:, 2] / 4,
            seen[:, 3] / 4,
            priced(loss, _HUGE) / 2,
            priced(jnp.where(first, 0, last_loss - loss)),
            priced(gain),
            priced(gain - bend),
            priced(least),
            priced(most),
            seen[:, 9] / 4,
        ),
        -1,
    )
    rest = (
        priced(loss - lowest),
        priced(lowest, _HUGE) / 2,
        priced(overshoot),
        seen[:, 10],
        seen[:, 11],
        seen[:, 12],
        jnp.log1p(t) / 2,
        jnp.log(price) / 2,
    )
    change = jnp.where(first[:, None], 0, now - previous)
    return jnp.concatenate((now, change, jnp.stack(rest, -1)), -1), (now, loss, lowest)


def meta_gradient(  # noqa: PLR0915
    workload: Workload, *, checkpoint: bool
) -> Callable[[], list[np.ndarray]]:
    """A function of nothing: the gradients, blocked on, in the order of the optimizer's weights."""
    batch, num_steps, segment = workload.batch, workload.num_steps, workload.segment
    price, start = jnp.asarray(_numpy(workload.price)), jnp.asarray(_numpy(batch.start))
    scale = workload.optimizer.rule.output_scale
    reference = jnp.asarray(_numpy(batch.reference_loss))
    if isinstance(batch, LeastSquaresBatch):
        factor, target, weight = (
            jnp.asarray(_numpy(v)) for v in (batch.factor, batch.target, batch.scale)
        )
        data = jnp.zeros((num_steps + 1, 1))

        def loss_of(params: Array, _: Array) -> Array:
            residual = jnp.einsum("bmd,bd->bm", factor, params) - target
            return weight * jnp.square(residual).sum(-1)

    else:
        assert isinstance(batch, ModuleBatch)
        drawn = [batch.minibatch(step) for step in range(num_steps + 1)]
        images = jnp.asarray(np.stack([_numpy(x[0]).reshape(128, -1) for x, _ in drawn]))
        labels = jnp.asarray(np.stack([_numpy(y[0]) for _, y in drawn]))
        data = (images, labels)
        units = (start.shape[1] - 10) // 795

        def loss_of(params: Array, example: tuple[Array, Array]) -> Array:
            x, y = example
            p, cut = params[0], 784 * units
            hidden = jax.nn.sigmoid(x @ p[:cut].reshape(units, 784).T + p[cut : cut + units])
            last = p[cut + units :]
            logits = hidden @ last[: 10 * units].reshape(10, units).T + last[10 * units :]
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
            return -chosen.mean()[None]

    num_problems, dim = start.shape
    rows = num_problems * dim

    def step(weights: Weights, carry: tuple, inputs: tuple) -> tuple:
        params, states, memory, last_grad, last_update, recent = carry
        t, example = inputs
        cut = (t % segment) == 0
        states = jax.tree.map(lambda v: jnp.where(cut, jax.lax.stop_gradient(v), v), states)
        loss, pull = jax.vjp(lambda p: loss_of(p, example), params)
        grad = jax.lax.stop_gradient(pull(jnp.ones_like(loss))[0])
        mean = jnp.broadcast_to(grad.mean(-1, keepdims=True), grad.shape)
        value = jnp.concatenate((_preprocess(grad), _preprocess(mean)), -1).reshape(rows, 4)
        new = []
        for w, b, (h, c) in zip(weights["weights"], weights["biases"], states, strict=True):
            new.append(_cell(w, b, value, h, c))
            value = new[-1][0]
        out = (value @ weights["readout"][0].T + weights["readout"][1]).reshape(
            num_problems, dim, 4
        )
        normal = grad / jnp.sqrt(jnp.square(grad).mean(-1, keepdims=True))
        level = normal.mean(-1, keepdims=True)
        direction = out[..., 0] + out[..., 2] * (normal - level) + out[..., 3] * level
        update = scale * direction * jnp.exp(out[..., 1])
        pooled = value.reshape(num_problems, dim, -1).mean(1)
        frozen = jax.lax.stop_gradient(update)
        vectors = jnp.stack((grad, frozen, grad - last_grad, last_update, last_grad), -2)
        observed = jax.lax.stop_gradient(loss) + reference
        features, recent = _features(_signals(t, observed, vectors), price, recent)
        halter_inputs = jnp.concatenate((features, pooled), -1)
        memory = _cell(*weights["memory"], jax.lax.stop_gradient(halter_inputs), *memory)
        raw = jnp.concatenate((halter_inputs, memory[0]), -1)
        layers = list(zip(weights["halter_weights"], weights["halter_biases"], strict=True))
        for w, b in layers[:-1]:
            raw = jax.nn.silu(raw @ w.T + b)
        raw = raw @ layers[-1][0].T + layers[-1][1]
        carry = (params + update, new, memory, grad, frozen, recent)
        return carry, (loss, raw)

    def objective(weights: Weights) -> Array:
        zeros = jnp.zeros((rows, weights["biases"][0].shape[0] // 4))
        states = [(zeros, zeros) for _ in weights["biases"]]
        zeros = jnp.zeros((num_problems, weights["memory"][1].shape[0] // 4))
        blank = jnp.zeros_like(start)
        recent = (jnp.zeros((num_problems, 9)), jnp.zeros(num_problems), price * 0 + jnp.inf)
        carry = (start, states, (zeros, zeros), blank, blank, recent)
        steps = jnp.arange(num_steps)
        examples = jax.tree.map(lambda value: value[:-1], data)

        def one(carry: tuple, inputs: tuple) -> tuple:
            return step(weights, carry, inputs)

        body = jax.checkpoint(one) if checkpoint else one
        carry, (losses, outputs) = jax.lax.scan(body, carry, (steps, examples))
        final = loss_of(carry[0], jax.tree.map(lambda value: value[-1], data))
        losses = jnp.concatenate((losses, final[None])).T
        logits = outputs[..., 0].T - 2
        survival = jnp.cumsum(jax.nn.log_sigmoid(-logits), -1)
        log_prob = jnp.pad(survival, ((0, 0), (1, 0))) + jnp.pad(
            jax.nn.log_sigmoid(logits), ((0, 0), (0, 1))
        )
        energy = losses + price[:, None] * (jnp.arange(num_steps + 1) + log_prob)
        halts = (jnp.exp(log_prob) * energy).sum(1)
        return (losses[:, 1:].mean(1) + halts).mean()

    weights, differentiate = _weights(workload), jax.jit(jax.grad(objective))

    def run() -> list[np.ndarray]:
        found = jax.block_until_ready(differentiate(weights))
        return [np.asarray(found["weights"][0]), np.asarray(found["halter_weights"][0])]

    return run
