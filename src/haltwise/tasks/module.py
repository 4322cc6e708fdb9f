"""Any `nn.Module` with a loss and minibatches as a family of problems."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import Any, Literal, NamedTuple, Self, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_map

from haltwise._core.errors import InputError, require
from haltwise._core.random import split_mix, stream
from haltwise._core.settings import require_at_least
from haltwise._core.tensors import is_plain, kind_of, widened, widest
from haltwise.tasks.base import DifferentiatedScore, Observation, Score, TaskBatch, TaskFamily

__all__ = ["Examples", "HeldOut", "ModuleBatch", "ModuleTask", "minibatch_indices"]

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_UNITS = "units of the parameters"  # no module has a tensor of that name
_CPU_CHUNK = 256  # examples whose activations a cache holds
_ACCELERATOR_CHUNK = 32768  # examples that keep a GPU busy


def _channels_last(value: Any) -> Any:
    """Store images with their channels last; return anything else as it is."""
    if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _unchanged(value: Any) -> Any:
    return value


def _copied(module: nn.Module) -> nn.Module:
    """A copy that shares what layers compute of their parameters, which cannot be copied."""
    computed = {
        id(value): value
        for layer in module.modules()
        for value in vars(layer).values()
        if isinstance(value, Tensor)
    }
    return copy.deepcopy(module, computed)


def _lent(values: Any) -> Any:
    """Copies of tensors that nobody misses."""
    return tree_map(torch.clone, values)


def _tells_classes(outputs: object, targets: Tensor) -> bool:
    """Whether there is an output for each of several classes, along dimension 1."""
    if targets.is_floating_point() or not isinstance(outputs, Tensor) or outputs.ndim < 2:
        return False
    num_items, num_classes, *others = outputs.shape
    return num_classes > 1 and [num_items, *others] == [*targets.shape]


def _succeeds(function: Callable[..., Any], *args: Any) -> bool:
    """Whether PyTorch can do it; whatever else is raised, as for want of memory, is not caught."""
    try:
        function(*args)
    except RuntimeError as error:
        if type(error) not in (RuntimeError, NotImplementedError):
            raise
        return False
    return True


def _require_determined(function: Callable[[], Any], device: torch.device) -> None:
    """Refuse a function of problems that draws random numbers."""

    def states() -> list[Tensor]:
        here = [torch.get_rng_state()]
        is_cpu = device.type == "cpu"
        return here if is_cpu else [*here, torch.get_device_module(device).get_rng_state().cpu()]

    before = states()
    function()
    require(
        all(map(torch.equal, before, states())),
        "the module draws random numbers in training, as dropout does, so that its loss is no "
        "function of parameters and examples; leave that out, or set its p to 0",
    )


@final
class Examples:
    """N examples that all problems share; not a tensor, so that `select` leaves it as it is.

    Args:
        inputs: Shape [N, ...]. Floating ones are cast to the dtype of the parameters.
        targets: Shape [N, ...]. Floating ones are cast, too.
        scale: If given, inputs are cast and multiplied by it in `take`, so that images stay bytes
            in memory.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, scale: float | None = None) -> None:
        for name, value in (("inputs", inputs), ("targets", targets)):
            require(
                isinstance(value, Tensor),
                f"{name} must be a tensor with the examples along its first dimension, got "
                f"{type(value).__name__}; make one by torch.as_tensor",
            )
        require(len(inputs) > 0, "a data set needs at least 1 example, got none")
        require(
            len(inputs) == len(targets),
            f"inputs and targets must be equal in number, got {len(inputs)} and {len(targets)}",
        )
        self._on = {inputs.device: (inputs, targets)}
        self._first, self._scale = inputs.device, scale

    def __len__(self) -> int:
        return len(self._on[self._first][1])

    def take(self, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Take inputs and targets at `index` (int64, shape [...]), on its device."""
        if index.device not in self._on:
            kept, labels = self._on[self._first]
            self._on[index.device] = kept.to(index.device), labels.to(index.device)
        inputs, targets = (
            value.index_select(0, index.flatten()).view(*index.shape, *value.shape[1:])
            for value in self._on[index.device]
        )
        if self._scale is not None:
            inputs = inputs * torch.tensor(self._scale, dtype=dtype, device="cpu")
        elif inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return inputs, targets.to(dtype) if targets.is_floating_point() else targets


def minibatch_indices(streams: Tensor, step: int, batch_size: int, num_examples: int) -> Tensor:
    """Draw the examples of step t of each stream, with replacement as in L2L's code.

    The t-th block of the output of `split_mix`: a pure function of stream and step, the same
    integers on every device. From seeds, int64 [B], to indices in [0, N), int64 [B, M], whose
    probabilities are uniform to N / 2^31.
    """
    counter = torch.arange(batch_size, device=streams.device) + step * batch_size
    bits = split_mix(streams.unsqueeze(1), counter)
    return ((bits >> 33 & 2**31 - 1) * num_examples) >> 31


class HeldOut(NamedTuple):
    """Mean loss and accuracy of networks on the test examples, shape [B] each.

    The accuracy is the share of examples whose largest output is the target's, NaN if there is no
    output [N, C, ...] for each of C classes beside targets [N, ...].
    """

    loss: Tensor
    accuracy: Tensor


@final
@dataclass(frozen=True, eq=False)
class ModuleTask(TaskFamily):
    """Training of one network architecture from random initialisations on random minibatches.

    The problem's parameters are the trainable parameters of the module, flattened and
    concatenated in the order of `named_parameters()`, after a stable sort by `group`. Frozen
    parameters (`requires_grad=False`) and buffers are not among them; each problem has its own.

    The observed loss is that of a minibatch with the module in training mode. It is pure: what a
    module changes in place, as running statistics or its inputs, is a copy, discarded afterwards.
    In evaluation mode statistics of batch and instance normalisation are recomputed from fixed
    training examples ("precise BN": Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section
    3), so that held-out losses are a function of the parameters alone.

    A module must be deterministic: one that draws random numbers, as by dropout, is refused. It is
    copied, so that one which others use, too, stays as it is. What `torch.func.vmap` cannot map
    over problems, as recurrent layers, is computed for one problem after the other. As it holds
    code and data, a task of this class cannot be named on a card; the shipped families build one.
    Source: section 3 of L2L (Andrychowicz et al. 2016), for any module.

    Args:
        make_module: Makes the module, with its own random initialisation.
        loss: Mean loss of a minibatch from (outputs, targets), a scalar.
        train: Examples that minibatches are drawn from.
        test: Examples for `held_out`.
        batch_size: Examples of a minibatch.
        num_score: Number of training examples, a fixed random choice, whose mean loss stopping is
            judged by, and whose statistics normalise in evaluation mode; all if there are fewer.
        init: theta_0: "module" for the module's own scheme, or "normal" for N(0, init_std^2)
            except in normalisation layers, which keep their own.
        init_std: Standard deviation of theta_0 if `init` is "normal".
        unit_range: Every tensor of each problem counts in a unit of its own, drawn log-uniformly
            from 1 / unit_range to unit_range: the network's parameters are `unit * theta`.
        group: From a parameter's name to the number of its group; groups are consecutive.
    """

    make_module: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    train: Examples
    test: Examples | None = None
    batch_size: int = 128
    num_score: int = 2000
    init: Literal["normal", "module"] = "module"
    init_std: float = 0.01
    unit_range: float = 1.0
    group: Callable[[str], int] = field(default=lambda _: 0)

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "num_score", "unit_range")
        require_at_least(0, self, "init_std")
        require(
            self.init in ("normal", "module"),
            f"init must be 'normal' or 'module', got {self.init!r}",
        )
        for name, value in self._module.named_parameters():
            require(
                is_plain(value) and (value.is_floating_point() or not value.requires_grad),
                f"the parameter {name!r} of the module is a {type(value).__name__} of "
                f"{value.dtype} on {value.device}; the parameters of a problem are real numbers in "
                "memory: initialize lazy layers, and view complex parameters as real ones",
            )
        require(self.dim > 0, "the module has no trainable parameter, so nothing to optimize")

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the trainable parameters by name, in the order of concatenation."""
        named = {
            name: value.shape
            for name, value in self._module.named_parameters()
            if value.requires_grad
        }
        return dict(sorted(named.items(), key=lambda item: self.group(item[0])))

    @property
    def dim(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    def views(self, params: Tensor) -> dict[str, Tensor]:
        """Named views of flat parameters [..., D], each [..., *shape]."""
        pieces = params.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: piece.unflatten(-1, shape) if shape else piece.squeeze(-1)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    @cached_property
    def _module(self) -> nn.Module:
        """The module in training mode, used for its shapes; every problem has its own tensors."""
        require(
            not isinstance(self.make_module, nn.Module),
            "make_module must make a module whenever it is called, got a "
            f"{type(self.make_module).__name__}; give a function, such as its class",
        )
        with torch.random.fork_rng(devices=[]):
            module = _copied(self.make_module())
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase):
                layer.momentum = 1.0  # running statistics are then those of the last batch
        return module.train()

    @cached_property
    def _evaluated(self) -> nn.Module:
        return _copied(self._module).eval()

    @cached_property
    def _own_scheme(self) -> frozenset[str]:
        """Names of the parameters that start by the module's scheme."""
        if self.init == "module":
            return frozenset(self.shapes)
        return frozenset(
            f"{path}.{name}" if path else name
            for path, layer in self._module.named_modules()
            if isinstance(layer, _NORMALISATIONS)
            for name, _ in layer.named_parameters(recurse=False)
        )

    def _sample(self, num_problems: int, generator: torch.Generator) -> "ModuleBatch":
        seeds = torch.randint(2**62, (2, num_problems), generator=generator)
        start = self.init_std * torch.randn(
            num_problems, self.dim, generator=generator, dtype=torch.float64
        )
        views = self.views(start)
        fixed: dict[str, list[Tensor]] = {name: [] for name in self._fixed_names}
        if fixed or self._own_scheme:
            for problem, seed in enumerate(seeds[0].tolist()):
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed)  # of the CPU alone
                    module = self.make_module()
                tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                for name in self._own_scheme & views.keys():
                    views[name][problem] = tensors[name].detach()
                for name, values in fixed.items():
                    values.append(tensors[name].detach())
        stacked = {name: torch.stack(values) for name, values in fixed.items()}
        if self.unit_range > 1:
            stacked[_UNITS] = self._draw_units(num_problems, generator)
            start /= stacked[_UNITS]
        return ModuleBatch(
            start=start,
            fixed=stacked,
            stream=seeds[1],
            task=self,
        )

    def _draw_units(self, num_problems: int, generator: torch.Generator) -> Tensor:
        """One for every tensor of parameters, of all its entries, shape [B, D]."""
        sizes = torch.tensor([shape.numel() for shape in self.shapes.values()])
        shape = num_problems, len(sizes)
        exponent = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
        units: Tensor = self.unit_range**exponent
        return units.repeat_interleave(sizes, 1)

    @cached_property
    def _fixed_names(self) -> tuple[str, ...]:
        parameters = (name for name, _ in self._module.named_parameters())
        return tuple(name for name in (*parameters, *self._buffers) if name not in self.shapes)

    @cached_property
    def _buffers(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._module.named_buffers())

    @cached_property
    def _convolves(self) -> bool:
        return any(isinstance(layer, nn.modules.conv._ConvNd) for layer in self._module.modules())

    def mapped(
        self, function: Callable[..., Any], *args: Any, shared: tuple[Tensor, ...] = ()
    ) -> Any:
        """Map `function` over the problems and stack what it returns.

        On a CPU a grouped convolution, which is what `vmap` makes of a convolution, takes twice
        as long as one problem after the other, and channels last take less. What `vmap` makes of a
        loss is many kernels, too many for a single problem on an accelerator.

        Args:
            function: From one problem's part of `args` and all of `shared` to tensors.
            args: Tensors or dictionaries of them, [B, ...]; inputs and targets last if not shared.
            shared: Examples that are the same for all, the inputs first.

        Raises:
            InputError: The module draws random numbers.
        """
        inputs = shared[0] if shared else args[-2]
        on_cpu = inputs.device.type == "cpu"
        alone = on_cpu and self._convolves
        convert = _channels_last if alone else _unchanged
        shared = tuple(map(convert, shared))
        # A module may change whatever it is given; minibatches are drawn anew each time.
        kept, drawn = (args, ()) if shared else (args[:-2], args[-2:])
        lent = *_lent(kept), *drawn

        def of_one(problem: int, among: Any) -> Any:
            own = map(convert, tree_map(itemgetter(problem), among))
            return function(*own, *_lent(shared))

        num_examples = len(inputs) if shared else inputs.shape[1]
        at_once = None if on_cpu else max(1, _ACCELERATOR_CHUNK // num_examples)
        in_dims = (*[0] * len(args), *[None] * len(shared))
        together = vmap(function, in_dims=in_dims, chunk_size=at_once)
        name = function.__name__, inputs.device
        if name not in self._maps:
            first = _lent(tree_map(itemgetter(slice(1)), args))
            self._maps[name] = not alone and _succeeds(together, *first, *_lent(shared))
            if not self._maps[name]:  # else `vmap` has seen that nothing is random
                _require_determined(lambda: of_one(0, first), inputs.device)
        if self._maps[name] and (on_cpu or len(args[0]) > 1):
            return together(*lent, *_lent(shared))
        results = [of_one(problem, lent) for problem in range(len(args[0]))]
        if len(results) == 1:  # without a copy
            return tree_map(lambda part: part.unsqueeze(0), results[0])
        return tree_map(lambda *parts: torch.stack(parts), *results)

    @cached_property
    def _maps(self) -> dict[tuple[str, torch.device], bool]:
        """Whether `vmap` maps a function on a device, once it was tried."""
        return {}

    def call(
        self, params: Tensor, fixed: dict[str, Tensor], inputs: Tensor, *, training: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run one problem's network; return its outputs, and its buffers afterwards.

        Its parameters have shape [D], the inputs [N, ...]; frozen parameters and buffers are
        `fixed`. The module may change any of them.
        """
        own = {name: value for name, value in fixed.items() if name != _UNITS}
        if _UNITS in fixed:
            params = params * fixed[_UNITS]
        module = self._module if training else self._evaluated
        outputs = functional_call(module, {**self.views(params), **own}, (inputs,))
        return outputs, {name: own[name] for name in self._buffers}

    def mean_loss(
        self, params: Tensor, fixed: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        """Compute the loss of one problem in training mode, a scalar."""
        loss: object = self.loss(self.call(params, fixed, inputs)[0], targets)
        require(
            isinstance(loss, Tensor) and loss.ndim == 0,
            f"the loss must be one number for a minibatch, a tensor of shape [], got "
            f"{kind_of(loss)}; take its mean",
        )
        assert isinstance(loss, Tensor)
        return loss.to(params.dtype)

    def differentiate(
        self, params: Tensor, fixed: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradient of `mean_loss`, shape [D], and the loss."""
        grad, loss = grad_and_value(self.mean_loss)(params, fixed, inputs, targets)
        return grad, loss

    def score_examples(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Take inputs and targets of the fixed training examples, each [num_score, ...]."""
        if (device, dtype) not in self._score_examples:
            # Not evenly spaced: every other image of MNIST has another, harder origin.
            order = torch.randperm(len(self.train), generator=stream(0, "score"), device="cpu")
            index = order[: self.num_score].to(device)
            self._score_examples[device, dtype] = self.train.take(index, dtype)
        return self._score_examples[device, dtype]

    @cached_property
    def _score_examples(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        return {}


@final
@dataclass(frozen=True, eq=False)
class ModuleBatch(TaskBatch):
    """B networks of one architecture, each with its own initialisation and minibatches."""

    fixed: dict[str, Tensor]
    """Frozen parameters and buffers by name, each [B, ...], and the units of parameters if any."""
    stream: Tensor
    """Seed of each problem's minibatches (`minibatch_indices`), int64 [B]."""
    task: ModuleTask
    """Architecture and data, shared by the problems."""
    drawn: Tensor | None = None
    """Examples of the first steps' minibatches, if drawn ahead, int64 [B, steps, batch_size]."""

    @property
    def reference_loss(self) -> Tensor:
        return self.start.new_zeros(self.num_problems)

    @property
    def stochastic(self) -> bool:
        return True

    def draw_ahead(self, num_steps: int) -> Self:
        size, num_examples = self.task.batch_size, len(self.task.train)
        drawn = minibatch_indices(self.stream, 0, num_steps * size, num_examples)
        return replace(self, drawn=drawn.unflatten(1, (num_steps, size)))

    def minibatch(self, step: int) -> tuple[Tensor, Tensor]:
        """Take inputs and targets of step t, each [B, batch_size, ...]."""
        if self.drawn is not None and step < self.drawn.shape[1]:
            index = self.drawn[:, step]
        else:
            index = minibatch_indices(self.stream, step, self.task.batch_size, len(self.task.train))
        return self.task.train.take(index, self.start.dtype)

    def observe(self, params: Tensor, step: int) -> Observation:
        """Compute loss and gradient on the minibatch of step t, in training mode."""
        minibatch = self.minibatch(step)
        grad, loss = self.task.mapped(self.task.differentiate, params, self.fixed, *minibatch)
        return Observation(loss, grad)

    def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
        loss, grad = self.observe(params, step)
        return DifferentiatedScore(loss, grad, loss, grad)

    def score(self, params: Tensor, step: int) -> Score:
        """Compute `observe`, and the mean loss on the fixed training examples as the excess.

        Batches are normalised by the statistics of all those examples.
        """
        task = self.task
        examples = task.score_examples(params.device, params.dtype)
        with torch.no_grad():
            excess = task.mapped(task.mean_loss, params, self.fixed, shared=examples)
        return Score(*self.observe(params, step), excess)

    @torch.no_grad()
    def held_out(self, params: Tensor) -> HeldOut:
        """Compute loss and accuracy on all test examples, in evaluation mode, shape [B] each.

        Raises:
            InputError: The task has no test examples.
        """
        task, examples = self.task, self.task.test
        if examples is None:
            raise InputError("the task has no test examples: give ModuleTask `test`")
        fixed = self._with_statistics(params)

        def judge(
            params: Tensor, fixed: dict[str, Tensor], inputs: Tensor, targets: Tensor
        ) -> tuple[Tensor, Tensor]:
            outputs, _ = task.call(params, fixed, inputs, training=False)
            loss = task.loss(outputs, targets)
            if not _tells_classes(outputs, targets):
                return loss, loss.new_full((), torch.nan)
            return loss, (outputs.argmax(1) == targets).to(loss.dtype).mean()

        chunk = _CPU_CHUNK if params.device.type == "cpu" else _ACCELERATOR_CHUNK // 16
        total = params.new_zeros(2, len(params), dtype=widest(params.device))
        for index in torch.arange(len(examples), device=params.device).split(chunk):
            found = task.mapped(judge, params, fixed, shared=examples.take(index, params.dtype))
            total += len(index) / len(examples) * widened(torch.stack(found))
        return HeldOut(*total.to(params.dtype))

    def _with_statistics(self, params: Tensor) -> dict[str, Tensor]:
        """Take `fixed`, its running statistics averaged over fixed training batches."""
        task = self.task
        if not any(name.endswith("running_mean") for name in task._buffers):
            return self.fixed
        batches = task.score_examples(params.device, params.dtype)[0].split(task.batch_size)
        if len(batches) > 1 and len(batches[-1]) < task.batch_size:
            batches = batches[:-1]  # every batch counts the same

        def buffers(params: Tensor, fixed: dict[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
            return task.call(params, fixed, inputs)[1]

        sums: dict[str, Tensor] = {}
        for batch in batches:
            seen = task.mapped(buffers, params, self.fixed, shared=(batch,))
            for name, value in seen.items():
                if value.is_floating_point():
                    sums[name] = sums.get(name, 0) + value
        return self.fixed | {name: value / len(batches) for name, value in sums.items()}
