"""A fully connected ReLU network as an ONNX model, for tools that confirm its properties."""

from torch import nn

from robustrun.errors import ConfigError


def onnx_model(model: nn.Module, inputs: int) -> bytes:
    """The serialised model: input "X" (batch, inputs) to output "Y" (batch, outputs), float32.

    Raises:
        ConfigError: the package onnx is not installed, or the network has layers other than Linear and ReLU.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise ConfigError("exporting properties needs the package onnx: pip install onnx") from None
    leaves = [m for m in model.modules() if not list(m.children())]
    nodes, weights, value = [], [], "X"
    for i, layer in enumerate(leaves):
        result = "Y" if i == len(leaves) - 1 else f"h{i}"
        if isinstance(layer, nn.Linear):
            arrays = {f"W{i}": layer.weight, f"b{i}": layer.bias}
            weights += [numpy_helper.from_array(a.detach().float().cpu().numpy(), name) for name, a in arrays.items()]
            nodes.append(helper.make_node("Gemm", [value, *arrays], [result], transB=1))
        elif isinstance(layer, nn.ReLU):
            nodes.append(helper.make_node("Relu", [value], [result]))
        else:
            raise ConfigError(f"certifier.export writes Linear and ReLU layers, not {type(layer).__name__}")
        value = result
    outputs = leaves[-1].out_features if isinstance(leaves[-1], nn.Linear) else None
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n])
        for name, n in (("X", inputs), ("Y", outputs))
    ]
    graph = helper.make_graph(nodes, "virtual_sensor", ends[:1], ends[1:], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return made.SerializeToString()
