"""Calibration matches the outputs on images of the kind that it has seen, and keeps their means."""

import pytest
import torch
import torch.nn as nn

from linearconv_convert import convert
from linearconv_convert.calibration import add_sensitivities, output_moments
from linearconv_convert.inputs import Call, with_batch
from models.base_xcnn import Base
from tests.helpers.layers import relative_error
from tests.helpers.networks import CONVERSIONS, images, tiny


@pytest.fixture(scope="module")
def trained():
    """Base, thin, after some steps on images whose classes differ in colour and frequency."""
    torch.manual_seed(0)
    model = Base(width=0.5).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        batch, labels = batch_of(64)
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def batch_of(size):
    labels = torch.randint(10, (size,))
    noise = torch.randn(size, 3, 32, 32)
    wave = torch.sin(torch.arange(32) * (labels[:, None] + 1) * 0.3)[:, None, None, :]
    return 0.5 * noise + wave * torch.tensor([1.0, 0.5, -0.5])[:, None, None], labels


@pytest.mark.parametrize("name", ["full", "lowrank"])
def test_calibration_lowers_the_error_of_the_outputs_on_new_images(trained, name):
    setting = CONVERSIONS[name][0] | {"skip": "feat.0", "return_report": True}
    seen, unseen = batch_of(128)[0], batch_of(128)[0]
    plain, report = convert(trained, **setting)
    data_aware, weighed = convert(trained, **setting, calibration=seen)
    for row, blind in zip(weighed.converted, report.converted, strict=True):
        assert row.output_error > 0 and blind.output_error is None
        assert row.filter_error > blind.filter_error
    with torch.no_grad():
        output, head = trained(unseen), trained.feat[0](unseen)
        assert relative_error(data_aware(unseen), output) < relative_error(plain(unseen), output)
        second = [net.feat[1](head) for net in (trained, data_aware, plain)]
        assert (second[1] - second[0]).norm() < (second[2] - second[0]).norm()


def test_calibration_keeps_the_mean_of_the_outputs_by_the_bias(trained):
    batches = [batch_of(32) for _ in range(3)]
    small = convert(trained, "lowrank", rank=2, calibration=batches, skip=["feat.0", "feat.1", "feat.2"])
    name = "feat.3.0"
    ours = output_moments(small, {name: small.get_submodule(name)}, batches)[name].mean
    theirs = output_moments(trained, {name: trained.get_submodule(name)}, batches)[name].mean
    bias_ours, bias_theirs = (net.get_submodule(name).bias.detach().double() for net in (small, trained))
    torch.testing.assert_close(ours + bias_ours, theirs + bias_theirs, rtol=0, atol=1e-4)


def test_output_moments_are_mean_and_covariance_without_the_bias():
    model, batches = tiny(), [images(), images(side=16)]
    with torch.no_grad():
        moments = output_moments(model, {"stem": model.stem}, batches)["stem"]
        rows = [model.stem(batch).movedim(1, -1).reshape(-1, 16) - model.stem.bias for batch in batches]
    rows = torch.cat(rows).double()
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(rows.T, correction=0))


def test_the_sensitivity_of_logits_is_their_fisher_information():
    """F = J^T (diag(p) - p p^T) J for the Jacobian J of the logits by the outputs before the activation in place."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5 * 4, 6))
    model = nn.Sequential(nn.Conv2d(3, 5, 3), *head).requires_grad_(False)
    image = torch.randn(1, 3, 4, 4)
    call = with_batch(model, Call((image.expand(512, -1, -1, -1),), {}, "calibration"))
    moments = output_moments(model, {"0": model[0]}, image)
    add_sensitivities(model, {"0": model[0]}, moments, call)

    output = model[0](image).detach()
    jacobian = torch.autograd.functional.jacobian(lambda output: head(output.clone()), output)[0, :, 0].flatten(2)
    p = head(output.clone())[0].softmax(0).detach()
    fisher = torch.einsum("afp,ab,bgp->fg", jacobian, p.diag() - torch.outer(p, p), jacobian)  # (F, F)
    assert relative_error(moments["0"].sensitivity / 512, fisher) < 0.15


def test_batches_calibrate_like_one_batch_with_all_their_images(trained):
    seen, labels = batch_of(96)
    batches = [(seen[start : start + 16], labels[start : start + 16]) for start in range(0, 96, 16)]
    at_once = convert(trained, "rank", budget=0.4, calibration=seen)
    in_parts = convert(trained, "rank", budget=0.4, calibration=batches)
    for name, parameter in at_once.named_parameters():
        torch.testing.assert_close(in_parts.get_parameter(name), parameter, rtol=1e-3, atol=1e-4)


def test_channels_that_the_network_ignores_cost_no_primary_filters():
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)
    with torch.no_grad():
        conv.weight[8:] *= 10  # most of the variance
        head.weight[:, 8:] = 0
    model = nn.Sequential(conv, head)
    seen = torch.randn(64, 3, 8, 8)
    small = convert(model, "rank", calibration=seen, skip="1")  # 8 primary filters
    assert relative_error(small(seen), model(seen)) < 0.2
    filters = convert(model, "rank", skip="1")
    assert relative_error(filters(seen), model(seen)) > 0.4
