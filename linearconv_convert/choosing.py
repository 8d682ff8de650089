"""Alpha, or the rank, of every layer of a model, chosen for a budget or for an error."""

from dataclasses import dataclass, field, replace

import torch.nn as nn

from linearconv_convert.budget import plan
from linearconv_convert.carrying import like, root_for
from linearconv_convert.effects import Effect, expected_error, measure_effects
from linearconv_convert.evidence import Evidence
from linearconv_convert.report import count_macs, count_parameters
from linearconv_convert.spectrum import full_rank_spectrum, low_rank_spectrum
from linearconv_convert.surgery import ConversionError
from linearconv_variants import Variant

UNITS = ("parameters", "macs")


@dataclass(frozen=True)
class Aim:
    """What a conversion shall come to, if anything: a size, or an error.

    Raises:
        ValueError: for a value out of range.
        ConversionError: for both at once.
    """

    budget: float | None = None  # share of the whole model's size that the result may have
    of: str = "parameters"  # what the size is, one of `UNITS`
    error: float | None = None  # relative, of each layer

    def __post_init__(self) -> None:
        if self.of not in UNITS:
            raise ValueError(f"of must be one of {', '.join(UNITS)}, got {self.of!r}")
        for name in ("budget", "error"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {value}")
        if self.budget is not None and self.error is not None:
            raise ConversionError("budget and error exclude each other: give one of them")

    def __bool__(self) -> bool:
        return self.budget is not None or self.error is not None

    def check(self, type: str, rank: object, alpha: object, grow: bool) -> None:
        """Refuse settings beside which nothing is to be chosen, or too little is given.

        Raises:
            ConversionError: says which.
        """
        if not self:
            if type == "lowrank" and rank is None:
                raise ConversionError("lowrank needs a rank, as rank=64, or a budget for all ranks, as budget=0.5")
            return
        if type == "sparse" or (type == "rank" and rank is not None):
            raise ConversionError("budget and error choose alpha for full rank, or the ranks of lowrank, nothing else")
        chosen, given = ("alpha", alpha) if type == "rank" else ("rank", rank)
        if given is not None:
            raise ConversionError(f"budget and error choose {chosen}: leave it out")
        if grow:
            raise ConversionError("budget and error leave layers alone that would not get smaller: leave grow out")


@dataclass(frozen=True)
class Plan:
    """What was chosen; empty where nothing was to be chosen."""

    variants: dict[str, Variant | None] = field(default_factory=dict)  # of each layer; None for one that stays plain
    expected: dict[str, float] = field(default_factory=dict)  # relative error of the network's output by each layer
    together: float | None = None  # the same by all layers
    curve: list[tuple[float, float]] = field(default_factory=list)  # (size, expected error) of the best choices


def choose(
    model: nn.Module, layers: dict[str, nn.Conv2d], variants: dict[str, Variant], evidence: Evidence, aim: Aim
) -> Plan:
    """Choose alpha, or the rank, of the layers of a model.

    Args:
        model: with plain convolutions.
        layers: {name: convolution} of those to choose for.
        variants: of these, with any value of what is to be chosen.
        evidence: of calibration and example inputs.
        aim: the budget, or the error.

    Raises:
        ConversionError: for multiply-adds without inputs, or a budget that cannot be reached.
    """
    if aim.of == "macs" and evidence.macs is None:
        raise ConversionError("of='macs' needs example_input or calibration: multiply-adds depend on the size of maps")
    spectra = {}
    for name, layer in layers.items():
        new = like(layer, variants[name].conv, device="meta")
        if new.secondary_channels:
            root = root_for(layer, evidence.moments.get(name))
            is_low_rank = variants[name].type == "lowrank"
            spectra[name] = low_rank_spectrum(root, new.primary_channels) if is_low_rank else full_rank_spectrum(root)
    effects = dict.fromkeys(spectra, Effect())
    if evidence.call is not None:
        effects = measure_effects(model, layers, spectra, evidence.moments, evidence.call)

    def size_of(name, setting):
        layer = layers[name]
        new = like(layer, replace(variants[name], **setting).conv, device="meta") if setting else layer
        return count_parameters(new) if aim.of == "parameters" else count_macs(new, evidence.positions.get(name, 0))

    whole = count_parameters(model) if aim.of == "parameters" else evidence.macs
    chosen, curve = plan(spectra, effects, size_of, whole, aim.budget, aim.error)
    settings = {name: option.setting for name, option in chosen.items()}
    return Plan(
        {name: replace(variants[name], **setting) if setting else None for name, setting in settings.items()},
        {name: expected_error(option.loss) for name, option in chosen.items()},
        expected_error(sum(option.loss for option in chosen.values())),
        curve,
    )
