"""Networks of the thesis, written layer by layer, and the images that they are given."""

import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.stats
import torch
from image_files import write_mnist
from task_oracles import DOUBLE, B, assert_law, randn, seeded
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError, tasks
from haltwise.tasks import TaskFamily
from haltwise.tasks.cifar10 import CifarConvolutional
from haltwise.tasks.module import ModuleBatch
from haltwise.tasks.perceptron import Perceptron


def sample_images(family: TaskFamily, data_dir: Path) -> ModuleBatch:
    batch = family.with_data_dir(data_dir).sample(B, seeded(), dtype=DOUBLE)
    assert isinstance(batch, ModuleBatch)
    return batch


def test_the_mnist_network_is_that_of_l2l(tiny_images: Path) -> None:
    batch = sample_images(tasks.family("mnist-mlp"), tiny_images)
    assert_law(batch.start, scipy.stats.norm(0, 0.01))
    params = 0.3 * randn(B, 784 * 20 + 20 + 20 * 10 + 10)
    inputs, targets = batch.minibatch(3)
    assert inputs.shape == (B, 128, 28, 28)
    assert inputs.max() == 1  # pixels / 255
    first, bias, second, other = params.split([784 * 20, 20, 200, 10], 1)
    hidden = inputs.flatten(2) @ first.view(B, 20, 784).mT + bias.unsqueeze(1)
    logits = torch.sigmoid(hidden) @ second.view(B, 10, 20).mT + other.unsqueeze(1)
    expected = -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean((1, 2))
    assert_close(batch.evaluate(params, 3).loss, expected, rtol=1e-12, atol=0)


def test_the_cifar_network_is_that_of_l2l(tiny_images: Path) -> None:
    family = dataclasses.replace(CifarConvolutional(), batch_size=6)
    assert family.dim == 14000 + 3 * 32 + 257 * 32 + 32 + 330
    batch = sample_images(family, tiny_images)
    views = batch.task.views(batch.start)
    assert list(views)[:3] == [f"convolution{number}.weight" for number in range(3)]
    assert all((views[f"normalisation{number}.bias"] == 0).all() for number in range(4))
    assert_law(batch.start[:, :14000], scipy.stats.norm(0, 0.01))

    inputs, targets = batch.minibatch(0)
    params = batch.start + 0.1 * randn(B, batch.dim)
    for problem, loss in enumerate(batch.evaluate(params, 0).loss):
        own = {name: view[problem] for name, view in batch.task.views(params).items()}
        hidden = inputs[problem]

        def normalised(value: Tensor, offset: Tensor) -> Tensor:
            axes = [0, *range(2, value.dim())]
            mean = value.mean(axes, keepdim=True)
            scale = (value.var(axes, correction=0, keepdim=True) + 1e-3).sqrt()
            return (value - mean) / scale + offset.view(-1, *[1] * (value.dim() - 2))

        for layer in range(3):
            name = f"convolution{layer}"
            hidden = torch.conv2d(hidden, own[f"{name}.weight"], own[f"{name}.bias"], padding=2)
            hidden = normalised(hidden, own[f"normalisation{layer}.bias"]).relu()
            hidden = torch.max_pool2d(hidden, 2)
        hidden = hidden.flatten(1) @ own["hidden.weight"].mT + own["hidden.bias"]
        hidden = normalised(hidden, own["normalisation3.bias"]).relu()
        logits = hidden @ own["output.weight"].mT + own["output.bias"]
        assert_close(loss, torch.nn.functional.cross_entropy(logits, targets[problem]))


def test_classes_left_out_are_neither_trained_on_nor_tested(tiny_images: Path) -> None:
    family = dataclasses.replace(CifarConvolutional(labels="72"), batch_size=64)
    task = sample_images(family, tiny_images).task
    whole = sample_images(CifarConvolutional(), tiny_images).task
    assert task.test is not None
    assert (len(task.train), len(task.test)) == (40, 8)
    inputs, targets = task.train.take(torch.arange(40), DOUBLE)
    everything, labels = whole.train.take(torch.arange(200), DOUBLE)
    assert torch.equal(inputs, everything[(labels == 7) | (labels == 2)])
    assert torch.equal(targets, (labels[(labels == 7) | (labels == 2)] == 2).long())


def test_other_images_of_the_same_format_may_be_given(tmp_path: Path) -> None:
    white = np.full((3, 28, 28), 255, np.uint8), np.zeros(3, np.uint8)
    write_mnist(tmp_path, white, white, suffix="")
    batch = sample_images(Perceptron(), tmp_path)
    assert (batch.minibatch(0)[0] == 1).all()
    small = np.zeros((3, 8, 8), np.uint8), white[1]
    write_mnist(tmp_path / "mnist", small, small)
    with pytest.raises(InputError, match=r"mnist holds images of 8 x 8 pixels, expected 28 x 28"):
        sample_images(Perceptron(), tmp_path)


def test_drawing_networks_seeds_no_generator_of_the_user() -> None:
    with mock.patch("torch.cuda.manual_seed_all") as seeded_elsewhere:
        tasks.family("digits-convolutional").sample(2, seeded())
    seeded_elsewhere.assert_not_called()
