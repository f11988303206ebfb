"""A PyTorch module as a list of affine and elementwise nodes, which is what bounds are computed on.

torch.fx records what `forward` does, so that residual connections, functional calls and nested modules need no
special form. What does not depend on the input (also `softplus(weight)`) counts as a weight and is read at every
call. A layer that no bound is known for is refused by name.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from robustrun.methods.bounds import activations, operators
from robustrun.methods.bounds.activations import Activation
from robustrun.methods.bounds.operators import Affine
from robustrun.methods.bounds.regions import Region
from robustrun.methods.bounds.unsupported import Unsupported


@dataclass(frozen=True)
class Node:
    """One value of the network: `op` applied to the values named `inputs`; the input node has no `op`."""

    name: str
    op: Affine | Activation | None
    inputs: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def is_activation(self) -> bool:
        """Whether the node is an elementwise nonlinearity."""
        return isinstance(self.op, Activation)

    @property
    def size(self) -> int:
        """Numbers an example."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Network:
    """`nodes` in topological order, from the input to the output."""

    nodes: tuple[Node, ...]

    @property
    def input(self) -> Node:
        """The first node."""
        return self.nodes[0]

    @property
    def output(self) -> Node:
        """The last node."""
        return self.nodes[-1]

    @property
    def activations(self) -> tuple[Node, ...]:
        """The nodes that are elementwise nonlinearities, in order."""
        return tuple(node for node in self.nodes if node.is_activation)

    @property
    def pre_activations(self) -> tuple[str, ...]:
        """Names of the values that activations are applied to, each once, in order."""
        return tuple(dict.fromkeys(node.inputs[0] for node in self.activations))

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def __call__(self, x: Tensor) -> Tensor:
        return self.values(x)[self.output.name]

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Every node's value at x (batch, *features)."""
        values = {self.input.name: x}
        for node in self.nodes[1:]:
            values[node.name] = node.op.forward(*(values[name] for name in node.inputs))
        return values

    def margins(self, region: Region) -> dict[str, Tensor]:
        """By how much rounding can falsify a bound of each node: what certificates are widened by.

        Interval arithmetic and back-substitution both evaluate sums of products of weights, inputs and slopes
        in [0, 1]; the sum of their absolute values is at most what the network of absolute weights makes of
        absolute inputs, M. Standard error analysis (Higham 2002, chapter 3) bounds the error by  n u M  to first
        order, n being the number of additions on the longest path and u the unit roundoff; 4 n u M leaves room
        for the second order, for two-sided sums and for the slopes' own rounding.
        """
        with torch.no_grad():
            magnitudes = {self.input.name: torch.maximum(region.lower.abs(), region.upper.abs())}
            counts = {self.input.name: 2}
            margins = {}
            unit = torch.finfo(region.lower.dtype).eps
            for node in self.nodes[1:]:
                magnitudes[node.name] = node.op.absolute(*(magnitudes[name] for name in node.inputs))
                counts[node.name] = max(counts[name] for name in node.inputs) + getattr(node.op, "fan_in", 4) + 4
                margins[node.name] = 4 * counts[node.name] * unit * magnitudes[node.name]
            return margins


def trace(module: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """The network behind `module`, which maps (batch, *input_shape) to (batch, *output_shape).

    Weights are not copied: bounds of the result follow the module as it trains, and are differentiable in its
    parameters. Batch normalisation counts with its running statistics, dropout as the identity.

    Knows Linear, Conv2d, batch normalisation, ReLU, LeakyReLU, Tanh, Sigmoid, Softplus, squares, average and
    (interval bounds only) max pooling, reshaping, sums and differences of values, and arithmetic with constants.
    Raises Unsupported naming the first operation it does not know.
    """
    graph = fx.symbolic_trace(module)
    parameter = next((p for p in module.parameters()), torch.zeros(()))
    example = torch.zeros((2, *input_shape), dtype=parameter.dtype, device=parameter.device)
    shapes = _shapes(graph, example)
    return _Tracer(graph, shapes).network()


def _shapes(graph: fx.GraphModule, example: Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Shapes, without the batch, of every tensor; in evaluation mode, and leaving the module's mode alone."""
    shapes = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if isinstance(value, Tensor):
                shapes[node] = tuple(value.shape[1:])
            return value

    modes = {m: m.training for m in graph.modules()}
    graph.eval()
    try:
        with torch.no_grad():
            Recorder(graph).run(example)
    finally:
        for m, mode in modes.items():
            m.training = mode
    return shapes


class _Tracer:
    def __init__(self, graph: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]]):
        self.graph, self.shapes = graph, shapes
        self.names: dict[fx.Node, str] = {}  # of the nodes that depend on the input
        self.nodes: list[Node] = []

    def network(self) -> Network:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                if self.nodes:
                    raise Unsupported("bounds are known for modules of one input")
                self._add(node, None, ())
            elif node.op == "output":
                output = node.args[0]
                if not isinstance(output, fx.Node) or output not in self.names:
                    raise Unsupported(
                        "bounds are known for modules whose output is one tensor that depends on the input"
                    )
                return Network(self._needed(self.names[output]))
            elif any(n in self.names for n in node.all_input_nodes):
                self._convert(node)
        raise AssertionError("a graph ends in its output")

    def _needed(self, output: str) -> tuple[Node, ...]:
        needed = {output}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return tuple(node for node in self.nodes if node.name in needed or node is self.nodes[0])

    def _add(self, node: fx.Node, op, inputs: tuple[fx.Node, ...]) -> None:
        self.names[node] = node.name
        self.nodes.append(Node(node.name, op, tuple(self.names[i] for i in inputs), self.shapes[node]))

    def _get(self, value):
        """A callable that computes what does not depend on the input."""
        if not isinstance(value, fx.Node):
            return lambda: value
        if value.op == "get_attr":
            owner, _, name = value.target.rpartition(".")
            holder = self.graph.get_submodule(owner)
            return lambda: getattr(holder, name)
        args = [self._get(a) for a in value.args]
        kwargs = {k: self._get(a) for k, a in value.kwargs.items()}
        function = self.graph.get_submodule(value.target) if value.op == "call_module" else value.target
        if value.op == "call_method":
            return lambda: getattr(args[0](), value.target)(
                *(a() for a in args[1:]), **{k: a() for k, a in kwargs.items()}
            )
        return lambda: function(*(a() for a in args), **{k: a() for k, a in kwargs.items()})

    def _convert(self, node: fx.Node) -> None:
        if node not in self.shapes:  # a size or shape: reshaping nodes know their own
            self.names[node] = node.name
            return
        x = node.args[0] if node.args else node.kwargs.get("input")
        if node.op == "call_module":
            op = self._from_module(self.graph.get_submodule(node.target), x)
        else:
            op = self._from_function(node, x)
        if isinstance(op, tuple):
            op, inputs = op
        else:
            inputs = (x,)
        if op is None:  # the identity
            self.names[node] = self.names[x]
            self.shapes[node] = self.shapes[x]
            return
        if isinstance(op, operators.Scale) and self.shapes[node] != self.shapes[inputs[0]]:
            raise Unsupported("no bound is known for arithmetic with a constant that changes the value's shape")
        self._add(node, op, inputs)

    def _from_module(self, m: nn.Module, x: fx.Node):
        shape = self.shapes[x]
        match m:
            case nn.Linear():
                return self._linear(lambda: m.weight, lambda: m.bias)
            case nn.Conv2d():
                if m.padding_mode != "zeros":
                    raise Unsupported(f"no bound is known for convolutions with padding mode {m.padding_mode!r}")
                options = {k: getattr(m, k) for k in ("stride", "padding", "dilation", "groups")}
                return self._conv(lambda: m.weight, lambda: m.bias, shape, options)
            case nn.modules.batchnorm._BatchNorm():
                return _batch_norm(m, len(shape))
            case nn.Flatten():
                return self._shape(m, shape)
            case nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
                return operators.Monotone(m, shape, True, type(m).__name__, math.prod(shape))
            case nn.MaxPool2d():
                return operators.Monotone(m, shape, False, type(m).__name__, 1)
            case nn.Identity() | nn.Dropout() | nn.Dropout2d():
                return None
            case nn.ReLU():
                return activations.ReLU()
            case nn.LeakyReLU():
                return self._leaky(m.negative_slope)
            case nn.Tanh():
                return activations.tanh()
            case nn.Sigmoid():
                return activations.sigmoid()
            case nn.Softplus():
                return activations.softplus(m.beta)
        raise Unsupported(f"no bound is known for the layer {type(m).__name__}")

    def _from_function(self, node: fx.Node, x):
        f = node.target
        name = f if isinstance(f, str) else getattr(f, "__name__", str(f))
        name = name.removesuffix("_")
        extra, kwargs = node.args[1:], node.kwargs
        match name:
            case "add" | "iadd" | "sub" | "isub" | "mul" | "imul" | "truediv" | "div" | "neg":
                return self._arithmetic(name, node.args)
            case "linear":
                weight, bias = (*extra, kwargs.get("bias"))[:2] if extra else (kwargs["weight"], kwargs.get("bias"))
                if weight in self.names or bias in self.names:
                    raise Unsupported("no bound is known for weights that depend on the input")
                return self._linear(self._get(weight), self._get(bias))
            case "conv2d":
                names = ("weight", "bias", "stride", "padding", "dilation", "groups")
                given = dict(zip(names, extra, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
                weight, bias = given.pop("weight"), given.pop("bias", None)
                return self._conv(self._get(weight), self._get(bias), self.shapes[x], given)
            case "relu":
                return activations.ReLU()
            case "leaky_relu":
                return self._leaky(kwargs.get("negative_slope", extra[0] if extra else 0.01))
            case "tanh":
                return activations.tanh()
            case "sigmoid":
                return activations.sigmoid()
            case "softplus":
                return activations.softplus(kwargs.get("beta", extra[0] if extra else 1.0))
            case "square":
                return activations.square()
            case "pow":
                if extra[:1] == (2,):
                    return activations.square()
            case "flatten" | "view" | "reshape" | "squeeze" | "unsqueeze" | "contiguous":
                return self._shape(None, self.shapes[x], self.shapes[node])
            case "dropout" | "dropout2d":
                return None
            case "avg_pool2d" | "adaptive_avg_pool2d" | "mean" | "sum" | "getitem" | "permute" | "transpose":
                return self._positive(node, x, name)
            case "max_pool2d":
                return self._positive(node, x, name, linear=False)
        raise Unsupported(f"no bound is known for the operation {name!r}")

    def _linear(self, weight, bias):
        return operators.Linear(weight, bias, weight().shape[1])

    def _conv(self, weight, bias, shape, options):
        if isinstance(options.get("padding"), str):
            size, dilation = weight().shape[2:], options.get("dilation", (1, 1))
            total = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
            if options["padding"] == "same" and any(t % 2 for t in total):
                raise Unsupported("no bound is known for 'same' padding of even kernels")
            same = options["padding"] == "same"
            options = options | {"padding": tuple(t // 2 for t in total) if same else 0}
        return operators.Conv2d(weight, bias, math.prod(weight().shape[1:]), shape, options)

    def _leaky(self, slope: float):
        if not 0 <= slope < 1:
            raise Unsupported(f"no bound is known for a leaky ReLU of slope {slope}")
        return activations.ReLU(slope)

    def _shape(self, module, before, after=None):
        def reshape(t: Tensor) -> Tensor:
            return module(t) if after is None else t.reshape(t.shape[0], *after)

        if after == before:
            return None
        return operators.Monotone(reshape, before, True, "reshape", 1)

    def _positive(self, node: fx.Node, x: fx.Node, name: str, linear: bool = True):
        if any(a in self.names for a in node.args[1:] if isinstance(a, fx.Node)):
            raise Unsupported(f"no bound is known for the operation {name!r} with arguments that depend on the input")
        args, kwargs, f = node.args[1:], node.kwargs, node.target
        call = (lambda t: getattr(t, f)(*args, **kwargs)) if isinstance(f, str) else (lambda t: f(t, *args, **kwargs))
        if _mixes_examples(call, self.shapes[x]):
            raise Unsupported(f"no bound is known for the operation {name!r} across the batch")
        return operators.Monotone(call, self.shapes[x], linear, name, math.prod(self.shapes[x]))

    def _arithmetic(self, name: str, args: tuple):
        name = name.removeprefix("i")
        if name == "neg":
            return operators.Scale(lambda: -1.0, lambda: None)
        x, y = args[:2]
        varying = [isinstance(v, fx.Node) and v in self.names for v in (x, y)]
        if all(varying):
            if name in ("add", "sub") and self.shapes[x] == self.shapes[y]:
                return operators.Sum(1 if name == "add" else -1), (x, y)
            if name == "mul" and x is y:
                return activations.square()
            raise Unsupported(f"no bound is known for the operation {name!r} on these two values of the network")
        value, constant = (x, y) if varying[0] else (y, x)
        get = self._get(constant)
        nothing = lambda: None  # noqa: E731
        match name, varying[0]:
            case "add", _:
                op = operators.Scale(nothing, get)
            case "sub", True:
                op = operators.Scale(nothing, lambda: -get())
            case "sub", False:
                op = operators.Scale(lambda: -1.0, get)
            case "mul", _:
                op = operators.Scale(get, nothing)
            case (("truediv" | "div"), True):
                op = operators.Scale(lambda: 1.0 / get(), nothing)
            case _:
                raise Unsupported("no bound is known for dividing by a value of the network")
        return op, (value,)


def _batch_norm(m: nn.modules.batchnorm._BatchNorm, dimensions: int):
    if m.running_mean is None:
        raise Unsupported("no bound is known for batch normalisation without running statistics")

    def shaped(v: Tensor) -> Tensor:
        return v.view(-1, *[1] * (dimensions - 1))

    def scale() -> Tensor:
        weight = 1.0 if m.weight is None else m.weight
        return shaped(weight / torch.sqrt(m.running_var + m.eps))

    def shift() -> Tensor:
        bias = torch.zeros_like(m.running_mean) if m.bias is None else m.bias
        return shaped(bias) - shaped(m.running_mean) * scale()

    return operators.Scale(scale, shift)


def _mixes_examples(function, shape: tuple[int, ...]) -> bool:
    """Does the function treat anything but the first dimension as the batch?"""
    one, three = (function(torch.zeros((n, *shape))) for n in (1, 3))
    return one.dim() == 0 or one.shape[1:] != three.shape[1:] or (one.shape[0], three.shape[0]) != (1, 3)
