"""The pretended accelerator refuses what CUDA refuses, takes what CUDA takes, and counts what crosses."""

from __future__ import annotations

import pytest
import torch
from pretended_accelerator import DEVICE, Crossings, Pretended, counted
from pretended_rules import WrongPlace

ON = {"device": DEVICE}


@pytest.fixture
def crossings():
    with counted() as found:
        yield found


def there(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape).to(DEVICE)


REFUSED = {
    "a sum of two places": lambda: there(3) + torch.ones(3),
    "a product of matrices": lambda: there(2, 2) @ torch.ones(2, 2),
    "a matrix and a number without dimensions": lambda: torch.cat([there(1), torch.tensor([1.0])]),
    "a mask on the CPU": lambda: there(3).masked_fill(torch.tensor([True, False, True]), 0),
    "a choice": lambda: torch.where(torch.tensor([True, False]), there(2), there(2)),
    "rows gathered by CPU places": lambda: there(3).gather(0, torch.tensor([1])),
    "rows chosen by CPU places": lambda: there(3).index_select(0, torch.tensor([1])),
    "a CPU tensor indexed from the device": lambda: torch.ones(3)[torch.tensor([1]).to(DEVICE)],
    "CPU values put in": lambda: there(3).__setitem__(torch.tensor([0, 1]), torch.ones(2)),
    "device values put into a CPU tensor": lambda: torch.ones(3).__setitem__(torch.tensor([0]), there(1)),
    "a layer left behind": lambda: torch.nn.Linear(3, 2)(there(3)),
    "an embedding": lambda: torch.nn.Embedding(3, 2).to(DEVICE)(torch.tensor([1])),
    "attention": lambda: torch.nn.functional.scaled_dot_product_attention(*[there(1, 1, 2, 2)] * 2, torch.ones(1, 1, 2, 2)),
    "a generator of the CPU": lambda: torch.rand(3, generator=torch.Generator(), **ON),
    "the same in place": lambda: there(3).normal_(generator=torch.Generator()),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(what, crossings):
    with pytest.raises(WrongPlace if what != "attention" else RuntimeError, match="device|CPU|cpu"):
        REFUSED[what]()  # torch itself looks at what attention gets


TAKEN = {
    "a number without dimensions": (lambda: there(3) * torch.tensor(2.0), [0, 2, 4]),
    "CPU places as indices": (lambda: there(3)[torch.tensor([2, 0])], [2, 0]),
    "a CPU mask as an index": (lambda: there(3)[torch.tensor([True, False, True])], [0, 2]),
    "a list": (lambda: there(3)[[1]], [1]),
    "a copy from the CPU": (lambda: torch.zeros(2, **ON).copy_(torch.ones(2)), [1, 1]),
    "numbers made there": (lambda: torch.arange(3, **ON) + torch.tensor([1, 2, 3], **ON), [1, 3, 5]),
    "a layer that came along": (lambda: torch.nn.ReLU().to(DEVICE)(there(2)), [0, 1]),
    "a view that is written through": (lambda: _written(), [0, 7, 2, 3]),
}


def _written() -> torch.Tensor:
    whole = there(4)
    whole.view(2, 2)[0, 1] = 7
    return whole


@pytest.mark.parametrize("what", TAKEN)
def test_what_cuda_takes_is_taken(what, crossings):
    make, expected = TAKEN[what]
    found = make()
    assert isinstance(found, Pretended) and found.device == DEVICE and found.tolist() == expected


COUNTED = {
    "upload": [lambda: torch.ones(2).to(DEVICE), lambda: there(3)[torch.tensor([0])], lambda: torch.tensor([1], **ON)],
    "download": [lambda: there(2).cpu(), lambda: there(2).tolist(), lambda: torch.zeros(2).copy_(there(2))],
    "item": [
        lambda: there(1).item(), lambda: float(there(1)), lambda: bool(there(1)), lambda: there(2).equal(there(2)),
        lambda: there(2).allclose(there(2)), lambda: f"{there(1)[0]:.1f}",
    ],
    "shape": [
        lambda: there(3).nonzero(), lambda: there(3)[there(3) > 1], lambda: there(3).unique(),
        lambda: there(3).masked_select(there(3) > 1), lambda: there(2).repeat_interleave(torch.ones(2, **ON).long()),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "which"), [(kind, i) for kind in COUNTED for i in range(len(COUNTED[kind]))])
def test_what_crosses_is_counted(kind, which, crossings):
    COUNTED[kind][which]()
    assert crossings.of(kind) >= 1


def test_work_on_the_device_crosses_nothing(crossings):
    layer = torch.nn.Linear(3, 3).to(DEVICE)
    moved = crossings.of()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.no_grad():
        x = torch.ones(4, 3, **ON)
    for _ in range(3):
        layer(x).square().sum().backward()
        optimizer.step()
        x[0] = 0.0
        x.masked_fill_(x > 3, 0)
    assert crossings.of() == moved


def test_modules_keep_their_parameters_and_ties(crossings):
    embedding, head = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False)
    head.weight = embedding.weight
    both, known = torch.nn.ModuleList([embedding, head]), embedding.weight
    for device in (DEVICE, torch.device("cpu")):
        both.to(device)
        assert embedding.weight is head.weight is known and known.device == device and known.requires_grad


def test_outside_of_the_block_there_is_no_accelerator():
    assert not torch.accelerator.is_available()
    with counted():
        assert torch.accelerator.is_available()


def test_what_was_counted_before_can_be_taken_off():
    first, second = Crossings(), Crossings()
    first.counts.update({("item", "a:f"): 2, ("item", "b:g"): 1})
    second.counts.update({("item", "a:f"): 5, ("item", "b:g"): 1, ("upload", "a:f"): 1})
    assert (second - first).counts == {("item", "a:f"): 3, ("upload", "a:f"): 1}
    assert second.of("item") == 6 and second.of(within="a") == 6 and second.of("item", within="b:") == 1


def test_numbers_of_the_device_in_a_list_are_read_one_by_one(crossings):
    found = torch.tensor([there(2).sum(), there(3).sum()], **ON)
    assert found.tolist() == [1, 3] and crossings.of("item") == 2
