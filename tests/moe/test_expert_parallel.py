"""Expert parallelism: a layer across processes equals one process with all experts and all tokens.

Dimensions: T tokens, E experts, P processes.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from expert_parallel_cases import (
    CASES,
    EXPERTS,
    N_EXPERTS,
    SIZES,
    Case,
    Step,
    assert_same,
    build,
    error,
    merged,
    visits,
)
from process_group import run
from torch import Tensor, nn

from minimoe.moe import Meter, MoE, Routing, expert_parallel_
from minimoe.precision.linear import quantize_weights_

pytestmark = pytest.mark.distributed

# The largest error relative to the tensor's largest number. Between x and a gradient there are half a dozen
# sums of at most 50 terms: 300 roundings of 2^-24 or 2^-53, at most 2e-5 and 4e-14 if all went the same way,
# which they do not.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def run_cases() -> dict[str, tuple[Step, Meter]]:
    """On each process: its share of every case."""
    size, rank = dist.get_world_size(), dist.get_rank()
    results = {}
    for name, case in CASES.items():
        meter = Meter()
        local = [tensor.split(case.counts(size))[rank] for tensor in case.tokens(size)]
        try:
            moe = expert_parallel_(case.build(size), meter=meter)
            results[name] = case.step(moe, *local), meter
        except Exception as error:
            raise RuntimeError(f"case {name!r} failed") from error
    return results


@pytest.fixture(scope="module", params=SIZES, ids="P={}".format)
def results(request) -> list[dict[str, tuple[Step, Meter]]]:
    return run(run_cases, request.param)


def tolerance(case: Case, size: int) -> float:
    if case.dtype == torch.bfloat16 or (case.autocast and "recipe" not in case.layer):
        # BF16 rounds by at most 2^-8. Each process's part of a sum is rounded once more, and may be as large
        # as the sum. Both sides have a final rounding: two more.
        return (size + 2) * 2**-8
    return TOLERANCE[case.dtype]


@pytest.mark.parametrize("name", CASES)
def test_several_processes_equal_one(results, name):
    case, size = CASES[name], len(results)
    x, upstream, mask = case.tokens(size)
    single = case.step(case.build(size), x, upstream, mask)
    several = merged([process[name][0] for process in results])
    for ours, theirs in zip(several.routing, single.routing, strict=True):
        # Of each process's own tokens, with expert ids of the whole layer. The gate's matmul has another
        # number of rows, so floats may differ by rounding.
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert_same(several, single, tolerance(case, size))
    assert several.y[~mask].count_nonzero() == 0
    assert not case.mask or 0 < mask.sum() < len(mask)


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_sent_once_to_each_process_and_padding_to_none(results, name):
    case, size = CASES[name], len(results)
    masks = case.tokens(size)[2].split(case.counts(size))
    for rank, (process, mask) in enumerate(zip(results, masks, strict=True)):
        step, meter = process[name]
        away = np.arange(size) != rank
        times = 2 if case.checkpointed else 1
        assert meter.rows["dispatch"] == times * visits(step.routing, size, mask)[:, away].sum()


def test_groups_limit_the_processes_per_token(results):
    size = len(results)
    limit = -(-size // 2)
    free = visits(merged([process["float64"][0] for process in results]).routing, size).sum(1)
    limited = visits(merged([process["groups"][0] for process in results]).routing, size).sum(1)
    assert limited.max() == limit
    assert free.max() > limit or size == 1  # the limit has an effect


@pytest.mark.parametrize("name", ["an idle process", "loop, an idle process", "grouped, an idle process"])
def test_experts_without_tokens_have_a_gradient_of_zero(results, name):
    idle_E = CASES[name].bias(len(results)) < 0
    several = merged([process[name][0] for process in results])
    assert several.routing.counts_E[idle_E].sum() == 0
    for expert in EXPERTS:
        assert several.grads[expert][idle_E].count_nonzero() == 0
        assert (several.grads[expert][~idle_E].flatten(1).abs().amax(1) > 0).all()


# several layers, and repeated use of one


def residual(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = x + layer(x)[0]
    return x


def two_in_flight(layers: nn.ModuleList, x: Tensor) -> Tensor:
    return layers[0](x)[0] * layers[0](x / 2)[0]


def in_turn(layers: nn.ModuleList, x: Tensor) -> Tensor:
    return layers[0](layers[0](x)[0])[0]


PROGRAMS = {program.__name__: program for program in (residual, two_in_flight, in_turn)}


def pair() -> nn.ModuleList:
    return nn.ModuleList([build(), build(seed=5, top_k=2, n_shared=0)])


def program_step(layers: nn.ModuleList, name: str, x: Tensor, upstream: Tensor, times: int = 1) -> Step:
    layers.zero_grad()
    x = x.clone().requires_grad_()
    y = PROGRAMS[name](layers, x)
    for time in range(times):
        y.backward(upstream, retain_graph=time < times - 1)
    grads = {name: parameter.grad for name, parameter in layers.named_parameters()}
    nothing = Routing(*torch.zeros(4, 1))
    return Step(y.detach(), nothing, {"x": x.grad, **grads})


def run_programs(counts: list[int]) -> dict[str, list]:
    rank = dist.get_rank()
    x, upstream, _ = (tensor.split(counts)[rank] for tensor in Case(counts=lambda _: counts).tokens(0))
    layers = expert_parallel_(pair())
    done: dict[str, Any] = {name: program_step(layers, name, x, upstream) for name in PROGRAMS}
    done["twice backward"] = program_step(layers, "residual", x, upstream, times=2)
    with torch.no_grad():
        done["no_grad"] = residual(layers, x)
    with torch.inference_mode():
        done["inference_mode"] = residual(layers, x).clone()
    done["shape"] = residual(layers, x.unsqueeze(0)).detach()
    return done


@pytest.fixture(scope="module", params=SIZES, ids="P={}".format)
def programs(request) -> tuple[list[int], list[dict[str, Any]]]:
    counts = [3 * rank or 4 for rank in range(request.param)]
    return counts, run(run_programs, request.param, counts)


def merged_programs(steps: list[Step]) -> Step:
    """As ``merged``, for two layers."""
    renamed = []
    for layer in ("0.", "1."):
        ours = [
            Step(
                s.y, s.routing, {n.removeprefix(layer): g for n, g in s.grads.items() if n.startswith(layer)}
            )
            for s in steps
        ]
        renamed.append({layer + name: grad for name, grad in merged(ours).grads.items()})
    x = {"x": torch.cat([step.grads["x"] for step in steps])}
    return Step(torch.cat([step.y for step in steps]), steps[0].routing, x | renamed[0] | renamed[1])


@pytest.mark.parametrize("name", [*PROGRAMS, "twice backward"])
def test_several_layers_equal_one_process(programs, name):
    counts, processes = programs
    x, upstream, _ = Case(counts=lambda _: counts).tokens(0)
    program, times = ("residual", 2) if name == "twice backward" else (name, 1)
    layers = pair()
    if program in ("two_in_flight", "in_turn"):  # the second layer is unused
        for parameter in layers[1].parameters():
            parameter.requires_grad_(False)
    single = program_step(layers, program, x, upstream, times)
    assert_same(merged_programs([process[name] for process in processes]), single, 1e-12)


@pytest.mark.parametrize("name", ["no_grad", "inference_mode", "shape"])
def test_inference_and_the_shape_of_the_output(programs, name):
    counts, processes = programs
    x, _, _ = Case(counts=lambda _: counts).tokens(0)
    y = [process[name] for process in processes]
    if name == "shape":
        y = [part.squeeze(0) for part in y]
    assert not any(part.requires_grad for part in y)
    assert error(torch.cat(y), residual(pair(), x).detach()) <= 1e-12


def in_two_groups(counts: list[int]) -> tuple[Step, Meter]:
    """Processes 0 and 2 have one copy of the experts, 1 and 3 another."""
    groups = [dist.new_group([first, first + 2]) for first in range(2)]
    rank, meter, case = dist.get_rank(), Meter(), Case()
    x, upstream, mask = (tensor.split(counts)[rank] for tensor in Case(counts=lambda _: counts).tokens(0))
    moe = expert_parallel_(case.build(2), groups[rank % 2], meter=meter)
    return case.step(moe, x, upstream, mask), meter


def test_a_group_may_be_part_of_all_processes():
    counts = [4, 7, 5, 2]
    processes = run(in_two_groups, 4, counts)
    x, upstream, mask = (tensor.split(counts) for tensor in Case(counts=lambda _: counts).tokens(0))
    for first in range(2):
        group = [torch.cat(tensor[first::2]) for tensor in (x, upstream, mask)]
        steps = [step for step, _ in processes[first::2]]
        assert_same(merged(steps), Case().step(Case().build(2), *group), 1e-12)
        for place, (step, meter) in enumerate(processes[first::2]):
            assert meter.rows["dispatch"] == visits(step.routing, 2)[:, 1 - place].sum()
            assert meter.rows["counts"] == 1


# state, and errors


def state() -> dict[str, Any]:
    moe = build()
    moe.experts.gate_up_proj.requires_grad_(False)
    model = nn.Sequential(nn.Linear(2, 2), moe)
    returned = expert_parallel_(model)
    experts = [moe.get_parameter(name) for name in EXPERTS]
    return {
        "state": {name: tensor.clone() for name, tensor in moe.state_dict().items()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in moe.named_parameters()},
        "leaves": all(type(p) is nn.Parameter and p.is_leaf for p in experts),
        "own_memory": all(p.untyped_storage().nbytes() == p.nbytes for p in experts),
        "same": returned is model,
    }


@pytest.mark.parametrize("size", SIZES)
def test_each_process_has_its_own_experts_and_all_other_parameters(size):
    single = build()
    expected = single.state_dict()
    for rank, process in enumerate(run(state, size)):
        assert list(process["state"]) == list(expected)
        for name, tensor in process["state"].items():
            part = expected[name]
            if name in EXPERTS:
                n_local = N_EXPERTS // size
                part = part[rank * n_local : (rank + 1) * n_local]
            assert torch.equal(tensor, part), name
        requires_grad = {name: name != EXPERTS[0] for name, _ in single.named_parameters()}
        assert process["requires_grad"] == requires_grad
        assert process["leaves"]
        assert process["own_memory"]  # not a view of all experts
        assert process["same"]


def quantized() -> MoE:
    return quantize_weights_(build(torch.float32, dispatch="auto", recipe="deepseek-v3"))


INVALID = {
    "experts": (lambda: build(n_experts=7), r"n_experts \(7\) must be divisible by .* processes \(2\)"),
    "capacity": (lambda: build(dispatch="capacity"), "'capacity' with choice 'token' drops tokens"),
    "choice": (
        lambda: build(choice="expert", dispatch="auto"),
        "'auto' with choice 'expert' drops tokens",
    ),
    "twice": (lambda: expert_parallel_(build()), "already divided among processes; build a new layer"),
    "quantized": (
        quantized,
        r"quantized for inference \(quantize_weights_\); call expert_parallel_ before it",
    ),
}


def errors() -> dict[str, tuple[str, bool]]:
    """Each message, and whether a valid layer in the same model was left unchanged."""
    done = {}
    for name, (make, _) in INVALID.items():
        bad, good = make(), build()
        with pytest.raises(ValueError) as caught:
            expert_parallel_(nn.ModuleList([good, bad]))
        done[name] = str(caught.value), good.parallel is None and len(good.experts.down_proj) == N_EXPERTS
    good = build()
    with pytest.raises(ValueError) as caught:
        expert_parallel_(good, dispatch_dtype="fp16")
    done["dispatch_dtype"] = str(caught.value), good.parallel is None
    return done


def test_invalid_layers_are_rejected():
    messages = {name: message for name, (_, message) in INVALID.items()}
    messages["dispatch_dtype"] = "dispatch_dtype must be one of full, bf16, fp8, not 'fp16'"
    for process in run(errors, 2):
        assert process.keys() == messages.keys()
        for name, (message, unchanged) in process.items():
            with pytest.raises(ValueError, match=messages[name]):
                raise ValueError(message)
            assert unchanged, name


def test_a_process_group_is_required():
    moe = build()
    with pytest.raises(ValueError, match=r"needs a process group: call .*init_process_group.*torchrun"):
        expert_parallel_(moe)
    assert moe.parallel is None
