"""Products by torch's other library: the numbers of its own products, and its own wherever something else watches."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from blockyard.nn import fused, products
from blockyard.nn.linear import Linear, untouched, weight_of

# Sums of some hundred products of numbers of order 1 in float32, in another order.
CLOSE = {"rtol": 1e-5, "atol": 2e-4}
ROWS, D_IN, D_OUT = 64, 192, 256


@pytest.fixture
def calls(monkeypatch):
    """The other library, whether or not it is the faster one here, and a list that grows with every call of it."""
    operation = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operation is None or not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    made = []

    class Counted:
        def __call__(self, *given):
            made.append(given)
            return operation(*given)

        def binary(self, *given):
            made.append(given)
            return operation.binary(*given)

    counted = Counted()
    monkeypatch.setattr(products, "_other_library", lambda: counted)
    monkeypatch.setattr(products, "in_halves", lambda: False)
    return made


def matrices(seed=0, rows=(2, ROWS // 2)):
    torch.manual_seed(seed)
    x, weight = torch.randn(*rows, D_IN), torch.randn(D_OUT, D_IN)
    return x.requires_grad_(), weight.requires_grad_(), torch.randn(D_OUT, requires_grad=True)


@pytest.mark.parametrize("with_bias", [False, True], ids=["bare", "bias"])
def test_outputs_and_gradients_are_those_of_torchs_own_product(calls, with_bias):
    x, weight, bias = matrices()
    given = [x, weight, bias] if with_bias else [x, weight]
    found, wanted = products.linear(*given), F.linear(*given)
    torch.testing.assert_close(found, wanted, **CLOSE)
    of = torch.randn_like(found)
    for a, b in zip(torch.autograd.grad(found, given, of), torch.autograd.grad(wanted, given, of)):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, **CLOSE)
    # Forward, and one product for either gradient.
    assert len(calls) == 3
    with torch.no_grad():
        torch.testing.assert_close(products.linear(*given), wanted, **CLOSE)


def test_matrices_may_lie_in_memory_as_they_like(calls):
    torch.manual_seed(0)
    whole = torch.randn(2 * ROWS, 2 * D_IN)
    lefts = [whole[:ROWS, :D_IN], whole[::2, D_IN:], torch.randn(D_IN, ROWS).mT]
    rights = [torch.randn(D_OUT, D_IN), torch.randn(D_IN, D_OUT).mT, torch.randn(D_OUT, 3 * D_IN)[:, D_IN : 2 * D_IN]]
    added = torch.randn(ROWS, 2 * D_OUT)[:, ::2]
    with torch.no_grad():
        for a in lefts:
            for b in rights:
                torch.testing.assert_close(products.product(a, b), a @ b.mT, **CLOSE)
                before = added.clone()
                torch.testing.assert_close(products.product(a, b, added), added + a @ b.mT, **CLOSE)
                assert torch.equal(added, before), "what is added is not overwritten"
                torch.testing.assert_close(products.product(a, b, before, owned=True), added + a @ b.mT, **CLOSE)
        grads, rows = torch.randn(ROWS, 512), torch.randn(ROWS, 128)
        for g, r in ((grads, rows), (rows, grads)):
            torch.testing.assert_close(products.weight_gradient(g, r), g.mT @ r, **CLOSE)
    assert len(calls) == 3 * 9 + 2


def test_second_derivatives_go_by_operations_that_torch_differentiates(calls):
    x, weight, _ = matrices()

    def slope(linear):
        (first,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    # Numbers of order 1e6.
    torch.testing.assert_close(slope(products.linear), slope(F.linear), rtol=1e-4, atol=10)


def test_whatever_watches_or_decides_otherwise_has_torchs_own(calls):
    x, weight, _ = (t.detach() for t in matrices())
    with FlopCounterMode(display=False) as counter:
        products.linear(x, weight)
    assert counter.get_total_flops() == 2 * ROWS * D_IN * D_OUT
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        products.linear(x, weight)
    torch.func.vmap(products.linear, (0, None))(x.unsqueeze(0), weight)
    products.linear(x.double(), weight.double())
    products.linear(torch.randn(ROWS + 1, D_IN), weight)  # rows in any number would fill the kernels' cache
    products.linear(torch.randn(32, 8), torch.randn(8, 8))
    torch.set_float32_matmul_precision("medium")
    try:
        products.linear(x, weight)
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.fx.symbolic_trace(Linear(D_IN, D_OUT))(x)
    assert not calls
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        products.linear(x, weight[:, 1:])


def test_where_vectors_are_computedin_halves_large_products_by_rows_go_there_alone(calls, monkeypatch):
    monkeypatch.setattr(products, "in_halves", lambda: True)
    x, weight, _ = (t.detach() for t in matrices())
    products.linear(x, weight)
    assert not calls
    x, weight = torch.randn(512, 128, requires_grad=True), torch.randn(128, 128, requires_grad=True)
    found, wanted = products.linear(x, weight), F.linear(x, weight)
    of = torch.randn_like(found)
    for a, b in zip(torch.autograd.grad(found, (x, weight), of), torch.autograd.grad(wanted, (x, weight), of)):
        torch.testing.assert_close(a, b, **CLOSE)
    # Forward and the gradient of x; the weight's is torch's.
    assert len(calls) == 2
    into = torch.ones(128, 128)
    with torch.no_grad():
        sums = products.product(of.mT, x.mT, into, owned=True, rows=512)
    assert sums is into and len(calls) == 2


@pytest.mark.parametrize(
    ("vendor", "number", "halves"),
    [
        ("AuthenticAMD", 25, True),
        ("AuthenticAMD", 26, False),
        ("GenuineIntel", 6, False),
        ("AuthenticAMD", None, False),
    ],
)
def test_how_wide_vectors_are_computed_follows_from_the_family(monkeypatch, vendor, number, halves):
    monkeypatch.setattr(products, "vendor_name", lambda: vendor)
    monkeypatch.setattr(products, "family", lambda: number)
    assert products.in_halves.__wrapped__() is halves


def test_a_torch_without_its_private_questions_multiplies_all_the_same(calls, monkeypatch):
    x, weight, _ = (t.detach() for t in matrices())
    # The public flag says what the private question says.
    monkeypatch.setattr(products, "_allowed", products._switched_on)
    products.linear(x, weight)
    assert len(calls) == 1
    with torch.backends.mkldnn.flags(enabled=False):
        products.linear(x, weight)
    assert len(calls) == 1
    # Where nobody can tell whether operations are watched, none escapes.
    monkeypatch.setattr(products, "_watchers", None)
    torch.testing.assert_close(products.linear(x, weight), F.linear(x, weight), **CLOSE)
    assert len(calls) == 1


def test_linear_layers_and_sums_in_products_use_it_and_stay_what_they_are(calls):
    torch.manual_seed(0)
    layer = Linear(D_IN, D_OUT, bias=True)
    x = torch.randn(ROWS, D_IN, requires_grad=True)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), **CLOSE)
    assert calls and untouched(layer) and weight_of(layer) is layer.weight
    calls.clear()
    stream = torch.randn(ROWS, D_OUT, requires_grad=True)
    given = [stream, x, layer.weight]
    found, wanted = fused.add_linear(*given), stream + F.linear(x, layer.weight)
    torch.testing.assert_close(found, wanted, **CLOSE)
    of = torch.randn_like(found)
    for a, b in zip(torch.autograd.grad(found, given, of), torch.autograd.grad(wanted, given, of)):
        torch.testing.assert_close(a, b, **CLOSE)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("vendor", "capability", "there"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("GenuineIntel", "AVX512", False),
        ("AuthenticAMD", "AVX2", False),
        (None, "AVX512", False),
    ],
)
def test_the_choice_is_by_what_the_processor_is_and_never_by_a_clock(monkeypatch, vendor, capability, there):
    monkeypatch.setattr(products, "vendor_name", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    have = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    found = products._other_library.__wrapped__()
    assert (found is not None) == (there and have)
    # A version of torch that has it no more.
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *_: 1 / torch.zeros(()), raising=False)
    assert products._other_library.__wrapped__() is None


def test_the_right_factor_is_never_a_part_of_wider_rows(calls):
    # oneDNN has no kernel for it but a reference loop.
    x = torch.randn(ROWS, D_IN + D_OUT)
    part, weight = x[:, :D_IN], torch.randn(D_OUT, D_IN + 8)[:, :D_IN]
    with torch.no_grad():
        torch.testing.assert_close(products.linear(x[:, :D_IN], weight), part @ weight.mT, **CLOSE)
        torch.testing.assert_close(products.product(weight, part, rows=ROWS), weight @ part.mT, **CLOSE)
        torch.testing.assert_close(products.weight_gradient(x[:, D_IN:], part), x[:, D_IN:].mT @ part, **CLOSE)
    assert len(calls) == 3
    for given in calls:
        right = given[1]
        assert right.is_contiguous() or right.mT.is_contiguous()


def test_a_compiler_does_not_trace_the_choice_of_the_library(monkeypatch):
    """It would warn of a cached function at the first step of every training run."""

    def asked():
        raise AssertionError("traced")

    monkeypatch.setattr(products, "_other_library", asked)
    x, weight, bias = matrices()
    found = torch.compile(products.linear, backend="eager", fullgraph=True)(x, weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias))
