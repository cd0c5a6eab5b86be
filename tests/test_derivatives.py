"""Derivatives beyond one backward pass: second ones, torch.func and forward mode, of every model and hand-written pass;
and first ones that are finite for everything that a model returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from blockyard import InputError
from derivative_models import BATCH, MIXES, MODELS, Case, figure, outputs_of

# Central differences in float64 over steps of 1e-6: rounding leaves about 1e-9 and the third derivative less, beside
# gradients of order 1. The bound is 1e-4; a derivative that leaves out a path is wrong in the first digit.
STEP, CLOSE = 1e-6, 1e-4


def flat(gradients: Any, like: list[Tensor]) -> Tensor:
    """Gradients in a row, 0 where there is none."""
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like)]
    return torch.cat([part.flatten() for part in parts])


def far(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class Subject:
    """A model's figure as a function of its parameters, and a direction to differentiate along."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.names = [name for name, _ in case.model.named_parameters()]
        self.parameters = list(case.model.parameters())
        generator = torch.Generator().manual_seed(1)
        noise = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in self.parameters]
        size = torch.cat([n.flatten() for n in noise]).norm()
        self.direction = [n / size for n in noise]
        # What is reported and not learnt from has no gradient: statistics.
        self.learnt = [name for name, tensor in case.outputs().items() if tensor.requires_grad]

    def figure(self) -> Tensor:
        return self._of(self.case.model(*self.case.inputs, **self.case.given))

    def at(self, values: Mapping[str, Tensor], inputs: Any = None, given: Any = None) -> Tensor:
        """The figure with other values for the parameters, and other inputs."""
        inputs = self.case.inputs if inputs is None else inputs
        given = dict(self.case.given) if given is None else given
        return self._of(functional_call(self.case.model, dict(values), inputs, given))

    def _of(self, found: Any) -> Tensor:
        outputs = outputs_of(found)
        return figure({name: outputs[name] for name in self.learnt})

    @property
    def values(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in zip(self.names, self.parameters)}

    @contextmanager
    def moved(self, step: float) -> Iterator[None]:
        with torch.no_grad():
            before = [p.clone() for p in self.parameters]
            for p, d in zip(self.parameters, self.direction):
                p.add_(d, alpha=step)
        yield
        with torch.no_grad():
            for p, b in zip(self.parameters, before):
                p.copy_(b)

    def gradient(self) -> Tensor:
        return flat(torch.autograd.grad(self.figure(), self.parameters, allow_unused=True), self.parameters)

    def difference(self) -> Tensor:
        """The Hessian times the direction, by central differences of the gradient."""
        with self.moved(STEP):
            ahead = self.gradient()
        with self.moved(-STEP):
            behind = self.gradient()
        return (ahead - behind) / (2 * STEP)


def by_inputs(subject: Subject) -> Tensor:
    """Hessian-vector product: gradients of chosen inputs, then of those."""
    parameters = subject.parameters
    first = torch.autograd.grad(subject.figure(), parameters, create_graph=True, allow_unused=True)
    along = sum((g * d).sum() for g, d in zip(first, subject.direction) if g is not None)
    assert isinstance(along, Tensor)
    return flat(torch.autograd.grad(along, parameters, allow_unused=True), parameters)


def by_backward(subject: Subject) -> Tensor:
    """Hessian-vector product: two calls of backward."""
    parameters = subject.parameters
    with warnings.catch_warnings():
        # Of a cycle between parameter and gradient, which is broken below.
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        subject.figure().backward(create_graph=True)
    first = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    along = sum((g * d).sum() for g, d in zip(first, subject.direction) if g is not None)
    assert isinstance(along, Tensor)
    along.backward()
    second = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return flat(second, parameters)


def by_forward(subject: Subject) -> Tensor:
    """Hessian-vector product: forward mode over torch.func.grad."""
    values = subject.values
    _, second = jvp(grad(subject.at), (values,), (dict(zip(subject.names, subject.direction)),))
    return flat([second[name] for name in subject.names], subject.parameters)


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives_of_every_model_equal_finite_differences(name: str) -> None:
    subject = Subject(MODELS[name](torch.float64, False))
    wanted = subject.difference()
    for way in (by_inputs, by_backward, by_forward):
        assert far(way(subject), wanted) < CLOSE, way.__name__


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("lm", "classify"))])
def test_second_derivatives_of_padded_rows_equal_finite_differences(name: str) -> None:
    subject = Subject(MODELS[name](torch.float64, True))
    assert far(by_inputs(subject), subject.difference()) < CLOSE


# Two ways to the same number in float64: sums in another order, nothing else.
SAME = 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_transforms_of_every_model_equal_autograd(name: str) -> None:
    subject = Subject(MODELS[name](torch.float64, False))
    wanted, values = subject.gradient(), subject.values
    found = grad(subject.at)(values)
    assert far(flat([found[n] for n in subject.names], subject.parameters), wanted) < SAME
    along = dict(zip(subject.names, subject.direction))
    expected = wanted @ flat(subject.direction, subject.parameters)
    for watched in (torch.enable_grad, torch.no_grad):
        with watched():
            _, slope = jvp(subject.at, (values,), (along,))
        torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-12)


def one_sample(subject: Subject) -> Callable[..., Tensor]:
    """The figure of one sample, as a function of parameters, inputs and named inputs without the batch's axis."""

    def of(values: Mapping[str, Tensor], inputs: tuple[Tensor, ...], given: Mapping[str, Tensor]) -> Tensor:
        return subject.at(values, tuple(x[None] for x in inputs), {key: t[None] for key, t in given.items()})

    return of


@pytest.mark.parametrize("name", [name for name in MODELS if name not in MIXES])
def test_gradients_per_sample_by_vmap_equal_a_loop_over_samples(name: str) -> None:
    subject = Subject(MODELS[name](torch.float64, False))
    case, of = subject.case, one_sample(subject)
    found = vmap(grad(of), in_dims=(None, 0, 0))(subject.values, case.inputs, dict(case.given))
    for i in range(BATCH):
        with_grad = {n: p.detach().requires_grad_() for n, p in zip(subject.names, subject.parameters)}
        loss = of(with_grad, tuple(x[i] for x in case.inputs), {key: t[i] for key, t in case.given.items()})
        wanted = flat(torch.autograd.grad(loss, list(with_grad.values()), allow_unused=True), subject.parameters)
        assert far(flat([found[n][i] for n in subject.names], subject.parameters), wanted) < SAME


@pytest.mark.parametrize("name", MIXES)
def test_a_mixture_says_what_stands_against_vmap(name: str) -> None:
    subject = Subject(MODELS[name](torch.float64, False))
    with pytest.raises(InputError, match=r"moe sends .* which torch\.func\.vmap hides; loop over the samples"):
        vmap(grad(one_sample(subject)), in_dims=(None, 0, 0))(
            subject.values, subject.case.inputs, dict(subject.case.given)
        )


def test_padding_that_vmap_hides_is_refused_where_its_values_are_read() -> None:
    for name in ("lm spectral[window=5,chunk=1]+relu2", "classify spectral"):
        subject = Subject(MODELS[name](torch.float64, True))
        with pytest.raises(InputError, match=r"padding_mask .* which torch\.func\.vmap hides"):
            vmap(grad(one_sample(subject)), in_dims=(None, 0, 0))(
                subject.values, subject.case.inputs, dict(subject.case.given)
            )
    subject = Subject(MODELS["lm standard+relu2"](torch.float64, True))
    vmap(grad(one_sample(subject)), in_dims=(None, 0, 0))(subject.values, subject.case.inputs, dict(subject.case.given))
