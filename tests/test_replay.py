"""A recorded program as straight Python: the same bytes as the record, whatever is in it."""

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from bnn import replay

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) + 0.2
EYE, FLAGS = torch.eye(4) + 0.1, X > 0.6
INDEX = torch.tensor([[0, 2, 1, 0]])

#: For each function of torch that stands in for a recorded operation: a call that records it.
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: (x + x) + 0.3,
    "sub": lambda x: (x - x.exp()) - 0.3,
    "mul": lambda x: (x * x) * 0.3,
    "div": lambda x: (x / x.exp()) / 0.3,
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.3),
    "addmm": lambda x: torch.addmm(x, x, EYE, beta=0.5),
    "amax": lambda x: x.amax(-1, keepdim=True),
    "amin": lambda x: x.amin((0, 1)),
    "argmax": lambda x: x.argmax(-1),
    "baddbmm": lambda x: torch.baddbmm(x[None], x[None], EYE[None]),
    "bitwise_and": lambda x: (x > 0.5) & FLAGS,
    "bitwise_not": lambda x: ~(x > 0.5),
    "bitwise_or": lambda x: (x > 0.5) | FLAGS,
    "bmm": lambda x: torch.bmm(x[None], EYE[None]),
    "cat": lambda x: torch.cat([x, x.exp()], -1),
    "clamp": lambda x: x.clamp(max=0.5) + x.clamp(0.3, 0.6),
    "clamp_min": lambda x: torch.clamp_min(x, 0.5),
    "cumsum": lambda x: x.cumsum(-1),
    "eq": lambda x: x == 0.5,
    "ge": lambda x: x >= 0.5,
    "gt": lambda x: x > x.flip(0),
    "le": lambda x: x <= 0.5,
    "lt": lambda x: x < 0.5,
    "ne": lambda x: x != 0.5,
    "eye": lambda x: x @ torch.eye(4),
    "flip": lambda x: x.flip(0, 1),
    "full": lambda x: x + torch.full((4,), float("-inf")),
    "gather": lambda x: x.gather(0, INDEX),
    "index_select": lambda x: x.index_select(-1, INDEX[0]),
    "logaddexp": lambda x: torch.logaddexp(x, -x),
    "logical_and": lambda x: torch.logical_and(x > 0.5, FLAGS),
    "logical_not": lambda x: torch.logical_not(x > 0.5),
    "masked_fill": lambda x: x.masked_fill(FLAGS, float("-inf")),
    "max": lambda x: x.max(-1).values * x.max(),
    "min": lambda x: x.min(-1).values * x.min(),
    "maximum": lambda x: torch.maximum(x, EYE[:3]),
    "minimum": lambda x: torch.minimum(x, EYE[:3]),
    "mean": lambda x: x.mean(-1, keepdim=True) + x.mean(),
    "mm": lambda x: x @ EYE,
    "permute": lambda x: x.permute(1, 0),
    "pow": lambda x: x**3 + 2**x + x**x,
    "rand": lambda x: x + torch.rand(4),
    "randn": lambda x: x + torch.randn(3, 1),
    "scalar_tensor": lambda x: x + torch.ops.aten.scalar_tensor.default(0.5),
    "select": lambda x: x.select(1, -1),
    "split_with_sizes": lambda x: torch.split(x, [1, 3], -1)[1],
    "squeeze": lambda x: x[:1].squeeze(0),
    "stack": lambda x: torch.stack([x, x], 1),
    "sum": lambda x: x.sum() + x.sum(0, keepdim=True) + x.double().sum(-1, keepdim=True),
    "t": lambda x: x.t(),
    "transpose": lambda x: x.transpose(0, 1),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "abs": torch.abs,
    "atan": torch.atan,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "isnan": torch.isnan,
    "lgamma": torch.lgamma,
    "log": torch.log,
    "log1p": torch.log1p,
    "neg": torch.neg,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "sgn": torch.sgn,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "sin": torch.sin,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "where": lambda x: torch.where(FLAGS, x, 0.5),
    "view": lambda x: x.view(2, 6),
    "expand": lambda x: x.sum().expand(5) + x.select(1, 0).expand(2, 3).sum(),
}


#: Calls with a second matrix of single precision.
MATRICES = {"addmm", "baddbmm", "bmm", "mm", "eye"}


def raw(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def same(module: GraphModule, *tensors: Tensor) -> bool:
    """Whether record and function give equal tensors of one kind under one seed."""
    got, expected = [], []
    for run, into in ((module.forward, expected), (replay.replay(module), got)):
        torch.manual_seed(3)
        result = run(*tensors)
        into.extend(result if isinstance(result, list | tuple) else [result])
    kinds = [[(t.dtype, t.shape, t.stride()) for t in each] for each in (got, expected)]
    return kinds[0] == kinds[1] and all(raw(a) == raw(b) for a, b in zip(got, expected, strict=True))


def test_every_function_that_stands_in_has_a_call() -> None:
    assert set(CALLS) == {*replay._FUNCTIONS, *replay._METHODS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", list(CALLS))
def test_a_function_gives_what_the_operation_gives(name: str, dtype: torch.dtype) -> None:
    def call(x: Tensor) -> Tensor:
        return CALLS[name](x.to(dtype) if name not in MATRICES else x)

    module = make_fx(call)(X)
    assert name in {
        node.target._schema.name.split("::")[1] for node in module.graph.nodes if "aten" in str(node.target)
    }
    assert same(module, X + 0.01)


def test_what_has_no_function_of_its_own_is_called_as_it_is() -> None:
    def call(x: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.ops.aten.threshold_backward(x, x - 0.5, 0),
            x[1:, ::2],
            torch.ops.aten.native_layer_norm(x, [4], None, None, 1e-5)[0],
        )

    assert same(make_fx(call)(X), X + 0.01)


def numbers(module: GraphModule) -> list[float]:
    """The constants of one number that the function was given."""
    writer = replay._Writer(module)
    writer.function()
    return [float(g) for g in writer.globals.values() if isinstance(g, Tensor)]


@pytest.mark.parametrize(
    ("call", "constants"),
    [
        (lambda x: x * 0.5, [0.5]),
        (lambda x: x.double() / 3, [3.0]),
        (lambda x: x.sum() - float("inf"), [float("inf")]),
        (lambda x: x.bfloat16() * 0.5, []),  # computed in single precision, with the number as it is
        (lambda x: x.gt(0.5) * 0.5, []),  # the number makes it floating
        (lambda x: x.gt(0.5).long() * 2, []),
        (lambda x: torch.add(x, 0.5, alpha=3), []),
        (lambda x: x + x, []),
        (lambda x: x * (2**60 + 2**36 + 1), []),  # not a number of double precision
        (lambda x: torch.ops.aten.add.Scalar(x, 0.5, 2), []),  # for torch.add the third argument is another
    ],
)
def test_a_number_becomes_a_tensor_only_where_the_result_is_the_same(
    call: Callable[[Tensor], Tensor], constants: list[float]
) -> None:
    module = make_fx(call)(X)
    assert same(module, X + 0.01)
    assert numbers(module) == constants


def test_on_another_device_numbers_stay_numbers() -> None:
    module = make_fx(lambda x: x * 0.5)(X.to("meta"))
    assert not numbers(module)


def test_constants_are_made_beside_the_data_whatever_the_default_device() -> None:
    module = make_fx(lambda x: x * 0.5 + torch.ops.aten.rand.default([3, 4]))(X)
    with torch.device("meta"):
        program = replay.replay(module)
        assert program(X).device == X.device


def test_a_program_made_in_inference_mode_can_be_differentiated_through() -> None:
    module = make_fx(lambda x: x * x * 0.5)(X)
    with torch.inference_mode():
        program = replay.replay(module)
    x = X.clone().requires_grad_()
    program(x).sum().backward()
    torch.testing.assert_close(x.grad, X)


def test_functions_of_torch_stand_in() -> None:
    writer = replay._Writer(make_fx(lambda x: (x * x).exp().view(-1))(X))
    writer.function()
    called = list(writer.globals.values())
    assert torch.mul in called
    assert torch.exp in called
    assert Tensor.view in called


def test_results_are_let_go_as_soon_as_nobody_needs_them() -> None:
    alive: list[int] = []

    class Held:
        now = 0

        def __init__(self) -> None:
            Held.now += 1

        def __del__(self) -> None:
            Held.now -= 1

    def step(held: Held) -> Held:
        alive.append(Held.now)
        return Held()

    graph = Graph()
    node = graph.placeholder("x")
    for _ in range(10):
        node = graph.call_function(step, (node,))
    graph.call_function(Held)  # nobody needs it at all
    node = graph.call_function(step, (node,))
    graph.output((node,))
    given = [Held()]
    replay.replay(GraphModule(torch.nn.Module(), graph))(given[0])
    assert max(alive) == 2  # the caller's, and the last


def test_a_result_that_is_a_part_of_another_is_taken_out() -> None:
    graph = Graph()
    given = graph.placeholder("x")
    pair = graph.call_function(torch.ops.aten.max.dim, (given, 0))
    graph.output((graph.call_function(operator.getitem, (pair, 1)),))
    assert same(GraphModule(torch.nn.Module(), graph), X)
