"""Which way is faster: the rule behind `compute="auto"`, in units of one multiply-add of a convolution.

    made filters:           positions * F K                      + in training  T * |A| K
    combined feature maps:  positions * (P K + c |A| + e F)      + o * calls

`positions` is N H' W', |A| the number of elements of the matrices that combine, K = C/groups kh kw. Their multiply-add
costs c of a convolution's; `e` is the traffic of an output element that is written apart and joined; `o` what it takes
to start a further operation; T = 3 the products (forward, two backward) that making the filters takes.

The constants were fitted to two CPU cores, in float32 (results/layers_cpu_float32.json) and in bfloat16 with matrix
instructions (results/layers_cpu_bfloat16.json), which multiply several times as fast and move data no faster. They
stand for GPUs too as long as nobody has measured these.
"""

from typing import NamedTuple


class Costs(NamedTuple):
    coefficient: float  # c
    element: float  # e
    call: float  # o


MEASURED = {  # benchmarks/layers.py --fit
    "float32": Costs(coefficient=1.0, element=80.0, call=2e5),
    "bfloat16": Costs(coefficient=1.0, element=480.0, call=1e6),
}


def features_pay(layer, positions=None, training=True, precision="float32"):
    """True where combining feature maps is expected to be faster than making filters.

    Args:
        layer (LinearConv): of one group, with secondary filters.
        positions (int, optional): output positions of the whole batch, N H' W'; very many where left out.
        training (bool): filters are made, and differentiated, at every pass; otherwise they have been made.
        precision (str): `"float32"`, or `"bfloat16"` for all 16-bit types.
    """
    costs = MEASURED[precision]
    saved = layer.macs_per_position("filters") - layer.primary_channels * layer.filter_size
    saved -= costs.coefficient * layer.multiplied_coefficients + costs.element * layer.out_channels
    if positions is None:
        return saved > 0
    saved *= positions
    if training:
        saved += 3 * layer.macs_of_making("filters")
    return saved > costs.call * (1 + len(layer.factors()))
