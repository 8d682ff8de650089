"""Calibration and example inputs have the form that the model takes; another input is refused in one line."""

import pytest
import torch
import torch.nn as nn
from torch.utils._pytree import tree_structure

from linearconv_convert import ConversionError, convert
from linearconv_convert.inputs import calibration_calls, call_of, tensors_of, with_batch
from tests.helpers.networks import Several, images, tiny


class Whole(nn.Module):
    """Takes a dict as its one argument."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)

    def forward(self, batch):
        return (self.conv(batch["image"]),)


IMAGE, SHIFT, LABELS = images(12), torch.arange(2.0), torch.tensor([1, 2])


@pytest.mark.parametrize(
    "model, calibration, args, kwargs",
    [
        (tiny(), IMAGE, [IMAGE], {}),
        (tiny(), (IMAGE, LABELS), [IMAGE], {}),
        (tiny(), [[IMAGE, LABELS]], [IMAGE], {}),
        (tiny(), iter([IMAGE]), [IMAGE], {}),
        (Several(), [((IMAGE, SHIFT), LABELS)], [IMAGE, SHIFT], {}),
        (Several(), {"image": IMAGE, "shift": SHIFT, "label": LABELS}, [], {"image": IMAGE, "shift": SHIFT}),
        (Whole(), {"image": IMAGE}, [{"image": IMAGE}], {}),
    ],
)
def test_the_model_gets_what_it_cannot_do_without(model, calibration, args, kwargs):
    (call,) = calibration_calls(model, calibration)
    assert tree_structure((call.args, call.kwargs)) == tree_structure((tuple(args), kwargs))
    assert all(ours is theirs for ours, theirs in zip(tensors_of(call), tensors_of((args, kwargs)), strict=True))
    call.run(model)


@pytest.mark.parametrize("kind, example", [(Several, (IMAGE, SHIFT)), (Whole, {"image": IMAGE})])
def test_models_of_several_inputs_are_calibrated_counted_and_given_a_budget(kind, example):
    model = kind()
    small, report = convert(model, "rank", budget=0.7, calibration=example, return_report=True)
    assert report.macs_before == 100 * 16 * 27 and report.converted[0].output_error > 0
    call_of(model, example, "example_input").run(small)


class Ending(nn.Module):
    """A convolution, and a function of its output."""

    def __init__(self, end):
        super().__init__()
        self.conv, self.end = nn.Conv2d(3, 16, 3), end

    def forward(self, x):
        return self.end(self.conv(x))


@pytest.mark.parametrize("end", [str, lambda y: y[y > 0.5], lambda y: torch.from_numpy(y.numpy())])
@pytest.mark.filterwarnings("ignore::linearconv_convert.ConversionWarning")
def test_a_budget_is_shared_out_where_outputs_cannot_be_compared_or_have_no_gradient(end):
    _, report = convert(Ending(end), "rank", budget=0.7, calibration=IMAGE, return_report=True)
    row = report.converted[0]
    assert 0.5 * row.output_error < row.expected < 1.01 * row.output_error


class Scaled(nn.Module):
    """Takes a factor for each of the 8 channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x, factors):
        return self.conv(x) * factors.view(-1, 1, 1)


@pytest.mark.parametrize(
    "model, example, batch, batched",
    [
        (Several(), (images(12, batch=4), torch.arange(4.0)), 4, (0, 1)),
        (Scaled(), (images(12, batch=8), torch.arange(8.0)), 8, (0,)),
        (nn.Conv2d(3, 8, 3), images(12)[0], 1, ()),
        (nn.Conv2d(3, 8, 3), [*images(12, batch=5)], 5, ()),
    ],
)
def test_tensors_with_one_entry_for_each_image_are_found_by_running(model, example, batch, batched):
    call = with_batch(model, call_of(model, example, "example_input"))
    assert call.batch == batch and call.batched == batched


class OfLists(nn.Module):
    """Takes a list of images, as torchvision's detectors do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)

    def forward(self, images, targets=None):
        return [self.conv(each) for each in images] if isinstance(images, list) else 1 / 0


def test_batches_of_a_collated_list_stay_lists():
    pairs = [(image, {"boxes": torch.zeros(1, 4)}) for image in images(12, batch=3)]
    _, report = convert(OfLists(), "rank", calibration=[tuple(zip(*pairs, strict=True))], return_report=True)
    assert report.macs_before == 100 * 16 * 27 and report.converted[0].output_error > 0


def broken(value):
    batch = images(12)
    batch[1, 2, 3, 4] = value
    return batch


@pytest.mark.parametrize(
    "setting, message",
    [
        (dict(calibration=torch.randn(2, 5, 8, 8)), "does not run on calibration: .*channels"),
        (dict(calibration="images"), "does not run on calibration"),
        (dict(calibration=[]), "calibration has no batch"),
        (dict(example_input=(IMAGE, IMAGE)), "does not run on example_input"),
        (dict(calibration=broken(float("nan"))), "image 1 of batch 1 has values that are not finite"),
        (dict(calibration=[IMAGE, (broken(-torch.inf), LABELS)]), "image 1 of batch 2 has values that are not finite"),
        (dict(calibration=torch.empty(0, 3, 8, 8)), r"batch 1 is empty, a tensor of shape \(0, 3, 8, 8\)"),
        (dict(calibration=1e38 * IMAGE), "the outputs of layer '.*' on these images are not finite"),
    ],
)
def test_what_the_model_does_not_take_is_refused_in_one_line(setting, message):
    model = tiny()
    model.stem.weight.data *= 1e8
    with pytest.raises(ConversionError, match=message) as caught:
        convert(model, "rank", **setting)
    assert "\n" not in str(caught.value)
