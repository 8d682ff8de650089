"""Statistics of what layers put out on given images, which weigh the errors of a conversion."""

from dataclasses import dataclass

import torch

from linearconv_convert.surgery import watched


@dataclass
class Moments:
    """Second moments of a layer's outputs, its bias left out, over all positions of all images.

    `second` (F, F) is the sum of y y^T, `first` (F,) the sum of y, `count` the number of positions; float64.
    """

    second: torch.Tensor
    first: torch.Tensor
    count: int = 0

    @property
    def mean(self):
        return self.first / self.count

    @property
    def covariance(self):
        return self.second / self.count - torch.outer(self.mean, self.mean)

    def add(self, output, bias):
        rows = output.detach().movedim(-3, -1).flatten(0, -2).double()  # (positions, F)
        if bias is not None:
            rows = rows - bias.detach().double()
        self.second += rows.T @ rows
        self.first += rows.sum(0)
        self.count += len(rows)


@torch.no_grad()
def output_moments(model, layers, batches):
    """Run batches through a model in eval mode.

    Args:
        model (nn.Module): left as it was, in its mode too.
        layers (dict[str, nn.Conv2d]): the layers to look at.
        batches (Tensor or iterable): images (N, C, H, W), or several such batches, with or without labels behind them
            as loaders give them.

    Returns:
        dict[str, Moments]: of the layers that were reached.

    Raises:
        ValueError: where `batches` holds no batch.
    """
    moments, seen = {}, 0

    def note(name, layer, output):
        if name not in moments:
            zeros = output.new_zeros(layer.out_channels, layer.out_channels, dtype=torch.float64)
            moments[name] = Moments(zeros, zeros[0].clone())
        moments[name].add(output, layer.bias)

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with watched(model, layers, note):
        for batch in [batches] if isinstance(batches, torch.Tensor) else batches:
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(images.to(device))
            seen += 1
    if not seen:
        raise ValueError("calibration holds no batch of images")
    return moments
