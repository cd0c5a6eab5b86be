"""Checks of FFNs: position-wise modules `forward(x) -> out`, with `with_aux(x) -> (out, aux | None)` for blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from blockyard.conformance import training
from blockyard.conformance.costs import TOKENS, counted_flops, require_formula
from blockyard.conformance.refusals import refused
from blockyard.conformance.subject import LENGTH, Subject, close, random, skip
from blockyard.conformance.suite import check_of
from blockyard.errors import InputError


@check_of("ffn")
def the_output_has_the_shape_and_dtype_of_the_input(subject: Subject) -> None:
    ffn = subject.build()
    for shape in ((1, 1), (3, 1), (1, 13), (2, 31)):
        x = subject.x(*shape)
        out = ffn.full(x)
        assert isinstance(out, Tensor), f"forward should return a tensor, not {type(out).__name__}"
        assert out.shape == x.shape, f"output {list(out.shape)} for input {list(x.shape)}"
        assert out.dtype == x.dtype, f"output {out.dtype} for input {x.dtype}"
        assert torch.isfinite(out).all(), "the output is not finite"


@check_of("ffn")
def positions_do_not_mix(subject: Subject) -> None:
    ffn, x = subject.build(), subject.x()
    out = ffn(x)
    for t in range(LENGTH):
        close(ffn(x[:, t : t + 1]), out[:, t : t + 1], f"position {t} alone")
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    close(ffn(x[:, order]), out[:, order], "positions in another order")
    close(ffn(x.flip(0)), out.flip(0), "rows in another order")


@check_of("ffn")
def with_aux_agrees_with_a_plain_call(subject: Subject) -> None:
    ffn, x = subject.build(), subject.x()
    if not hasattr(ffn.module, "with_aux"):
        skip("it has no with_aux; blocks call it plainly")
    result = ffn.module.with_aux(x)
    assert isinstance(result, tuple) and len(result) == 2, "with_aux should return (out, aux | None)"
    out, aux = result
    close(out, ffn(x), "the output of with_aux")
    if aux is None:
        return
    assert set(aux) <= {"losses", "stats"}, f"aux has keys {sorted(aux)}, expected 'losses' and 'stats'"
    for name, loss in aux.get("losses", {}).items():
        assert isinstance(loss, Tensor) and loss.ndim == 0, f"auxiliary loss {name!r} is not a scalar tensor"


@check_of("ffn")
def non_contiguous_input_gives_the_same_output_as_contiguous(subject: Subject) -> None:
    ffn, x = subject.build(), subject.x()
    close(ffn(x.transpose(0, 1).contiguous().transpose(0, 1)), ffn(x), "batch and length swapped in memory")


@check_of("ffn")
def the_input_stays_as_it_was(subject: Subject) -> None:
    ffn, x = subject.build(), subject.x()
    before = x.clone()
    ffn(x)
    assert torch.equal(x, before), "forward changed its input in place"


@check_of("ffn")
def eval_mode_is_deterministic(subject: Subject) -> None:
    ffn, x = subject.build(**subject.dropout), subject.x()
    assert torch.equal(ffn(x), ffn(x)), "two calls in eval mode differ (dropout left on?)"


@check_of("ffn")
def bfloat16_is_close_to_float32(subject: Subject) -> None:
    if "bfloat16" not in subject.traits.dtypes:
        skip("its traits do not claim bfloat16")
    exact, half = subject.build(dtype=torch.float32), subject.build(dtype=torch.bfloat16, seed=5)
    half.module.load_state_dict({name: tensor.bfloat16() for name, tensor in exact.module.state_dict().items()})
    x = subject.x(precision=torch.bfloat16)
    out = half(x)
    assert out.dtype == x.dtype, f"{x.dtype} in, {out.dtype} out"
    single = subject.data_dtype(torch.float32)
    close(out.to(single), exact(x.to(single)), "bfloat16 against float32", tolerance=0.06)


@check_of("ffn")
def a_gradient_reaches_every_parameter(subject: Subject) -> None:
    ffn = subject.build()
    found = training.gradients(ffn.module, ffn, subject.x())
    dead = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    assert not dead, f"no gradient reaches {', '.join(dead)}"


@check_of("ffn")
def its_gradients_equal_finite_differences(subject: Subject) -> None:
    if not subject.precise:
        skip("its traits do not claim float64")
    ffn = subject.build()
    training.check_gradients(ffn.module, ffn, subject.x(batch=1, length=3))


@check_of("ffn")
def its_second_derivatives_are_right_or_refused(subject: Subject) -> None:
    if not subject.precise:
        skip("its traits do not claim float64")
    ffn = subject.build()
    training.check_second_derivatives(ffn.module, ffn, subject.x(batch=1, length=3))


@check_of("ffn")
def checkpointing_changes_no_gradient(subject: Subject) -> None:
    ffn, x = subject.build(**subject.dropout), subject.x()
    ffn.module.train()
    training.compare_checkpointed(ffn, x, "checkpointed")


@check_of("ffn")
def a_loaded_copy_gives_the_same_output(subject: Subject) -> None:
    ffn, copy, x = subject.build(), subject.build(seed=5), subject.x()
    copy.module.load_state_dict(training.reloaded(ffn.module))
    assert torch.equal(copy(x), ffn(x)), "a loaded copy gives another output"


@check_of("ffn")
def every_value_of_every_enumerated_option_trains(subject: Subject) -> None:
    training.train_every_value(subject)


@check_of("ffn")
def torch_compile_captures_one_graph(subject: Subject) -> None:
    ffn, x = subject.build(), subject.x()
    close(training.compiled(ffn)(x), ffn(x), "compiled")


@check_of("ffn")
def an_input_of_the_wrong_width_is_refused(subject: Subject) -> None:
    ffn = subject.build()
    wrong = random(1, 2, subject.d_model + 1, dtype=subject.dtype)
    errors = InputError if subject.declared else Exception
    refused(lambda: ffn(wrong), f"an input of width {subject.d_model + 1} for d_model={subject.d_model}", errors)


@check_of("ffn")
def the_formula_counts_parameters_and_flops(subject: Subject) -> None:
    ffn = subject.build(dtype=torch.float32)
    require_formula(ffn.module)
    count = sum(p.numel() for p in ffn.module.parameters())
    for tokens in TOKENS:
        cost = ffn.module.cost(tokens)
        assert cost.parameters == count, f"cost().parameters is {cost.parameters}, the module has {count}"
        flops = counted_flops(ffn, subject.x(batch=1, length=tokens, precision=torch.float32))
        assert cost.flops == flops, f"cost({tokens}).flops is {cost.flops}, counted are {flops}"
