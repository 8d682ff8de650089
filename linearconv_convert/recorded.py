"""Networks that say how they were converted, so that a file of their weights is enough to build them again.

    record = {"name": "torchvision:resnet18", "in_channels": 3, "num_classes": 10, "image_size": 224}
    record["conversion"] = setting_of(report, "rank")               # None for a network that was not converted
    torch.save({"model": small.state_dict(), "network": record}, "small.pt")
    small = load_converted("small.pt")                              # no images, no search for a budget

A record holds plain values, as checkpoints and JSON do.
"""

import warnings
from pathlib import Path

import torch.nn as nn

from linearconv_convert.convert import convert
from linearconv_convert.leftovers import ConversionWarning
from linearconv_convert.networks import load_network, load_tensors, state_of
from linearconv_convert.report import Report
from linearconv_convert.surgery import ConversionError

RECORD = "network"  # key of a checkpoint
AVERAGE = "average"  # key of averaged weights, which stand for the network where there are any


def setting_of(report: Report, type: str) -> dict[str, object]:
    """Return the arguments with which :func:`convert` makes the layers of a conversion again, whatever chose them."""
    variants = {layer.name: layer.variant for layer in report.converted}
    ranks = {} if type == "sparse" else {"rank": {name: variant.rank for name, variant in variants.items()}}
    shared = {(variant.sparsity, variant.compute) for variant in variants.values()}
    sparsity, compute = shared.pop() if shared else (None, "auto")
    alphas = {name: variant.alpha for name, variant in variants.items()}
    return {"type": type, "include": list(variants), "alpha": alphas, **ranks, "sparsity": sparsity, "compute": compute}


def convert_again(model: nn.Module, setting: dict[str, object] | None) -> nn.Module:
    """Return a network with the layers of a recorded conversion, at their initial weights.

    Args:
        model: the network as it was before; not changed.
        setting: of :func:`setting_of`; None for none.
    """
    if setting is None:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionWarning)  # was told the first time
        return convert(model, **setting, grow=True, init="scratch")


def read_record(path: str | Path) -> dict[str, object]:
    """Return the record in a checkpoint.

    Raises:
        ConversionError: where there is none.
    """
    content = load_tensors(path)
    record = content.get(RECORD) if isinstance(content, dict) else None
    if not isinstance(record, dict) or "conversion" not in record:
        raise ConversionError(f"{path} does not say which network it is of: give it as --weights of one")
    return record


def load_converted(path: str | Path) -> nn.Module:
    """Return the network of a checkpoint with its weights, the averaged ones where it has them.

    Args:
        path: of a file with a state_dict and, under `RECORD`, a record.

    Raises:
        ConversionError: for a file without these, or a network that its library does not have.
        OSError: where there is no such file.
    """
    record, content = read_record(path), load_tensors(path)
    state = state_of(content.get(AVERAGE, content), path)
    state.pop("n_averaged", None)  # of torch's AveragedModel
    shape = {name: record[name] for name in ("in_channels", "num_classes")}
    model = convert_again(load_network(record["name"], **shape), record["conversion"])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ConversionError(f"{path} does not fit its record: {str(error).splitlines()[-1].strip()[:160]}") from None
    return model
