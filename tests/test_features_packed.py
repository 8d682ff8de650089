"""Filters kept for inference, laid out as oneDNN takes them: used where they may be, never seen outside."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn as nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import linearconv_features
from linearconv import LinearConv
from tests.helpers.layers import reference, relative_error

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and linearconv_features.PACKED[torch.float32]),
    reason="packs where oneDNN convolves, on CPUs with AVX2",
)
computes = pytest.mark.parametrize("compute", ("filters", "features"))
GEOMETRIES = (
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, stride=2, bias=False),
    dict(kernel_size=(3, 2), padding=(0, 1), dilation=(2, 1)),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=3, padding=1, padding_mode="reflect"),
    dict(kernel_size=3, groups=4, alpha=1),
)


def images(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def make(channels=8, filters=16, **options):
    torch.manual_seed(0)
    return LinearConv(channels, filters, **({"kernel_size": 3} | options)).eval().to(memory_format=torch.channels_last)


def passes(layer, *inputs):
    with torch.no_grad():
        return [layer(input) for input in inputs]


def packed(layer):
    """The layouts that are packed at the moment."""
    return list(layer._kept.packed[-1].values())


@computes
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("dtype, limit", ((torch.float32, 1e-5), (torch.bfloat16, 0.03)), ids=("float32", "bfloat16"))
def test_all_passes_of_a_shape_give_the_same_and_the_second_packs(geometry, compute, dtype, limit):
    if not linearconv_features.PACKED[dtype]:
        pytest.skip("oneDNN does not convolve bfloat16 here")
    layer, input = make(**geometry, compute=compute).to(dtype), images(2, 8, 9, 7, dtype=dtype)
    expected = reference(copy.deepcopy(layer).float(), input.float())
    first, *others = passes(layer, *[input] * 3)
    assert packed(layer)
    for output in (first, *others):
        assert output.dtype == dtype and output.stride() == first.stride()
        assert relative_error(output.float(), expected) < limit


@computes
def test_shapes_in_turns_share_a_layout(compute):
    layer, inputs = make(compute=compute), [images(1, 8, side, side + 1) for side in range(8, 14)]
    passes(layer, *inputs)
    assert not packed(layer)
    for _ in range(2):
        for input, output in zip(inputs, passes(layer, *inputs), strict=True):
            assert relative_error(output, reference(layer, input)) < 1e-5
        (layout,) = packed(layer)
    assert [of_a_shape is layout for of_a_shape in layer._kept.packed[1].values()] == [True] * 6


def test_of_very_many_shapes_only_the_last_are_remembered(monkeypatch):
    monkeypatch.setattr(linearconv_features, "MOST_SHAPES", 4)
    layer = make()
    for number in range(1, 20):
        input = images(1, 8, 4 + number, 5)
        for output in passes(layer, *[input] * 3):
            assert relative_error(output, reference(layer, input)) < 1e-5
        assert len(layer._kept.packed[1]) == (number - 1) % 4 + 1 and len(packed(layer)) == 1


@computes
def test_a_changed_parameter_is_seen(compute):
    layer, input = make(compute=compute), images(1, 8, 8, 8)
    for _ in range(2):
        passes(layer, *[input] * 3)
        with torch.no_grad():
            layer.conv_weights.mul_(1.5)
        assert relative_error(*passes(layer, input), reference(layer, input)) < 1e-5


def test_layouts_are_of_a_number_of_threads():
    layer, input, threads = make(64, 128, padding=1), images(1, 64, 8, 8), torch.get_num_threads()
    try:
        for count in (1, 8):  # for which the layouts differ on a CPU with AVX512
            torch.set_num_threads(count)
            for output in passes(layer, *[input] * 3):
                assert relative_error(output, reference(layer, input)) < 1e-5
    finally:
        torch.set_num_threads(threads)
    assert [asked[2] for asked, layout in layer._kept.packed[1].items() if layout is not False] == [1, 8]


@pytest.mark.parametrize("layer, input", (
    (make(), images(2, 8, 9, 9).contiguous()),
    (make(padding="same"), images(2, 8, 9, 9)),
    (make().double(), images(2, 8, 9, 9).double()),
    (make(), images(2, 8, 9, 9)[0]),
    (make(), images(0, 8, 9, 9)),
), ids=("contiguous", "same", "float64", "unbatched", "empty"))  # fmt: skip
def test_what_does_not_lie_channels_last_or_is_not_for_onednn_is_not_packed(layer, input):
    passes(layer, input, input, input)
    assert not packed(layer)


def test_for_many_maps_nothing_is_packed():
    for count, expected in ((32, True), (33, False)):
        layer = make(compute="filters", padding=1)
        passes(layer, *[images(count, 8, 8, 8)] * 3)
        assert bool(packed(layer)) == expected


def test_nothing_is_packed_where_onednn_is_off():
    layer, input = make(), images(1, 8, 8, 8)
    with torch.backends.mkldnn.flags(enabled=False):
        passes(layer, input, input, input)
    assert not packed(layer)


@computes
def test_under_autocast(compute):
    layer, input = make(compute=compute), images(2, 8, 9, 9)
    expected = reference(layer, input)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            for output in passes(layer, *[input] * 3):
                assert output.dtype == torch.bfloat16 and relative_error(output.float(), expected) < 0.03
        assert relative_error(passes(layer, *[input] * 3)[-1], expected) < 1e-5


@computes
def test_wrong_input_gets_the_words_of_conv2d(compute):
    layer = make(compute=compute)
    passes(layer, *[images(1, 8, 8, 8)] * 3)
    assert packed(layer)
    for input in (images(1, 7, 8, 8), images(1, 8, 2, 2), torch.randint(9, (1, 8, 8, 8))):
        with pytest.raises(RuntimeError) as theirs:
            passes(nn.Conv2d(8, 16, 3), input)
        for _ in range(2):
            with pytest.raises(RuntimeError) as ours:
                passes(layer, input)
            assert str(ours.value) == str(theirs.value)


@computes
def test_flops_are_counted(compute):
    layer, input = make(compute=compute), images(2, 8, 9, 9)
    passes(layer, *[input] * 3)
    with FlopCounterMode(display=False) as counter:
        passes(layer, input)
    assert counter.get_total_flops() == 2 * 2 * 7 * 7 * layer.macs_per_position(compute)


@computes
def test_forward_mode_differentiation_without_gradients(compute):
    layer, input, tangent = make(compute=compute), images(2, 8, 9, 9), images(2, 8, 9, 9)
    passes(layer, *[input] * 3)
    with torch.no_grad(), forward_ad.dual_level():
        output = forward_ad.unpack_dual(layer(forward_ad.make_dual(input, tangent)))
    expected = nn.functional.conv2d(tangent, layer.weight)
    torch.testing.assert_close(output.tangent, expected.detach(), rtol=1e-4, atol=1e-5)


def test_copies_take_nothing_of_it_along(tmp_path):
    layer, input = make(), images(1, 8, 8, 8)
    expected = passes(layer, *[input] * 3)[-1]
    torch.save(layer, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert packed(layer) and not packed(other)
        torch.testing.assert_close(passes(other, input, input)[-1], expected)


def test_threads_may_share_a_layer():
    layer, sizes = make(), (5, 6, 7, 8)
    inputs = [images(1, 8, side, side) for side in sizes]
    expected = [reference(layer, input) for input in inputs]

    def evaluate(number):
        outputs = passes(layer, *[inputs[number % 4]] * 50)
        return max(relative_error(output, expected[number % 4]) for output in outputs)

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(evaluate, range(16))) < 1e-5
