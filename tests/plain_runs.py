"""The slow twin of everything that runs an optimizer model: one problem, step by step."""

import torch
from meta_gradient_cases import step_rule
from torch import Tensor

from haltwise.models import OptimizerModel
from haltwise.processes import StepObservation
from haltwise.processes.signals import init_signals, measure_signals
from haltwise.rollout import Outcome
from haltwise.stop_rules import ReturnedIterate, StopPolicy
from haltwise.tasks import TaskBatch

__all__ = ["PlainRun", "plain_run"]


class PlainRun:
    """What became of one problem, by a loop that shares the rules with the library, and no more."""

    def __init__(
        self,
        model: OptimizerModel,
        problem: TaskBatch,
        policy: StopPolicy,
        price: float,
        max_steps: int,
    ) -> None:
        params, of_rule = problem.start, model.rule.init(problem.start)
        prices = params.new_full((1,), price)
        of_halter, last = model.halting.init(1, params), init_signals(params)
        memory = policy.rule.init(1, params)
        iterates, self.losses = [params], []
        self.outputs: list[dict[str, Tensor]] = []
        with torch.no_grad():
            for step in range(max_steps):
                loss, grad = problem.observe(params, step)
                self.losses.append(loss.item())
                update, readout, of_rule = step_rule(model.rule, grad, of_rule)
                signals, last = measure_signals(step, loss, grad, update, last)
                outputs, of_halter = model.halting.step(signals, readout, prices, of_halter)
                self.outputs.append(outputs)
                norm = grad.square().mean(1).sqrt().log()
                observation = StepObservation(step, loss, norm, signals, readout, outputs)
                stop, memory = policy.rule.step(observation, memory)
                params = params + update
                iterates.append(params)
                if stop:
                    break
        self.iterates = iterates
        self.num_gradients = len(self.losses)
        self.outcome = int(Outcome.HALTED if stop else Outcome.OUT_OF_STEPS)
        self.steps = self._returned(policy.returns, bool(stop))
        self.params = iterates[self.steps][0]
        self.loss = problem.observe(iterates[self.steps], self.steps).loss[0]

    def _returned(self, returns: ReturnedIterate, halted: bool) -> int:
        """The s of the theta_s that is returned."""
        if returns is ReturnedIterate.BEST:
            return min(range(self.num_gradients), key=self.losses.__getitem__)
        if not halted or returns is ReturnedIterate.NEXT:
            return self.num_gradients
        if returns is ReturnedIterate.LEARNED:
            return self.num_gradients - bool(self.outputs[-1]["hold_logits"] > 0)
        return self.num_gradients - 1


def plain_run(
    model: OptimizerModel,
    problems: TaskBatch,
    number: int,
    policy: StopPolicy,
    price: float,
    max_steps: int,
) -> PlainRun:
    """The twin of problem `number` of a batch."""
    return PlainRun(model, problems.select(torch.tensor([number])), policy, price, max_steps)
