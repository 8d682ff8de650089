"""What a conversion left as it was, and why, in one line."""

import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn as nn

from linearconv_convert.report import Report, count_parameters, short
from linearconv_convert.surgery import layers_of

OTHER_KINDS = (nn.Linear, nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d)
CHOSEN_REASONS = ("skipped", "not included")  # which the user gave
LITTLE = 0.05  # of the parameters


class ConversionWarning(UserWarning):
    """Less was done than was asked for, or worse than it could be; str() is one line with the reason and the cure."""


@contextmanager
def told_in_lines(program: str) -> Iterator[None]:
    """While the context lasts, print a ConversionWarning as one line on stderr that begins with a program's name."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message, category, *where, **more):
            if issubclass(category, ConversionWarning):
                print(f"{program}: {message}", file=sys.stderr)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = tell
        yield


def other_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return {type: (number, parameters)} of the layers with weights that are no nn.Conv2d."""
    found = defaultdict(lambda: (0, 0))
    for layer in layers_of(model, OTHER_KINDS).values():
        number, parameters = found[type(layer).__name__]
        found[type(layer).__name__] = number + 1, parameters + count_parameters(layer)
    return dict(found)


def warn_of_leftovers(report: Report, stacklevel: int = 3) -> None:
    """Warn where nothing was converted, or little was saved because most of what the user meant was left alone."""
    left_out = sum(layer.parameters_before for layer in report.layers if layer.reason in CHOSEN_REASONS)
    meant = report.parameters_before - left_out
    left = meant - sum(layer.parameters_before for layer in report.converted)
    saved = report.parameters_before - report.parameters_after
    if not report.converted:
        what = "nothing was converted"
    elif not report.curve and saved < LITTLE * meant and 2 * left > meant:
        what = f"only {100 * saved / report.parameters_before:.1f} % of the parameters were saved"
    else:
        return
    warnings.warn(f"{what}: {_reasons(report)}", ConversionWarning, stacklevel=stacklevel)


def _reasons(report):
    """What was left alone, the most parameters first."""
    groups = defaultdict(lambda: (0, 0))
    for layer in report.layers:
        if layer.reason:
            number, parameters = groups[layer.reason.partition(" (")[0]]
            groups[layer.reason.partition(" (")[0]] = number + 1, parameters + layer.parameters_before
    parts = {
        f"{number} convolution{'s' * (number > 1)} of {short(size)} {_told(why)}": size
        for why, (number, size) in groups.items()
    }
    parts |= {f"{number} {kind} of {short(size)} not converted": size for kind, (number, size) in report.others.items()}
    return "; ".join(sorted(parts, key=parts.get, reverse=True)) or "see the report"


def _told(reason):
    cures = {"would not get smaller": " (a smaller alpha or budget= may help)", "plain is best": " (of that budget)"}
    return reason + cures.get(reason, "")
