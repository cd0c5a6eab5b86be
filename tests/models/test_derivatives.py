"""Derivatives beyond one backward pass: second ones, torch.func and forward mode, of every model and hand-written pass;
and first ones that are finite for everything that a model returns."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

import blockyard
from blockyard import InputError
from blockyard.complex import ffn as ffn_complex
from blockyard.complex import heads as complex_heads
from blockyard.complex import planes as complex_planes
from blockyard.complex import score_passes
from blockyard.moe import dispatch, grouped
from blockyard.moe.dispatch import Plan, counts_of, plan
from blockyard.nn import (
    activations,
    attention_kernels,
    causal_attention,
    derivatives,
    norms,
    products,
    rotary,
    segments,
    thin_attention,
    turned_heads,
)  # fmt: skip
from blockyard.nn import fused as thin
from blockyard.nn.attention import attend
from blockyard.nn.derivatives import HandWritten, hand_written, transformed
from blockyard.spectral.chunks import chunk_convolution
from blockyard.spectral.filter import spectral_filter
from blockyard.spectral.tokens import token_convolution
from blockyard.transplant import divergence
from blockyard.vein import projector as vein
from tests.fixtures.every_model import BATCH, MIXES, MODELS, Case, figure, outputs_of

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


def numbers(*shape: int, kind: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=kind, generator=generator).requires_grad_()


def tokens_to_experts(dropped: bool, kernel: Any) -> Plan:
    experts = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [2, 0]])
    kept = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [0, 1]], dtype=torch.bool) if dropped else None
    return plan(experts, counts_of(experts, 3, kept), kernel, kept)


def turns() -> Tensor:
    return torch.polar(torch.ones(3, 1, 2, dtype=torch.float64), torch.rand(3, 1, 2, dtype=torch.float64))


C128 = torch.complex128
# The token of every row, and the row of every token.
ROWS_OF, TOKENS_OF = torch.tensor([3, 4, 4, 0, 1, 2]), torch.tensor([3, 4, 5, 0, 1])
# The inputs of every hand-written pass: (tensors, settings), in each of its forms.
BY_HAND: dict[type[HandWritten], list[tuple[tuple[Tensor | None, ...], tuple[Any, ...]]]] = {
    attention_kernels._WideScores: [
        ((numbers(2, 3, 4), numbers(2, 5, 4, seed=1), bias), (0.6,))
        for bias in (None, numbers(2, 3, 5), numbers(1, 3, 5))
    ],
    activations._SquaredReLU: [((numbers(3, 4),), ())],
    causal_attention._CausalAttention: [
        ((numbers(2, 5, 3), numbers(2, 5, 3, seed=1), numbers(2, 5, 2)), (0.6,)),
    ],
    turned_heads._NormAndTurn: [
        ((numbers(2, 3, 2, 4), numbers(2, 4), torch.rand(3, 1, 2).double(), torch.rand(3, 1, 2).double()), (1e-5,)),
    ],
    norms._FusedRMSNorm: [((numbers(2, 3, 4), numbers(4)), (1e-5,)), ((numbers(2, 3, 4), numbers(3, 4)), (1e-5,))],
    rotary._Rotation: [
        ((numbers(2, 3, 2, 4), torch.rand(3, 1, 2).double(), torch.rand(3, 1, 2).double()), (layout,))
        for layout in ("interleaved", "half")
    ],
    thin._AddLinear: [((numbers(3, 4), numbers(3, 2), numbers(4, 2)), ())],
    thin._NormLinear: [
        ((numbers(2, 3, 5), numbers(5), numbers(5, seed=1), numbers(2, 5)), (1e-5, True)),
        ((numbers(2, 3, 5), numbers(5), None, numbers(2, 5)), (1e-5, True)),
        ((numbers(2, 3, 5), numbers(5), None, numbers(2, 5)), (1e-5, False)),
    ],
    thin_attention._ThinAttention: [((numbers(1, 2, 5, 3), numbers(1, 2, 5, 3, seed=1), numbers(1, 2, 5, 2)), (0.6,))],
    vein._OrthonormalRows: [((numbers(2, 5),), ())],
    complex_planes._Split: [((numbers(3, 4),), ())],
    complex_planes._Join: [((numbers(3, 2), numbers(3, 2, seed=1)), ())],
    complex_planes._Product: [((numbers(3, 2), numbers(3, 2, seed=1), numbers(2, 2, 2), numbers(1, 2, 2)), ())],
    products._Linear: [((numbers(2, 3, 4), numbers(2, 4), bias), ()) for bias in (None, numbers(2))],
    score_passes._Scored: [
        ((numbers(1, 2, 3, 4), numbers(1, 1, 4, 4, seed=1), numbers(1, 1, 4, 2), share), (score, causal, 0.6))
        for score, share in (("magnitude", None), ("phase", None), ("split", numbers(2)))
        for causal in (False, True)
    ],
    complex_heads._TurnedHeads: [
        ((numbers(1, 3, 12), numbers(2), numbers(2, seed=1), turn), ((1, 1), 1e-5)) for turn in (None, turns())
    ],
    ffn_complex._GatedParts: [((numbers(3, 4), numbers(3, 4, seed=1), numbers(2)), ())],
    ffn_complex._Gated: [((numbers(2, 3, 8), numbers(2)), ())],
    dispatch._Send: [
        ((numbers(5, 2),), (tokens_to_experts(dropped, kernel),))
        for dropped in (False, True)
        for kernel in ("segment", "padded")
    ],
    dispatch._Collect: [
        *(((numbers(10, 2), numbers(5, 2)), (tokens_to_experts(dropped, "segment"),)) for dropped in (False, True)),
        ((numbers(3, 32, 1), numbers(5, 2)), (tokens_to_experts(False, "padded"),)),
        ((numbers(10, 2, kind=C128), numbers(5, 2)), (tokens_to_experts(False, "segment"),)),
    ],
    grouped._Segments: [
        ((numbers(6, 3), numbers(3, 2, 3)), ((2, 0, 3),)),
        ((numbers(4, 2, kind=C128), numbers(2, 2, 2, kind=C128)), ((1, 3),)),
    ],
    # Documents of 2 and 3 tokens as rows of 3: the first one's last place is filled with another token.
    segments._Laid: [((numbers(5, 2),), (ROWS_OF, TOKENS_OF))],
    segments._PutBack: [((numbers(6, 2),), (ROWS_OF, TOKENS_OF, torch.tensor([2])))],
    grouped._Batched: [((numbers(2, 3, 2), numbers(2, 4, 2)), ())],
}


def sent(x: Tensor, plan: Plan) -> Tensor:
    chosen = plan.take(dispatch.send(x, plan))
    return chosen if plan.kept is None else chosen * plan.kept[..., None]


def laid(x: Tensor, take: Tensor, back: Tensor) -> Tensor:
    return hand_written(segments._Laid, x, take, back).index_select(0, back)


# Rows of padding and of dropped choices have no gradient by their contract: nobody takes them.
IN_USE: dict[type[HandWritten], Callable[..., Any]] = {
    dispatch._Send: sent,
    dispatch._Collect: dispatch.collect,
    segments._Laid: laid,
}
# What is computed in float32 whatever it is given, and held to a slow definition there: tests/transplant/test_heal.py.
ELSEWHERE = {divergence._Divergence}


def test_every_hand_written_pass_is_checked_here() -> None:
    for module in pkgutil.walk_packages(blockyard.__path__, "blockyard."):
        if module.name.split(".")[1] in ("layers", "mixers", "ffn", "models"):
            importlib.import_module(module.name)
    assert set(HandWritten.__subclasses__()) == set(BY_HAND) | ELSEWHERE
    others = {f for f in torch.autograd.Function.__subclasses__() if f.__module__.startswith("blockyard.")}
    assert others == {HandWritten, derivatives._FusedOrPlain}


@pytest.mark.parametrize(
    ("function", "tensors", "settings"),
    [(f, *case) for f, cases in BY_HAND.items() for case in cases],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_hand_written_passes_have_right_first_second_and_forward_derivatives(
    function: type[HandWritten], tensors: tuple[Tensor | None, ...], settings: tuple[Any, ...]
) -> None:
    def call(*given: Tensor | None) -> tuple[Tensor, ...]:
        found = IN_USE.get(function, partial(hand_written, function))(*given, *settings)
        outs = found if isinstance(found, tuple) else (found,)
        return tuple(out for out in outs if out.requires_grad or transformed())

    torch.autograd.gradcheck(call, tensors, check_forward_ad=True)
    torch.autograd.gradgradcheck(call, tensors)
    # A graph made outside of a transform, gone back through inside: rows of a Jacobian.
    outs, inputs = call(*tensors), [t for t in tensors if t is not None and t.requires_grad]
    rows = tuple(torch.randn(2, *out.shape, dtype=out.dtype) for out in outs)

    def back(*grads: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outs, inputs, grads, retain_graph=True)

    found, wanted = vmap(back)(*rows), [back(*(row[i] for row in rows)) for i in range(2)]
    torch.testing.assert_close(found, tuple(torch.stack(pair) for pair in zip(*wanted)))


def sdpa(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: attend(q, k, v, kernel="sdpa", **options)[0]


HEADS = (numbers(1, 2, 3, 4), numbers(1, 2, 3, 4, seed=1), numbers(1, 2, 3, 2))
ANCHORS = (numbers(1, 2, 9), numbers(1, 1, 8))
OPERATIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "sdpa": (sdpa(), HEADS),
    "sdpa causal": (sdpa(causal=True), HEADS),
    "sdpa padded": (sdpa(causal=True, padding_mask=torch.tensor([[0, 1, 1]])), HEADS),
    "sdpa one key head": (sdpa(causal=True), (HEADS[0], *(t[:, :1].detach().requires_grad_() for t in HEADS[1:]))),
    "sdpa learnt mask": (
        lambda q, k, v, mask: attend(q, k, v, kernel="sdpa", attn_mask=mask)[0], (*HEADS, numbers(3, 3)),
    ),
    "sdpa window": (sdpa(causal=True, window=2), tuple(numbers(1, 1, 70, 2, seed=i) for i in range(3))),
    "filter": (
        lambda v, a, memory: spectral_filter(v, a, memory, 12, "linear", "linear"), (*ANCHORS, numbers(2, 3, 2)),
    ),
    "filter, no memory": (lambda v, a: spectral_filter(v, a, None, 0, "cubic", "log"), ANCHORS),
    "chunks": (
        lambda v, a: chunk_convolution(v, a, 1, 5, 3, "linear", "linear"), (numbers(1, 2, 8), numbers(1, 2, 1, 8)),
    ),
    "tokens": (
        lambda v, a: token_convolution(v, a, 5, "linear", "linear"), (numbers(1, 2, 6), numbers(1, 3, 1, 8)),
    ),
    "segments of an operator": (
        lambda x, w: torch.ops.blockyard.segment_linear(x, w, torch.tensor([2, 2, 5])),
        (numbers(6, 3), numbers(3, 2, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_kernels_and_operators_have_right_second_derivatives(name: str) -> None:
    operation, tensors = OPERATIONS[name]
    fast = len(tensors[0].flatten()) > 100
    torch.autograd.gradcheck(operation, tensors, fast_mode=fast)
    torch.autograd.gradgradcheck(operation, tensors, fast_mode=fast)
    if "operator" not in name:
        torch.autograd.gradcheck(operation, tensors, check_forward_ad=True, fast_mode=fast)


# Paths that float32 alone takes: float32 rounds at 6e-8, sums of some thousand products at a few times 1e-6 of their
# size, and twice differentiated at no more than ten times that.
ROUNDED = 1e-4


def second(call: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
    first = torch.autograd.grad(call(*tensors).square().sum(), tensors, create_graph=True)
    along = sum(((g * torch.cos(torch.arange(g.numel()) + 1.0).view(g.shape)).sum() for g in first), torch.zeros(()))
    return torch.cat([g.flatten() for g in torch.autograd.grad(along, tensors)])


def test_second_derivatives_of_thin_attention_in_a_model_equal_those_of_its_definition() -> None:
    heads = tuple(0.5 * numbers(8, 6, 128, 4, kind=torch.float32, seed=i).detach() for i in range(3))
    assert thin_attention.suits(*heads)
    tensors = tuple(t.requires_grad_() for t in heads)
    found = second(lambda q, k, v: attend(q, k, v, causal=True)[0], tensors)
    assert far(found, second(lambda q, k, v: attend(q, k, v, causal=True, kernel="matmul")[0], tensors)) < ROUNDED


def test_second_derivatives_of_grouped_products_equal_those_of_segments() -> None:
    tensors = (numbers(24, 16, kind=torch.float32), numbers(3, 8, 16, kind=torch.float32))
    sizes, ends = (9, 0, 11), torch.tensor([9, 9, 20])
    assert grouped.groupable(*tensors)
    found = second(lambda x, w: grouped.grouped_linear(x, w, grouped.Rows("grouped", ends, sizes, False)), tensors)
    wanted = second(lambda x, w: grouped.grouped_linear(x, w, grouped.Rows("segment", ends, sizes, False)), tensors)
    assert far(found, wanted) < ROUNDED


def test_second_derivatives_go_through_recomputed_activations() -> None:
    for name in ("lm standard+relu2", "lm tva+vft", "lm spectral[window=8,chunk=4]+relu2", MIXES[0]):
        kept, again = (Subject(MODELS[name](torch.float64, False)) for _ in range(2))
        again.case.model.checkpoint_activations = True  # type: ignore[assignment]
        assert far(by_inputs(again), by_inputs(kept)) < SAME
        assert far(by_forward(again), by_forward(kept)) < SAME


def test_angles_that_learn_have_gradients() -> None:
    x, angles = numbers(2, 3, 4), numbers(3, 2)
    torch.autograd.gradcheck(lambda x, t: rotary.rotate(x, t.cos(), t.sin(), "half"), (x, angles))


def test_constants_made_inside_a_transform_serve_later() -> None:
    rotary._tables.clear()
    subject = Subject(MODELS["lm standard+relu2"](torch.float64, False))
    grad(subject.at)(subject.values)
    tables = [table for pair in rotary._tables.values() for table in pair]
    assert tables and not any(torch._C._functorch.is_functorch_wrapped_tensor(table) for table in tables)


def test_second_derivatives_under_autocast_are_those_of_float32_but_for_rounding() -> None:
    for name in ("lm standard[n_kv_heads=1,kernel=sdpa]+standard", "lm tva+vft", MIXES[0]):
        case = MODELS[name](torch.float32, False)
        parameters = tuple(case.model.parameters())
        found = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = case.outputs()["out.loss"]
            first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            along = sum(((g * g.detach().sign()).sum() for g in first if g is not None), torch.zeros(()))
            found.append(flat(torch.autograd.grad(along, parameters, allow_unused=True), list(parameters)))
        # Two digits and a half of bfloat16, after some twenty products.
        assert far(found[1], found[0]) < 0.1


def test_an_ensemble_is_one_model_by_vmap_over_parameters() -> None:
    for name in ("lm mla+relu2", "lm tva+vft", "classify spectral", "signal complex", "price student_t"):
        subject = Subject(MODELS[name](torch.float64, False))
        members = {n: torch.stack([p, 1.1 * p]) for n, p in subject.values.items()}
        for watched in (torch.enable_grad, torch.no_grad):
            with watched():
                found = vmap(subject.at)(members)
                wanted = torch.stack([subject.at({n: p[i] for n, p in members.items()}) for i in range(2)])
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
