"""Every named family of processes keeps the contract, and knows no more than it may."""

from dataclasses import asdict, replace

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor

from haltwise import InputError
from haltwise.processes import ProcessFamily, process_families
from haltwise.processes.markov_chain import MarkovChainFamily
from haltwise.rollout import record_process
from haltwise.tasks import families
from haltwise.testing import check_process


@pytest.fixture(params=sorted(process_families()))
def family(request: pytest.FixtureRequest) -> ProcessFamily:
    return process_families()[request.param]


def test_no_name_is_that_of_a_family_of_problems() -> None:
    assert not process_families().keys() & families().keys()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_its_processes_keep_the_contract(family: ProcessFamily, dtype: torch.dtype) -> None:
    check_process(family.sample(6, seeded(), dtype=dtype))


def test_states_that_no_loss_tells_apart_are_refused() -> None:
    with pytest.raises(InputError, match=r"have the same loss in torch.float32"):
        MarkovChainFamily(num_states=800).sample(4, seeded())
    MarkovChainFamily(num_states=800).sample(4, seeded(), dtype=DOUBLE)


def test_it_is_made_again_from_its_settings(family: ProcessFamily) -> None:
    assert type(family)(**asdict(family)) == family


def test_the_best_causal_stops_do_not_look_ahead(family: ProcessFamily) -> None:
    """What comes after the stop does not change it; nor do the other items."""
    recorded = record_process(family.sample(40, seeded(), dtype=DOUBLE), 12)
    stops = family.best_stops(recorded, 0.02)
    if stops is None:
        return
    assert stops.dtype == torch.int64
    assert ((stops >= 0) & (stops <= 12)).all()
    one = family.best_stops(recorded.select(torch.tensor([3])), 0.02)
    assert one is not None
    assert one.tolist() == stops[[3]].tolist()
    other = record_process(family.sample(40, seeded(2), dtype=DOUBLE), 12)
    after = torch.arange(13) > stops.unsqueeze(1)

    def mixed(own: Tensor, foreign: Tensor) -> Tensor:
        return torch.where(after, foreign, own)

    changed = replace(
        recorded,
        loss=mixed(recorded.loss, other.loss),
        excess=mixed(recorded.excess, other.excess),
    )
    again = family.best_stops(changed, 0.02)
    assert again is not None
    assert torch.equal(again, stops)
